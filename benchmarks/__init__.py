"""Measurements, run by hand; docs/ holds their tables."""
