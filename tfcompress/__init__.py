"""Prune, quantize and distil Keras 3 models, and ship them as checked INT8 TFLite files.

Public names are loaded when they are first used, so that `import tfcompress` is instant and a
device without TensorFlow can use `tfcompress.TFLiteModel`. `__init__.pyi` lists them.
"""

from __future__ import annotations

import ast as _ast
import importlib as _importlib
import pathlib as _pathlib
from typing import Any as _Any

__version__ = "0.1.0"

_HOMES = {
    alias.name: node.module
    for node in _ast.parse(_pathlib.Path(__file__).with_suffix(".pyi").read_text()).body
    if isinstance(node, _ast.ImportFrom)
    for alias in node.names
}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> _Any:
    if name not in _HOMES:
        import difflib  # for the message alone

        near = difflib.get_close_matches(name, _HOMES, n=1)
        hint = f". Did you mean {near[0]!r}?" if near else ""
        raise AttributeError(f"module 'tfcompress' has no attribute {name!r}{hint}")
    value = getattr(_importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]


def _register_with_keras(_: _Any) -> None:
    """Makes our classes known to Keras, so that saved models load after `import tfcompress`."""
    for module in (
        "transforms",
        "quantization.activation_quantizer",
        "quantization.placement",
        "distill.distiller",
        "distill.losses",
        "distill.teachers",
        "rewrite.channels.regularize",
    ):
        _importlib.import_module(f"tfcompress.{module}")


try:
    import wrapt as _wrapt
except ImportError:  # a device: without wrapt there is no TensorFlow, and so no Keras model to load
    pass
else:
    # Keras is slow to import and may never be needed: register when it is.
    _wrapt.register_post_import_hook(_register_with_keras, "keras")
