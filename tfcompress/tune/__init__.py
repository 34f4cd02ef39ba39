"""Choosing for the user: which layers bear how few bits."""
