"""quantize: activation quantizers, canonical forms, placement."""
