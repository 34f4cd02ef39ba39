"""The project's own warning and error classes."""


class CompressionWarning(UserWarning):
    """Something that works but is probably not what was meant."""


class ExportError(RuntimeError):
    """A file could not be written, or was written and found not to agree with its model."""


class QuantizationError(ExportError):
    """A file of integers that computes what it should is too far from its float model."""
