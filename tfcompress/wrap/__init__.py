"""Wrapping a model for compression-aware training, and unwrapping it."""
