"""factorize: replaces layers by products of smaller ones."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Collection, Mapping
from typing import Any

import keras
import numpy as np
from keras import layers

from tfcompress.errors import CompressionWarning
from tfcompress.graph.clone import Rewriter
from tfcompress.graph.copies import clone_layer, free_of_sizes
from tfcompress.graph.cost import macs
from tfcompress.graph.kernel_axes import array
from tfcompress.graph.layers import einsum_letters
from tfcompress.graph.read import Call, Graph, is_graph, read_graph
from tfcompress.graph.sameness import check_kept
from tfcompress.graph.select import LayerSelection, select
from tfcompress.rewrite.rank import Rank, check_rank, chosen_rank
from tfcompress.scheme import check_choice
from tfcompress.wrap.state import as_unwrapped

_CONVOLUTIONS = (layers.Conv1D, layers.Conv2D, layers.Conv3D)
_KINDS = (layers.Dense, layers.EinsumDense, layers.Embedding, *_CONVOLUTIONS)
_METHODS = ("tucker2", "spatial")
_TRIES = 12


def factorize(
    model: keras.Model,
    rank: Rank | Mapping[str, Rank] = 0.9,
    *,
    target_macs: float | None = None,
    convolutions: str = "tucker2",
    layers: LayerSelection = None,
) -> keras.Model:
    """Returns the model with kernels replaced by products of smaller ones, where that is cheaper.

    A Dense layer becomes two, one after the other (SVD), and so do EinsumDense layers that are
    dense along the last axis, embeddings, and convolutions of size 1. Other convolutions become
    three (Tucker-2: in, core, out) or two (one along each axis of the image). The last of them
    keeps the name, bias and activation of the layer, and is called on `<name>_factor` (before it,
    `<name>_core`). A layer for which that takes no fewer weights and multiplications (of an
    embedding: no fewer weights) is left as it is. The result needs further training: the factors
    minimize the error of the weights, not the loss.

    Pays in: bytes and milliseconds, on every runtime.

    Args:
        model: A built model, not wrapped. It is not changed.
        rank: An integer; or the share in (0, 1) of the energy (the squared singular values) that is
            kept; or "vbmf", the number of singular values above the noise; or a dictionary
            of these by glob on layer paths: the first match applies, other layers stay as they are.
        target_macs: Instead of `rank`: the largest energy is chosen with which one sample takes at
            most this number of multiply-accumulates.
        convolutions: "tucker2" or "spatial" (2-D only), for kernels larger than 1.
        layers: Which layers: None, a glob or list of globs on layer paths, or a predicate.

    Returns:
        A new model of the same class, not compiled.

    Raises:
        TypeError: If `model` is no Keras model.
        ValueError: If it is wrapped, a rank is out of range or larger than a layer allows, or the
            budget cannot be met.

    Warns:
        CompressionWarning: If no layer gets cheaper.

    Example:
        >>> import keras
        >>> import tfcompress as tfc
        >>> model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(64, name="wide")])
        >>> [layer.name for layer in tfc.factorize(model, 8).layers]
        ['wide_factor', 'wide']

    References:
        Denton et al. 2014, arXiv:1404.0736. Spatial: Jaderberg et al. 2014, arXiv:1405.3866.
        Tucker-2: Kim et al. 2016, arXiv:1511.06530. VBMF: Nakajima et al. 2013, JMLR 14.
    """
    check_choice(convolutions, "convolutions", _METHODS)
    ranks = dict(rank) if isinstance(rank, Mapping) else {"*": rank}
    for glob, layer_rank in ranks.items():
        check_rank(layer_rank, f"rank[{glob!r}]" if isinstance(rank, Mapping) else "rank")
    model = as_unwrapped(model, "factorize")
    calls = {call.path: call for call in _calls(model)}
    if not calls:
        raise ValueError(f"model {model.name!r} has no layer that could be factorized.")
    selected = select([(path, call.operation) for path, call in calls.items()], layers)
    if target_macs is not None:
        result = _with_target_macs(model, target_macs, calls, selected, convolutions)
        check_kept(model, result, "factorize", selected)
        return result
    chosen: dict[str, Rank] = {}
    for glob, layer_rank in ranks.items():
        candidates = [(path, calls[path].operation) for path in calls]
        for path in select(candidates, glob, argument=f"rank[{glob!r}]") & selected:
            chosen.setdefault(path, layer_rank)
    rewriter = _Factorize(calls, chosen, convolutions)
    result = rewriter.run(model)
    check_kept(model, result, "factorize", chosen)
    if not rewriter.replaced:
        warnings.warn(
            "factorize() left every layer as it was: at these ranks none gets cheaper.",
            CompressionWarning,
            stacklevel=2,
        )
    return result


def _calls(model: keras.Model, path: str = "") -> list[Call]:
    calls: list[Call] = []
    for call in read_graph(model, path).calls:
        layer = call.operation
        if is_graph(layer):
            calls += _calls(layer, call.path + "/")
        elif type(layer) in _KINDS and _is_supported(layer):
            calls.append(call)
    return calls


def _is_supported(layer: Any) -> bool:
    if getattr(layer, "kernel_constraint", None) or getattr(layer, "embeddings_constraint", None):
        return False
    if isinstance(layer, layers.EinsumDense):
        first, second, result = einsum_letters(layer)
        dense = len(second) == 2 and first[-1] == second[0] and result == first[:-1] + second[1]
        return dense and (layer.bias is None or len(layer.bias.shape) == 1)
    return getattr(layer, "groups", 1) == 1


def _with_target_macs(
    model: keras.Model, target: float, calls: Any, selected: set[str], convolutions: str
) -> keras.Model:
    low, high, best = 0.0, 1.0, None
    for _ in range(_TRIES):
        energy = (low + high) / 2
        candidate = _Factorize(calls, dict.fromkeys(selected, energy), convolutions).run(model)
        if macs(candidate) <= target:
            best, low = candidate, energy
        else:
            high = energy
    if best is None:
        raise ValueError(
            f"target_macs={target:g} cannot be met by factorizing: what is left at rank 1 of the "
            f"{macs(model):g} that the model takes is more than that."
        )
    return best


class _Factorize(Rewriter):
    def __init__(self, calls: dict[str, Call], ranks: dict[str, Rank], convolutions: str) -> None:
        super().__init__()
        self._parts = {}
        used_names = {call.operation.name for call in calls.values()}
        for path, rank in ranks.items():
            parts = _factors(calls[path], rank, convolutions, used_names)
            if parts:
                self._parts[id(calls[path].operation)] = parts
        self.replaced = len(self._parts)

    def visit(self, graph: Graph, call: Call, args: Any, kwargs: Any) -> Any:
        parts = self._parts.get(id(call.operation))
        if parts is None:
            return super().visit(graph, call, args, kwargs)

        def create() -> list[Any]:
            factors = [layer for layer, _ in parts]
            self.carry(call.operation, factors)
            return factors

        first, *rest = self.once(call.operation, create)
        outputs = first(*args, **kwargs)
        for layer in rest:
            outputs = layer(outputs)
        return outputs

    def match(self, old: Any, new: Any) -> Any:
        if not isinstance(new, list):
            return super().match(old, new)
        pairs: list[tuple[Any, Any]] = []
        for layer, (_, values) in zip(new, self._parts[id(old)], strict=True):
            pairs += zip((v.astype(np.float32) for v in values), layer.weights, strict=True)
        return pairs


Parts = list[tuple[Any, list[np.ndarray]]]


def _factors(
    call: Call, rank: Rank, convolutions: str, used_names: Collection[str]
) -> Parts | None:
    """Returns the unbuilt layers that replace one, with their weights; None if not cheaper."""
    layer = call.operation
    bias = [array(layer.bias)] if getattr(layer, "bias", None) is not None else []
    if isinstance(layer, layers.Embedding):
        left, right = _svd(array(layer.embeddings), rank, call.path)
        name = _free_name(f"{layer.name}_factor", used_names)
        table = _resized(layer, name=name, output_dim=left.shape[1])
        dense = layers.Dense(
            layer.output_dim, use_bias=False, name=layer.name, dtype=layer.dtype_policy
        )
        cheaper = left.size + right.size < left.shape[0] * right.shape[1]
        return [(table, [left]), (dense, [right])] if cheaper else None
    kernel = array(layer.kernel)
    if kernel.ndim == 2:
        left, right = _svd(kernel, rank, call.path)
        count = left.shape[1]
        size = {"units": count}
        if isinstance(layer, layers.EinsumDense):
            size = {"output_shape": (*layer.partial_output_shape[:-1], count)}
        parts = [
            (_part(layer, "_factor", used_names, **size), [left]),
            (_resized(layer), [right, *bias]),
        ]
        return parts if left.size + right.size < kernel.size else None
    if math.prod(kernel.shape[:-2]) == 1:
        left, right = _svd(kernel.reshape(kernel.shape[-2:]), rank, call.path)
        ones = kernel.shape[:-2]
        parts = [
            (
                _part(layer, "_factor", used_names, filters=left.shape[1]),
                [left.reshape(*ones, *left.shape)],
            ),
            (
                _resized(layer, strides=1),
                [right.reshape(*ones, *right.shape), *bias],
            ),
        ]
        return parts if left.size + right.size < kernel.size else None
    if convolutions == "spatial":
        return _spatial(call, kernel, bias, rank, used_names) if kernel.ndim == 4 else None
    return _tucker(call, kernel, bias, rank, used_names)


def _part(layer: Any, suffix: str, used_names: Collection[str], **config: Any) -> Any:
    """Returns a copy without bias and activation, for all but the last factor."""
    without: dict[str, Any] = {
        "activation": "linear",
        "use_bias": False,
        "activity_regularizer": None,
    }
    if isinstance(layer, layers.EinsumDense):
        without = {"activation": "linear", "bias_axes": None, "activity_regularizer": None}
    return _resized(layer, name=_free_name(layer.name + suffix, used_names), **without, **config)


def _resized(layer: Any, **config: Any) -> Any:
    """Returns a copy whose weights may have other shapes."""
    return clone_layer(layer, **free_of_sizes(layer), **config)


def _free_name(name: str, used_names: Collection[str]) -> str:
    """Returns an unused name; a model may be factorized repeatedly."""
    numbered = (f"{name}_{number}" for number in itertools.count(2))
    return name if name not in used_names else next(n for n in numbered if n not in used_names)


def _svd(matrix: np.ndarray, rank: Rank, path: str) -> tuple[np.ndarray, np.ndarray]:
    left, values, right = np.linalg.svd(matrix, full_matrices=False)
    count = chosen_rank(rank, values, matrix.shape, path)
    root = np.sqrt(values[:count])  # half to each factor, so that neither is hard to quantize
    return left[:, :count] * root, root[:, None] * right[:count]


def _spatial(
    call: Call, kernel: np.ndarray, bias: list[np.ndarray], rank: Rank, used_names: Collection[str]
) -> Parts | None:
    layer = call.operation
    height, width, inputs, outputs = kernel.shape
    if min(height, width) == 1:
        return None
    matrix = kernel.transpose(0, 2, 1, 3).reshape(height * inputs, width * outputs)
    left, right = _svd(matrix, rank, call.path)
    count = left.shape[1]
    strides, dilation = layer.strides, layer.dilation_rate
    first = _part(
        layer,
        "_factor",
        used_names,
        filters=count,
        kernel_size=(height, 1),
        strides=(strides[0], 1),
        dilation_rate=(dilation[0], 1),
    )
    last = _resized(
        layer, kernel_size=(1, width), strides=(1, strides[1]), dilation_rate=(1, dilation[1])
    )
    # The output of the first factor is as high as the result and as wide as the input.
    downsampling = _downsampling(call, 2)
    if left.size * max(downsampling, 1) + right.size >= kernel.size:
        return None
    return [
        (first, [left.reshape(height, inputs, 1, count).transpose(0, 2, 1, 3)]),
        (last, [right.reshape(count, width, 1, outputs).transpose(2, 1, 0, 3), *bias]),
    ]


def _downsampling(call: Call, axis: int) -> float:
    """Returns the ratio of input size to output size of a convolution along an axis."""
    first = call.operation.data_format == "channels_first"
    position = axis + 1 if first else axis
    before, after = call.inputs[0].shape[position], call.outputs[0].shape[position]
    return before / after if before and after else call.operation.strides[axis - 1]


def _tucker(
    call: Call, kernel: np.ndarray, bias: list[np.ndarray], rank: Rank, used_names: Collection[str]
) -> Parts | None:
    from tensorly.decomposition import partial_tucker  # slow to import

    layer, size = call.operation, kernel.shape[:-2]
    modes = [kernel.ndim - 2, kernel.ndim - 1]
    counts = []
    for mode in modes:
        unfolded = np.moveaxis(kernel, mode, 0).reshape(kernel.shape[mode], -1)
        values = np.linalg.svd(unfolded, compute_uv=False)
        counts.append(chosen_rank(rank, values, unfolded.shape, call.path, kernel.shape[-2:]))
    (core, (into, out)), _ = partial_tucker(kernel, counts, modes)
    downsampling = math.prod(_downsampling(call, axis + 1) for axis in range(len(size)))
    # The first factor runs at the resolution of the input.
    if into.size * max(downsampling, 1) + core.size + out.size >= kernel.size:
        return None
    ones = {"kernel_size": 1, "strides": 1, "dilation_rate": 1}
    shape = (1,) * len(size)
    return [
        (
            _part(layer, "_factor", used_names, filters=counts[0], **ones),
            [into.reshape(*shape, *into.shape)],
        ),
        (_part(layer, "_core", used_names, filters=counts[1]), [core]),
        (
            _resized(layer, **ones),
            [out.T.reshape(*shape, *out.T.shape), *bias],
        ),
    ]
