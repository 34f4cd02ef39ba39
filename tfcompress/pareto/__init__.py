"""Searches recipes for the smallest, fastest files that lose little."""
