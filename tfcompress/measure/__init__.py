"""Plain data about models and files."""
