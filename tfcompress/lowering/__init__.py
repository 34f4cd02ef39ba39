"""From a wrapped model to what the converter gets, or to the ordinary model."""
