"""factorize: layers as products of smaller ones."""

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
    embedding: no fewer weights) is left as it is. Train the result on: what is cut off is least in
    the weights, not in the loss.

    Pays in: bytes and milliseconds, on every runtime.

    Args:
        model: A built model, not wrapped. It is not changed.
        rank: An integer; or the share in (0, 1) of the energy (the squared singular values) that is
            kept; or "vbmf", the number of singular values that stand out of noise; or a dictionary
            of these by glob on layer paths, the first that fits, other layers being left alone.
        target_macs: Instead of `rank`: the most energy that brings the multiply-accumulates of one
            sample to this number.
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
    for glob, one in ranks.items():
        check_rank(one, f"rank[{glob!r}]" if isinstance(rank, Mapping) else "rank")
    model = as_unwrapped(model, "factorize")
    calls = {call.path: call for call in _calls(model)}
    if not calls:
        raise ValueError(f"model {model.name!r} has no layer that could be factorized.")
    named = select([(path, call.operation) for path, call in calls.items()], layers)
    if target_macs is not None:
        made = _within(model, target_macs, calls, named, convolutions)
        check_kept(model, made, "factorize", named)
        return made
    chosen: dict[str, Rank] = {}
    for glob, one in ranks.items():
        every = [(path, calls[path].operation) for path in calls]
        for path in select(every, glob, argument=f"rank[{glob!r}]") & named:
            chosen.setdefault(path, one)
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
    found: list[Call] = []
    for call in read_graph(model, path).calls:
        layer = call.operation
        if is_graph(layer):
            found += _calls(layer, call.path + "/")
        elif type(layer) in _KINDS and _is_plain(layer):
            found.append(call)
    return found


def _is_plain(layer: Any) -> bool:
    if getattr(layer, "kernel_constraint", None) or getattr(layer, "embeddings_constraint", None):
        return False
    if isinstance(layer, layers.EinsumDense):
        first, second, result = einsum_letters(layer)
        dense = len(second) == 2 and first[-1] == second[0] and result == first[:-1] + second[1]
        return dense and (layer.bias is None or len(layer.bias.shape) == 1)
    return getattr(layer, "groups", 1) == 1


def _within(
    model: keras.Model, target: float, calls: Any, named: set[str], convolutions: str
) -> keras.Model:
    low, high, best = 0.0, 1.0, None
    for _ in range(_TRIES):
        energy = (low + high) / 2
        made = _Factorize(calls, dict.fromkeys(named, energy), convolutions).run(model)
        if macs(made) <= target:
            best, low = made, energy
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
        taken = {call.operation.name for call in calls.values()}
        for path, rank in ranks.items():
            parts = _factors(calls[path], rank, convolutions, taken)
            if parts:
                self._parts[id(calls[path].operation)] = parts
        self.replaced = len(self._parts)

    def visit(self, graph: Graph, call: Call, args: Any, kwargs: Any) -> Any:
        parts = self._parts.get(id(call.operation))
        if parts is None:
            return super().visit(graph, call, args, kwargs)

        def make() -> list[Any]:
            made = [layer for layer, _ in parts]
            self.carry(call.operation, made)
            return made

        first, *rest = self.once(call.operation, make)
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


def _factors(call: Call, rank: Rank, convolutions: str, taken: Collection[str]) -> Parts | None:
    """Returns the unbuilt layers that replace one, with their weights, if they are cheaper."""
    layer = call.operation
    bias = [array(layer.bias)] if getattr(layer, "bias", None) is not None else []
    if isinstance(layer, layers.Embedding):
        left, right = _svd(array(layer.embeddings), rank, call.path)
        name = _free_name(f"{layer.name}_factor", taken)
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
            (_part(layer, "_factor", taken, **size), [left]),
            (_resized(layer), [right, *bias]),
        ]
        return parts if left.size + right.size < kernel.size else None
    if math.prod(kernel.shape[:-2]) == 1:
        left, right = _svd(kernel.reshape(kernel.shape[-2:]), rank, call.path)
        ones = kernel.shape[:-2]
        parts = [
            (
                _part(layer, "_factor", taken, filters=left.shape[1]),
                [left.reshape(*ones, *left.shape)],
            ),
            (
                _resized(layer, strides=1),
                [right.reshape(*ones, *right.shape), *bias],
            ),
        ]
        return parts if left.size + right.size < kernel.size else None
    if convolutions == "spatial":
        return _spatial(call, kernel, bias, rank, taken) if kernel.ndim == 4 else None
    return _tucker(call, kernel, bias, rank, taken)


def _part(layer: Any, suffix: str, taken: Collection[str], **config: Any) -> Any:
    """Returns a copy that is followed by others: without bias and activation."""
    plain: dict[str, Any] = {
        "activation": "linear",
        "use_bias": False,
        "activity_regularizer": None,
    }
    if isinstance(layer, layers.EinsumDense):
        plain = {"activation": "linear", "bias_axes": None, "activity_regularizer": None}
    return _resized(layer, name=_free_name(layer.name + suffix, taken), **plain, **config)


def _resized(layer: Any, **config: Any) -> Any:
    """Returns a copy with weights of other shapes."""
    return clone_layer(layer, **free_of_sizes(layer), **config)


def _free_name(name: str, taken: Collection[str]) -> str:
    """Returns a name that no layer has: a model may be factorized again."""
    numbered = (f"{name}_{number}" for number in itertools.count(2))
    return name if name not in taken else next(n for n in numbered if n not in taken)


def _svd(matrix: np.ndarray, rank: Rank, path: str) -> tuple[np.ndarray, np.ndarray]:
    left, values, right = np.linalg.svd(matrix, full_matrices=False)
    count = chosen_rank(rank, values, matrix.shape, path)
    root = np.sqrt(values[:count])  # half to each, so that neither is hard to quantize
    return left[:, :count] * root, root[:, None] * right[:count]


def _spatial(
    call: Call, kernel: np.ndarray, bias: list[np.ndarray], rank: Rank, taken: Collection[str]
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
        taken,
        filters=count,
        kernel_size=(height, 1),
        strides=(strides[0], 1),
        dilation_rate=(dilation[0], 1),
    )
    last = _resized(
        layer, kernel_size=(1, width), strides=(1, strides[1]), dilation_rate=(1, dilation[1])
    )
    # After the first, the image is as high as the result and as wide as the input.
    share = _widened(call, 2)
    if left.size * max(share, 1) + right.size >= kernel.size:
        return None
    return [
        (first, [left.reshape(height, inputs, 1, count).transpose(0, 2, 1, 3)]),
        (last, [right.reshape(count, width, 1, outputs).transpose(2, 1, 0, 3), *bias]),
    ]


def _widened(call: Call, axis: int) -> float:
    """Returns how many times longer the input of a convolution is than its result, at an axis."""
    first = call.operation.data_format == "channels_first"
    place = axis + 1 if first else axis
    before, after = call.inputs[0].shape[place], call.outputs[0].shape[place]
    return before / after if before and after else call.operation.strides[axis - 1]


def _tucker(
    call: Call, kernel: np.ndarray, bias: list[np.ndarray], rank: Rank, taken: Collection[str]
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
    before = math.prod(_widened(call, axis + 1) for axis in range(len(size)))
    # The first runs on the larger image, where that is what the convolution is called on.
    if into.size * max(before, 1) + core.size + out.size >= kernel.size:
        return None
    ones = {"kernel_size": 1, "strides": 1, "dilation_rate": 1}
    shape = (1,) * len(size)
    return [
        (
            _part(layer, "_factor", taken, filters=counts[0], **ones),
            [into.reshape(*shape, *into.shape)],
        ),
        (_part(layer, "_core", taken, filters=counts[1]), [core]),
        (
            _resized(layer, **ones),
            [out.T.reshape(*shape, *out.T.shape), *bias],
        ),
    ]
