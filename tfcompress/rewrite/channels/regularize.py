"""Regularizers that drive whole channels to zero while a model trains."""

from __future__ import annotations

from typing import Any

import keras
from keras import layers, ops

from tfcompress.graph.clone import Rewriter
from tfcompress.graph.read import Call, Graph, walk_layers
from tfcompress.graph.sameness import check_kept
from tfcompress.graph.select import LayerSelection, select
from tfcompress.scheme import check_choice
from tfcompress.wrap.state import as_unwrapped

_TRANSPOSED = (layers.Conv1DTranspose, layers.Conv2DTranspose, layers.Conv3DTranspose)
_KERNELS = (layers.Dense, layers.Conv1D, layers.Conv2D, layers.Conv3D, *_TRANSPOSED)


@keras.saving.register_keras_serializable("tfcompress")
class GroupLasso(keras.regularizers.Regularizer):
    """Sum of the norms of a kernel's output channels, so that whole channels go to zero.

    Each norm is multiplied by the square root of the number of its weights, as in the paper.

    Args:
        strength: The factor of the sum.
        axis: The axis of the output channels.

    Example:
        >>> import keras
        >>> import tfcompress as tfc
        >>> layer = keras.layers.Conv2D(8, 3, kernel_regularizer=tfc.GroupLasso(1e-4))

    References:
        Wen et al. 2016, arXiv:1608.03665.
    """

    def __init__(self, strength: float = 1e-4, axis: int = -1) -> None:
        self.strength = float(strength)
        self.axis = axis

    def __call__(self, weight: Any) -> Any:
        """Returns the penalty of a kernel."""
        rank = len(weight.shape)
        others = [axis for axis in range(rank) if axis != self.axis % rank]
        count = 1
        for axis in others:
            count *= weight.shape[axis]
        # The square root has no finite derivative at zero.
        norms = ops.sqrt(ops.sum(ops.square(weight), others) + 1e-12)
        return self.strength * count**0.5 * ops.sum(norms)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments."""
        return {"strength": self.strength, "axis": self.axis}


def regularize_channels(
    model: keras.Model,
    strength: float = 1e-4,
    *,
    on: str = "kernels",
    layers: LayerSelection = None,
) -> keras.Model:
    """Returns a copy that drives channels to zero while it trains, for `prune_channels` to remove.

    It replaces the regularizers that the layers had; `strength=0` removes them.

    Args:
        model: A built model, not wrapped. It is not changed.
        strength: Weight of the penalty; 0 for none.
        on: "kernels" for a group lasso on the kernels of convolutions and dense layers, or "gammas"
            for the absolute values of the scales of BatchNormalization (network slimming).
        layers: Which layers: None, a glob or list of globs on layer paths, or a predicate.

    Returns:
        A new model of the same class with the same weights, not compiled.

    Raises:
        TypeError: If `model` is no Keras model.
        ValueError: If it is wrapped, `strength` is negative, or no such layer is there.

    Example:
        >>> import keras
        >>> import tfcompress as tfc
        >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4)])
        >>> len(tfc.regularize_channels(model, 1e-3).losses)
        1

    References:
        Wen et al. 2016, arXiv:1608.03665; Liu et al. 2017, arXiv:1708.06519 (scales).
    """
    check_choice(on, "on", ("kernels", "gammas"))
    if isinstance(strength, bool) or not isinstance(strength, (int, float)) or strength < 0:
        raise ValueError(f"strength must be a number >= 0. Received: {strength!r}")
    model = as_unwrapped(model, "regularize_channels")
    kinds = _KERNELS if on == "kernels" else (keras.layers.BatchNormalization,)
    candidates = [
        (path, layer)
        for path, layer in walk_layers(model)
        if isinstance(layer, kinds) and (on == "kernels" or layer.scale)
    ]
    if not candidates:
        raise ValueError(f"model {model.name!r} has no layer with {on} to regularize.")
    regularized = _Regularize(select(candidates, layers), float(strength), on).run(model)
    check_kept(model, regularized, "regularize_channels")
    return regularized


class _Regularize(Rewriter):
    def __init__(self, chosen: set[str], strength: float, on: str) -> None:
        super().__init__()
        self._chosen = chosen
        self._strength = strength
        self._on = on

    def visit(self, graph: Graph, call: Call, args: Any, kwargs: Any) -> Any:
        if call.path not in self._chosen:
            return super().visit(graph, call, args, kwargs)
        layer, penalty = call.operation, None
        if self._strength and self._on == "gammas":
            penalty = keras.regularizers.L1(self._strength)
        elif self._strength:
            penalty = GroupLasso(self._strength, -2 if isinstance(layer, _TRANSPOSED) else -1)
        name = "gamma_regularizer" if self._on == "gammas" else "kernel_regularizer"
        config = keras.regularizers.serialize(penalty) if penalty else None
        return self.clone(layer, **{name: config})(*args, **kwargs)
