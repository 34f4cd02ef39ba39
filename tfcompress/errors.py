"""The project's own warning and error classes."""


class CompressionWarning(UserWarning):
    """Something that works but is probably not what was meant."""


class ExportError(RuntimeError):
    """A file could not be written, or was written and found not to agree with its model."""
