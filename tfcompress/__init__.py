"""Prune, quantize and distil Keras 3 models, and ship them as checked INT8 TFLite files.

Public names are loaded when they are first used, so that `import tfcompress` is instant and a
device without TensorFlow can use `tfcompress.TFLiteModel`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tfcompress.backup import BackupAndRestore
    from tfcompress.callbacks import CompressionSummaries, FreezeQuantization, TeacherAgreement
    from tfcompress.comparison import compare
    from tfcompress.distill.cache import cache_teacher
    from tfcompress.distill.cached import CachedTeacher
    from tfcompress.distill.distiller import Distiller
    from tfcompress.distill.losses.base import DistillationLoss
    from tfcompress.distill.losses.feature import (
        FSP,
        AttentionMaps,
        AttentionTransfer,
        FeatureMatching,
        tinybert_losses,
    )
    from tfcompress.distill.losses.relation import RKDAngle, RKDDistance, SimilarityPreserving
    from tfcompress.distill.losses.response import DecoupledTargets, HardTargets, SoftTargets
    from tfcompress.distill.teachers import ensemble
    from tfcompress.distributions import Histograms, histograms
    from tfcompress.errors import CompressionWarning, ExportError
    from tfcompress.export import ExportResult, export_tflite
    from tfcompress.graph.preprocessing import split_preprocessing
    from tfcompress.legacy import from_tf_keras
    from tfcompress.rewrite.channels.regularize import GroupLasso, regularize_channels
    from tfcompress.rewrite.depth import drop_layers, share_layers
    from tfcompress.rewrite.low_rank import factorize
    from tfcompress.scheme import QuantizationScheme
    from tfcompress.tflite.delegates import DelegateReport, delegate_report
    from tfcompress.tflite.inspect import inspect_tflite
    from tfcompress.tflite.layer_errors import LayerErrors, layer_errors
    from tfcompress.tflite.run import TFLiteModel
    from tfcompress.transforms.base import WeightTransform
    from tfcompress.transforms.schedules import ConstantSparsity, PolynomialDecay
    from tfcompress.tune.channels import prune_channels
    from tfcompress.tune.precision import AssignedScheme, assign_precision
    from tfcompress.tune.sensitivity import Sensitivity, sensitivity
    from tfcompress.wrap.apply import prune, quantize
    from tfcompress.wrap.custom import describe_layer
    from tfcompress.wrap.samples import forget_samples
    from tfcompress.wrap.strip import strip
    from tfcompress.wrap.summary import summary
    from tfcompress.wrap.wrapper import CompressionWrapper

__version__ = "0.1.0"

_HOMES = {
    "AssignedScheme": "tune.precision",
    "AttentionMaps": "distill.losses.feature",
    "AttentionTransfer": "distill.losses.feature",
    "CachedTeacher": "distill.cached",
    "BackupAndRestore": "backup",
    "CompressionSummaries": "callbacks",
    "CompressionWarning": "errors",
    "CompressionWrapper": "wrap.wrapper",
    "ConstantSparsity": "transforms.schedules",
    "DecoupledTargets": "distill.losses.response",
    "DelegateReport": "tflite.delegates",
    "DistillationLoss": "distill.losses.base",
    "Distiller": "distill.distiller",
    "ExportError": "errors",
    "ExportResult": "export",
    "FSP": "distill.losses.feature",
    "FeatureMatching": "distill.losses.feature",
    "FreezeQuantization": "callbacks",
    "GroupLasso": "rewrite.channels.regularize",
    "HardTargets": "distill.losses.response",
    "Histograms": "distributions",
    "LayerErrors": "tflite.layer_errors",
    "PolynomialDecay": "transforms.schedules",
    "QuantizationScheme": "scheme",
    "RKDAngle": "distill.losses.relation",
    "RKDDistance": "distill.losses.relation",
    "Sensitivity": "tune.sensitivity",
    "SimilarityPreserving": "distill.losses.relation",
    "SoftTargets": "distill.losses.response",
    "TFLiteModel": "tflite.run",
    "TeacherAgreement": "callbacks",
    "WeightTransform": "transforms.base",
    "assign_precision": "tune.precision",
    "cache_teacher": "distill.cache",
    "compare": "comparison",
    "delegate_report": "tflite.delegates",
    "describe_layer": "wrap.custom",
    "drop_layers": "rewrite.depth",
    "ensemble": "distill.teachers",
    "export_tflite": "export",
    "factorize": "rewrite.low_rank",
    "forget_samples": "wrap.samples",
    "from_tf_keras": "legacy",
    "histograms": "distributions",
    "inspect_tflite": "tflite.inspect",
    "layer_errors": "tflite.layer_errors",
    "prune": "wrap.apply",
    "prune_channels": "tune.channels",
    "quantize": "wrap.apply",
    "regularize_channels": "rewrite.channels.regularize",
    "sensitivity": "tune.sensitivity",
    "share_layers": "rewrite.depth",
    "split_preprocessing": "graph.preprocessing",
    "strip": "wrap.strip",
    "summary": "wrap.summary",
    "tinybert_losses": "distill.losses.feature",
}

__all__ = [
    "AssignedScheme",
    "AttentionMaps",
    "AttentionTransfer",
    "CachedTeacher",
    "BackupAndRestore",
    "CompressionSummaries",
    "CompressionWarning",
    "CompressionWrapper",
    "ConstantSparsity",
    "DecoupledTargets",
    "DelegateReport",
    "DistillationLoss",
    "Distiller",
    "ExportError",
    "ExportResult",
    "FSP",
    "FeatureMatching",
    "FreezeQuantization",
    "GroupLasso",
    "HardTargets",
    "Histograms",
    "LayerErrors",
    "PolynomialDecay",
    "QuantizationScheme",
    "RKDAngle",
    "RKDDistance",
    "Sensitivity",
    "SimilarityPreserving",
    "SoftTargets",
    "TFLiteModel",
    "TeacherAgreement",
    "WeightTransform",
    "assign_precision",
    "cache_teacher",
    "compare",
    "delegate_report",
    "describe_layer",
    "drop_layers",
    "ensemble",
    "export_tflite",
    "factorize",
    "forget_samples",
    "from_tf_keras",
    "histograms",
    "inspect_tflite",
    "layer_errors",
    "prune",
    "prune_channels",
    "quantize",
    "regularize_channels",
    "sensitivity",
    "share_layers",
    "split_preprocessing",
    "strip",
    "summary",
    "tinybert_losses",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        import difflib

        near = difflib.get_close_matches(name, _HOMES, n=1)
        hint = f". Did you mean {near[0]!r}?" if near else ""
        raise AttributeError(f"module 'tfcompress' has no attribute {name!r}{hint}")
    value = getattr(importlib.import_module(f"tfcompress.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _register_with_keras(_: Any) -> None:
    """Makes our classes known to Keras, so that saved models load after `import tfcompress`."""
    for module in (
        "transforms",
        "wrap.activations",
        "wrap.placement",
        "distill.distiller",
        "distill.losses.feature",
        "distill.losses.relation",
        "distill.teachers",
        "rewrite.channels.regularize",
    ):
        importlib.import_module(f"tfcompress.{module}")


try:
    import wrapt
except ImportError:  # a device: without wrapt there is no TensorFlow, and so no Keras model to load
    pass
else:
    # Keras is slow to import and may never be needed: register when it is.
    wrapt.register_post_import_hook(_register_with_keras, "keras")
