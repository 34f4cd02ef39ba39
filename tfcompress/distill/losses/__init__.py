"""Distillation losses, one file a family."""
