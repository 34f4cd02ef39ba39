"""From a wrapped model to the model for the converter, or to the ordinary model."""
