"""What each stage of a recipe does to a model."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import keras

from tfcompress.distill.losses import relation, response
from tfcompress.lowering.strip import strip
from tfcompress.post_training.fold_batch_norm import fold_batch_norm
from tfcompress.qat import quantize
from tfcompress.recipes import stages
from tfcompress.rewrite.depth import drop_layers, share_layers
from tfcompress.rewrite.low_rank import factorize
from tfcompress.transforms.patterns import as_pattern
from tfcompress.transforms.schedules import PolynomialDecay
from tfcompress.tune.channels import prune_channels
from tfcompress.tune.student import student
from tfcompress.wrap.cluster import cluster
from tfcompress.wrap.prune import prune


@dataclasses.dataclass(frozen=True)
class Context:
    """What a stage knows besides the model.

    Attributes:
        data: Samples and labels of the training; None if there are none.
        steps: Training steps of the next `fit`; 0 if there is none.
    """

    data: tuple[Any, Any] | None
    steps: int = 0


def apply(stage: stages.Stage, model: keras.Model, context: Context) -> keras.Model:
    """Returns the model after a stage."""
    return _FUNCTIONS[type(stage)](stage, model, context)


def losses_of(distill: stages.Distill) -> Any:
    """Returns the distillation loss."""
    chosen = getattr(response, distill.loss, None) or getattr(relation, distill.loss)
    return chosen() if distill.temperature is None else chosen(temperature=distill.temperature)


def _prune_channels(
    stage: stages.PruneChannels, model: keras.Model, context: Context
) -> keras.Model:
    data = context.data if stage.criterion == "taylor" else None
    return prune_channels(model, **stage.model_dump(), data=data)


def _drop_layers(stage: stages.DropLayers, model: keras.Model, context: Context) -> keras.Model:
    return drop_layers(model, stage.blocks, data=context.data and context.data[0])


def _prune(stage: stages.Prune, model: keras.Model, context: Context) -> keras.Model:
    end = max(1, int(stage.until * context.steps))

    def scheduled(sparsity: Any) -> Any:
        if isinstance(sparsity, dict):
            return {glob: scheduled(value) for glob, value in sparsity.items()}
        if sparsity == "keep" or stage.until == 0:
            return sparsity
        return PolynomialDecay(0.0, sparsity, 0, end, frequency=max(1, end // 50))

    sparsity = stage.sparsity
    if sparsity is None:
        sparsity = as_pattern(stage.pattern).sparsity or 0.8
    return prune(
        model,
        scheduled(sparsity),
        pattern=stage.pattern,
        ranking=stage.ranking,
        layers=stage.layers,
    )


def _quantize(stage: stages.Quantize, model: keras.Model, context: Context) -> keras.Model:
    scheme = stages.scheme_of(stage.scheme)
    return quantize(model, scheme, layers=stage.layers, target=stage.target)


_FUNCTIONS: dict[type[stages.Stage], Callable[[Any, keras.Model, Context], keras.Model]] = {
    stages.PruneChannels: _prune_channels,
    stages.DropLayers: _drop_layers,
    stages.ShareLayers: lambda stage, model, context: share_layers(model, stage.groups),
    stages.Factorize: lambda stage, model, context: factorize(model, **stage.model_dump()),
    stages.Student: lambda stage, model, context: student(model, **stage.model_dump()),
    stages.FoldBatchNorm: lambda stage, model, context: fold_batch_norm(model),
    stages.Prune: _prune,
    stages.Cluster: lambda stage, model, context: cluster(model, **stage.model_dump()),
    stages.Quantize: _quantize,
    stages.Strip: lambda stage, model, context: strip(model),
}
