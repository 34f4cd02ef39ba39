"""quantize: activation quantizers, canonical forms, placement."""

# First of all: importing Keras imports the classes that it must know (see tfcompress/__init__.py),
# which must not happen in the middle of a module that they need.
import keras  # noqa: F401
