"""Conversion to .tflite files, their execution, checks and measurement."""
