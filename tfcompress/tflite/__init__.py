"""A .tflite file: made, run, checked, measured."""
