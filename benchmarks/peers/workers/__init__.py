"""One module an environment; each runs one job in a process of its own."""
