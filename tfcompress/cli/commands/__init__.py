"""The commands; all modules of this folder are registered automatically."""
