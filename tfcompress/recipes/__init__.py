"""Recipes: a whole compression as one small file, run by one command, and run again to the byte."""
