"""drop_layers and share_layers: fewer layers, or one set of weights for several layers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np

from tfcompress.data import samples
from tfcompress.graph.clone import Rewriter
from tfcompress.graph.read import Call, Graph, input_specs, is_graph, read_graph, walk_layers
from tfcompress.graph.run import predict
from tfcompress.graph.sameness import check_kept
from tfcompress.graph.select import select
from tfcompress.wrap.state import as_unwrapped

_SAMPLES = 256


@dataclasses.dataclass(frozen=True, eq=False)
class Block:
    """A residual block: the branch that an addition adds to a tensor.

    Attributes:
        name: Path of the addition.
        skip: The tensor of the skip connection.
        output: The output of the addition.
        layers: Paths of the layers inside.
    """

    name: str
    skip: Any
    output: Any
    layers: tuple[str, ...]


def drop_layers(
    model: keras.Model,
    blocks: int | str | Sequence[str],
    *,
    score: str | Callable[[str], float] = "influence",
    data: Any = None,
) -> keras.Model:
    """Returns the model without some of its residual blocks.

    A block can be removed if its result is added to its input, and if it reads no other tensor: a
    residual block of a convolutional net, the attention or the feed-forward part of a Transformer.
    Blocks that change the size or the number of channels stay. The result needs further training.

    Pays in: bytes, milliseconds and RAM, on every runtime.

    Args:
        model: A built model, not wrapped. It is not changed.
        blocks: How many to remove, those of the lowest score; or a glob or list of globs on their
            names, which are the paths of their additions, or on the layers inside them.
        score: "influence": 1 - cosine of the input and the output of a block, on `data`; or a
            function of the block's name. Only for a number of blocks.
        data: Inputs like those of training, up to 256 samples, for "influence".

    Returns:
        A new model of the same class, not compiled.

    Raises:
        TypeError: If `model` is no Keras model.
        ValueError: If it is wrapped, has fewer blocks, no block matches a glob, or data is
            missing.

    Example:
        >>> import keras
        >>> import tfcompress as tfc
        >>> inputs = keras.Input((8,))
        >>> inner = keras.layers.Dense(8)(inputs)
        >>> x = keras.layers.Add(name="block")([inputs, inner])
        >>> model = keras.Model(inputs, keras.layers.Dense(2, name="head")(x))
        >>> [layer.name for layer in tfc.drop_layers(model, "block").layers[1:]]
        ['head']

    References:
        Men et al. 2024, arXiv:2403.03853 (influence); Sajjad et al. 2020, arXiv:2004.03844.
    """
    model = as_unwrapped(model, "drop_layers")
    candidates = residual_blocks(model)
    if isinstance(blocks, bool) or not isinstance(blocks, (int, str, Sequence)):
        raise ValueError(f"blocks must be a number, a glob or a list of them. Received: {blocks!r}")
    if isinstance(blocks, int):
        if not 1 <= blocks <= len(candidates):
            raise ValueError(
                f"blocks={blocks} cannot be removed: model {model.name!r} has {len(candidates)} "
                "residual blocks that can be removed: "
                f"{', '.join(block.name for block in candidates) or 'none'}"
            )
        scores = _scores(model, candidates, score, data)
        order = np.argsort([scores[block.name] for block in candidates], kind="stable")
        chosen = {candidates[index].name for index in order[:blocks]}
    else:
        # A layer inside several blocks belongs to the innermost.
        ordered = sorted(candidates, key=lambda block: -len(block.layers))
        block_of = {path: block.name for block in ordered for path in block.layers}
        block_of |= {block.name: block.name for block in candidates}
        chosen = {
            block_of[p] for p in select([(p, p) for p in block_of], blocks, argument="blocks")
        }
    reduced = _Drop([block for block in candidates if block.name in chosen]).run(model)
    check_kept(model, reduced, "drop_layers")
    return reduced


def residual_blocks(model: keras.Model, path: str = "") -> list[Block]:
    """Returns the residual blocks of a model and of its nested models that can be removed.

    Args:
        model: A Sequential or Functional model.
        path: Path of the model itself if it is nested, ending in "/".
    """
    graph = read_graph(model, path)
    producers = {id(output): call for call in graph.calls for output in call.outputs}
    blocks = []
    for call in graph.calls:
        if is_graph(call.operation):
            blocks += residual_blocks(call.operation, call.path + "/")
        if type(call.operation).__name__ != "Add" or len(call.inputs) != 2:
            continue
        first, second = call.inputs
        for skip, branch in ((first, second), (second, first)):
            if tuple(skip.shape) != tuple(call.outputs[0].shape) or skip is branch:
                continue
            calls = _between(producers, branch, skip)
            if calls:
                paths = tuple(sorted({c.path for c in calls}))
                earlier_calls = sum(block.name.split("#")[0] == call.path for block in blocks)
                # The number distinguishes the calls of an addition that is called twice.
                name = f"{call.path}#{earlier_calls + 1}" if earlier_calls else call.path
                blocks.append(Block(name, skip, call.outputs[0], paths))
                break
    return blocks


def _between(producers: dict[int, Call], end: Any, start: Any) -> list[Call]:
    """Returns the calls from `start` to `end`; none if `end` depends on any other tensor."""
    calls: dict[int, Call] = {}
    pending = [end]
    while pending:
        tensor = pending.pop()
        if tensor is start:
            continue
        call = producers.get(id(tensor))
        if call is None:
            return []
        if id(call) not in calls:
            calls[id(call)] = call
            pending += call.inputs
    return list(calls.values())


def _scores(model: keras.Model, blocks: list[Block], score: Any, data: Any) -> dict[str, float]:
    if callable(score):
        return {block.name: float(score(block.name)) for block in blocks}
    if score != "influence":
        raise ValueError(f"score must be 'influence' or a function. Received: {score!r}")
    if data is None:
        raise ValueError("score='influence' needs data=: inputs like those of training.")
    nested = [block.name for block in blocks if "/" in block.name]
    if nested:
        raise ValueError(
            f"The influence of blocks in nested models ({nested[0]!r}) cannot be measured: name "
            "the blocks, or pass a function as score."
        )
    features = samples(data, input_specs(model), limit=_SAMPLES, argument="data")
    probe = keras.Model(model.inputs, [t for block in blocks for t in (block.skip, block.output)])
    outputs = [np.reshape(a, (len(a), -1)) for a in predict(probe, features)]
    influences = {}
    for index, block in enumerate(blocks):
        a, b = outputs[2 * index], outputs[2 * index + 1]
        norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
        influences[block.name] = float(np.mean(1 - np.sum(a * b, 1) / np.maximum(norms, 1e-12)))
    return influences


class _Drop(Rewriter):
    def __init__(self, blocks: list[Block]) -> None:
        super().__init__()
        self._blocks = {id(block.output): block for block in blocks}

    def visit(self, graph: Graph, call: Call, args: Any, kwargs: Any) -> Any:
        block = self._blocks.get(id(call.outputs[0]))
        if block is None:
            return super().visit(graph, call, args, kwargs)
        tensors = [
            t for t in keras.tree.flatten((args, kwargs)) if isinstance(t, keras.KerasTensor)
        ]
        return tensors[0 if call.inputs[0] is block.skip else 1]


def share_layers(model: keras.Model, groups: Sequence[Sequence[str]]) -> keras.Model:
    """Returns the model with one set of weights for several layers, as in ALBERT.

    The first layer of each group replaces the others, with the mean of their weights. The result
    needs further training.

    Pays in: parameters, and bytes of the file: each set is stored once. Not in milliseconds.

    Args:
        model: A built model, not wrapped. It is not changed.
        groups: Paths of layers that are to share weights; those of a group must be of the same
            class, with equal settings and shapes of weights.

    Returns:
        A new model of the same class, not compiled.

    Raises:
        TypeError: If `model` is no Keras model.
        ValueError: If it is wrapped, a path is unknown or in two groups, or layers of a group
            differ.

    Example:
        >>> import keras
        >>> import tfcompress as tfc
        >>> stack = [keras.layers.Dense(8, name=name) for name in ("a", "b", "c")]
        >>> model = keras.Sequential([keras.Input((8,)), *stack])
        >>> tfc.share_layers(model, [["a", "b", "c"]]).count_params()
        72

    References:
        Lan et al. 2020, arXiv:1909.11942.
    """
    model = as_unwrapped(model, "share_layers")
    by_path = dict(walk_layers(model))
    firsts: dict[int, Any] = {}
    members: dict[int, list[Any]] = {}
    for group in groups:
        if isinstance(group, str) or len(group) < 2:
            raise ValueError(f"Each of groups must name at least two layers. Received: {group!r}")
        paths = list(group)
        for path in paths:
            if path not in by_path:
                select([(p, p) for p in by_path], path, argument="groups")
                raise ValueError(f"groups names whole paths, not globs. Received: {path!r}")
        layers = [by_path[path] for path in paths]
        for path, layer in zip(paths, layers, strict=True):
            if id(layer) in firsts:
                raise ValueError(f"layer {path!r} is in groups twice.")
            if _signature(layer) != _signature(layers[0]):
                raise ValueError(
                    f"layers {group[0]!r} and {path!r} cannot share weights: class, settings or "
                    "shapes differ."
                )
            firsts[id(layer)] = layers[0]
        members[id(layers[0])] = layers
    shared = _Share(firsts, members).run(model)
    check_kept(model, shared, "share_layers", {path for group in groups for path in group})
    return shared


def _signature(layer: Any) -> Any:
    config = {name: value for name, value in layer.get_config().items() if name != "name"}
    return type(layer), str(config), [tuple(w.shape) for w in layer.weights]


class _Share(Rewriter):
    # A Sequential model cannot contain a layer twice.
    sequential_class = keras.Model

    def __init__(self, firsts: dict[int, Any], members: dict[int, list[Any]]) -> None:
        super().__init__()
        self._firsts = firsts
        self._members = members

    def visit(self, graph: Graph, call: Call, args: Any, kwargs: Any) -> Any:
        first = self._firsts.get(id(call.operation), call.operation)
        return self.clone(first)(*args, **kwargs)

    def match(self, old: Any, new: Any) -> Any:
        layers = self._members.get(id(old))
        if layers is None:
            return super().match(old, new)
        stacks = zip(*(layer.weights for layer in layers), strict=True)
        means = [np.mean([np.array(weight) for weight in stack], 0) for stack in stacks]
        return zip(means, new.weights, strict=True)
