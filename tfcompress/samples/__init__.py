"""What data is like: probes to check a file on, and warnings."""
