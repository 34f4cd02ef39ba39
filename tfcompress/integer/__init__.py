"""The integer arithmetic of the runtime, in keras.ops."""
