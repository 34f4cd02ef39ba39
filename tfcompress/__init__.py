"""Prune, quantize and distil Keras 3 models, and ship them as checked INT8 TFLite files.

Public names are loaded when they are first used, so that `import tfcompress` is instant and a
device without TensorFlow can use `tfcompress.TFLiteModel`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tfcompress.compare import compare
    from tfcompress.distill.distiller import Distiller
    from tfcompress.distill.losses.response import SoftTargets
    from tfcompress.errors import CompressionWarning, ExportError
    from tfcompress.export import ExportResult, export_tflite
    from tfcompress.tflite.inspect import inspect_tflite
    from tfcompress.tflite.run import TFLiteModel
    from tfcompress.transforms.base import WeightTransform
    from tfcompress.transforms.schedules import ConstantSparsity, PolynomialDecay
    from tfcompress.wrap.apply import prune, quantize
    from tfcompress.wrap.strip import strip
    from tfcompress.wrap.summary import summary
    from tfcompress.wrap.wrapper import CompressionWrapper

__version__ = "0.1.0"

_HOMES = {
    "CompressionWarning": "errors",
    "CompressionWrapper": "wrap.wrapper",
    "ConstantSparsity": "transforms.schedules",
    "Distiller": "distill.distiller",
    "ExportError": "errors",
    "ExportResult": "export",
    "PolynomialDecay": "transforms.schedules",
    "SoftTargets": "distill.losses.response",
    "TFLiteModel": "tflite.run",
    "WeightTransform": "transforms.base",
    "compare": "compare",
    "export_tflite": "export",
    "inspect_tflite": "tflite.inspect",
    "prune": "wrap.apply",
    "quantize": "wrap.apply",
    "strip": "wrap.strip",
    "summary": "wrap.summary",
}

__all__ = [
    "CompressionWarning",
    "CompressionWrapper",
    "ConstantSparsity",
    "Distiller",
    "ExportError",
    "ExportResult",
    "PolynomialDecay",
    "SoftTargets",
    "TFLiteModel",
    "WeightTransform",
    "compare",
    "export_tflite",
    "inspect_tflite",
    "prune",
    "quantize",
    "strip",
    "summary",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'tfcompress' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"tfcompress.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _register_with_keras(_: Any) -> None:
    """Makes our classes known to Keras, so that saved models load after `import tfcompress`."""
    for module in ("transforms", "wrap.activations", "wrap.placement", "distill.distiller"):
        importlib.import_module(f"tfcompress.{module}")


try:
    import wrapt
except ImportError:  # a device: without wrapt there is no TensorFlow, and so no Keras model to load
    pass
else:
    # Keras is slow to import and may never be needed: register when it is.
    wrapt.register_post_import_hook(_register_with_keras, "keras")
