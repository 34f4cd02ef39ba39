"""export_tflite: preflight, conversion, and the check against the model."""
