"""The commands: each in a file of this folder is found by itself."""
