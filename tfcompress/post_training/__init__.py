"""Quantization without training."""
