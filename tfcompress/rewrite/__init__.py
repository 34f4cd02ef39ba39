"""A model in, an ordinary model out that is smaller or in better condition to be quantized."""
