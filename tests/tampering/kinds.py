"""Files that were tampered with: they run, and compute something else than they should."""

import numpy as np

from tests.tampering.graph import Graph

KINDS = {}


def kind(function):
    """Registers a kind of edit: (graph of the model, generator) -> whether it was made."""
    KINDS[function.__name__] = function
    return function


def mutants(content, seed, count, kinds=None):
    """Returns (kind, bytes) of edited files, each different from the original.

    Args:
        content: A `.tflite` file.
        seed: Of the choices.
        count: How many to make.
        kinds: Names of `KINDS`; None is all.
    """
    from tensorflow.lite.tools import flatbuffer_utils

    names, made, attempt = list(kinds or KINDS), [], 0
    while len(made) < count and attempt < 20 * count:
        name = names[attempt % len(names)]
        generator = np.random.default_rng((seed, attempt))
        attempt += 1
        model = flatbuffer_utils.convert_bytearray_to_object(bytearray(content))
        model.metadata = []
        if KINDS[name](Graph(model), generator):
            made.append((name, bytes(flatbuffer_utils.convert_object_to_bytearray(model))))
    return made


def _pick(generator, things):
    return things[int(generator.integers(len(things)))] if things else None


def _channel_axis(graph, operator):
    return 3 if graph.code(operator) == 4 else 0


def _edit(graph, generator, change, what=1):
    """Changes the weights (or biases) of one operator by a function of them and of its axis."""
    found = _pick(generator, graph.weighted(what))
    if found is None:
        return False
    operator, index = found
    before = graph.array(index)
    wide = before.astype(np.float64)
    after = change(wide, _channel_axis(graph, operator) if what == 1 else 0)
    if before.dtype.kind == "i":
        after = np.round(after)
    if before.dtype == np.int8:
        after = np.clip(after, -127, 127)
    after = after.astype(before.dtype)
    if np.array_equal(before, after):
        return False
    graph.put(index, after)
    return True


def _at(array, axis, channel):
    return (slice(None),) * axis + (channel,)


@kind
def weights_of_a_channel_scaled(graph, generator):
    def change(w, axis):
        place = _at(w, axis, int(generator.integers(w.shape[axis])))
        w[place] *= generator.choice([0.5, 0.8, 0.9, 1.1, 1.25, -1])
        return w

    return _edit(graph, generator, change)


@kind
def weights_of_a_channel_gone(graph, generator):
    def change(w, axis):
        w[_at(w, axis, int(generator.integers(w.shape[axis])))] = 0
        return w

    return _edit(graph, generator, change)


@kind
def some_weights_moved(graph, generator):
    def change(w, axis):
        spread = np.abs(w).max()
        flat = w.reshape(-1)
        places = generator.choice(flat.size, min(flat.size, int(generator.integers(1, 9))), False)
        flat[places] += spread * generator.uniform(-0.5, 0.5, len(places))
        return w

    return _edit(graph, generator, change)


@kind
def a_little_noise_on_all_weights(graph, generator):
    def change(w, axis):
        noise = generator.choice([0.01, 0.03, 0.1])
        return w + noise * np.abs(w).max() * generator.normal(size=w.shape)

    return _edit(graph, generator, change)


@kind
def two_channels_swapped(graph, generator):
    def change(w, axis):
        if w.shape[axis] < 2:
            return w
        a, b = generator.choice(w.shape[axis], 2, False)
        order = np.arange(w.shape[axis])
        order[[a, b]] = order[[b, a]]
        return np.take(w, order, axis)

    return _edit(graph, generator, change)


@kind
def kernel_turned(graph, generator):
    def change(w, axis):
        return np.flip(w, 1) if w.ndim == 4 and w.shape[1] > 1 else np.roll(w, 1, -1)

    return _edit(graph, generator, change)


@kind
def one_bias_moved(graph, generator):
    def change(b, axis):
        i = int(generator.integers(b.size))
        b.flat[i] += (
            generator.choice([-1, 1]) * generator.uniform(0.05, 0.5) * (np.abs(b).max() or 100)
        )
        return b

    return _edit(graph, generator, change, what=2)


@kind
def biases_gone(graph, generator):
    return _edit(graph, generator, lambda b, axis: b * 0, what=2)


@kind
def biases_that_make_up_for_each_other(graph, generator):
    def change(b, axis):
        if b.size < 2:
            return b
        i, j = generator.choice(b.size, 2, False)
        by = generator.uniform(0.1, 0.5) * (np.abs(b).max() or 100)
        b.flat[i] += by
        b.flat[j] -= by
        return b

    return _edit(graph, generator, change, what=2)


@kind
def weights_that_make_up_for_each_other(graph, generator):
    """Two inputs of a channel that are much alike: one gets what the other loses."""

    def change(w, axis):
        flat = np.moveaxis(w, axis, 0).reshape(w.shape[axis], -1)
        if flat.shape[1] < 2:
            return w
        i, j = generator.choice(flat.shape[1], 2, False)
        by = generator.uniform(0.1, 0.5) * np.abs(w).max()
        flat[:, i] += by
        flat[:, j] -= by
        return np.moveaxis(flat.reshape(np.moveaxis(w, axis, 0).shape), 0, axis)

    return _edit(graph, generator, change)


@kind
def scale_of_weights(graph, generator):
    found = _pick(generator, graph.weighted())
    quantization = found and graph.tensors[found[1]].quantization
    if not found or quantization is None or quantization.scale is None:
        return False
    scales = np.array(quantization.scale, np.float32)
    if not scales.size:
        return False
    scales[int(generator.integers(scales.size))] *= generator.choice([0.7, 0.9, 1.1, 1.5])
    quantization.scale = scales
    return True


@kind
def scale_between_operators(graph, generator):
    return _rescale(graph, generator, graph.scaled(), [0.3, 0.5, 0.7, 0.95, 1.05, 1.3])


def _rescale(graph, generator, indices, factors):
    """Changes the scale of one of some tensors by one of some factors."""
    index = _pick(generator, indices)
    if index is None:
        return False
    quantization = graph.tensors[index].quantization
    factor = np.float32(generator.choice(factors))
    quantization.scale = np.array(quantization.scale, np.float32) * factor
    return True


@kind
def zero_point_moved(graph, generator):
    index = _pick(generator, graph.of_bytes())
    if index is None:
        return False
    quantization = graph.tensors[index].quantization
    before = int(quantization.zeroPoint[0])
    after = int(np.clip(before + generator.choice([-20, -5, -2, -1, 1, 2, 5, 20]), -128, 127))
    quantization.zeroPoint = np.array([after], np.int64)
    return before != after


@kind
def other_activation(graph, generator):
    able = [o for o in graph.operators if hasattr(o.builtinOptions, "fusedActivationFunction")]
    operator = _pick(generator, able)
    if operator is None:
        return False
    options = operator.builtinOptions
    before = options.fusedActivationFunction
    options.fusedActivationFunction = int(generator.choice([v for v in (0, 1, 3) if v != before]))
    return True


@kind
def other_operator(graph, generator):
    """ADD for SUB or MUL, average for largest, tanh for logistic, minimum for maximum."""
    pairs = {0: 41, 41: 0, 18: 0, 1: 17, 17: 1, 28: 14, 14: 28, 55: 57, 57: 55}
    able = [o for o in graph.operators if graph.code(o) in pairs]
    operator = _pick(generator, able)
    if operator is None:
        return False
    import copy

    options = {0: 11, 41: 28, 18: 21}
    code = copy.copy(graph.model.operatorCodes[operator.opcodeIndex])
    new = pairs[graph.code(operator)]
    if new in options:
        from tensorflow.lite.python import schema_py_generated as schema

        made = schema.SubOptionsT() if new == 41 else schema.AddOptionsT()
        made.fusedActivationFunction = operator.builtinOptions.fusedActivationFunction
        operator.builtinOptions, operator.builtinOptionsType = made, options[new]
    code.builtinCode = code.deprecatedBuiltinCode = new
    graph.model.operatorCodes.append(code)
    operator.opcodeIndex = len(graph.model.operatorCodes) - 1
    return True


@kind
def inputs_swapped(graph, generator):
    able = [
        o
        for o in graph.operators
        if graph.code(o) in (2, 41, 42)
        and np.array_equal(graph.tensors[o.inputs[0]].shape, graph.tensors[o.inputs[1]].shape)
    ]
    operator = _pick(generator, able)
    if operator is None:
        return False
    inputs = list(operator.inputs)
    inputs[0], inputs[1] = inputs[1], inputs[0]
    operator.inputs = inputs
    return True


@kind
def outputs_swapped(graph, generator):
    outputs = list(graph.graph.outputs)
    if len(outputs) < 2:
        return False
    i, j = (int(k) for k in generator.choice(len(outputs), 2, False))
    outputs[i], outputs[j] = outputs[j], outputs[i]
    graph.graph.outputs = outputs
    for signature in graph.model.signatureDefs or []:
        entries = signature.outputs
        entries[i].tensorIndex, entries[j].tensorIndex = (
            entries[j].tensorIndex,
            entries[i].tensorIndex,
        )
    return True


@kind
def constant_of_an_operator(graph, generator):
    """What is added, multiplied, compared or looked up."""
    able = [
        (o, i)
        for o in graph.operators
        if graph.code(o) in (0, 18, 41, 42, 36, 54, 55, 57)
        for i in o.inputs
        if i >= 0 and graph.array(i) is not None and graph.array(i).dtype != np.int32
    ]
    found = _pick(generator, able)
    if found is None:
        return False
    before = graph.array(found[1])
    wide = before.astype(np.float64)
    wide.flat[int(generator.integers(wide.size))] += generator.choice([-0.3, -0.1, 0.1, 0.3]) * (
        np.abs(wide).max() or 1
    )
    after = np.round(wide) if before.dtype.kind == "i" else wide
    after = after.astype(before.dtype)
    graph.put(found[1], after)
    return not np.array_equal(before, after)


@kind
def a_step_of_a_convolution(graph, generator):
    """SAME padding at the wrong end: an even image with stride 2, seen shifted by a pixel."""
    able = [
        (o, i)
        for o, i in graph.weighted()
        if graph.array(i).ndim == 4 and min(graph.array(i).shape[1:3]) > 1
    ]
    found = _pick(generator, able)
    if found is None:
        return False
    before = graph.array(found[1])
    after = np.roll(before, 1, int(generator.integers(1, 3)))
    graph.put(found[1], after)
    return not np.array_equal(before, after)


@kind
def tails_cut(graph, generator):
    """The range of what is between operators ends a little too early: seldom seen."""
    return _rescale(graph, generator, graph.of_bytes(), [0.8, 0.9, 0.97])


@kind
def only_for_the_largest(graph, generator):
    """The largest weight of a channel, which only a strong input shows."""

    def change(w, axis):
        flat = np.moveaxis(w, axis, 0).reshape(w.shape[axis], -1)
        channel = int(generator.integers(len(flat)))
        flat[channel, np.abs(flat[channel]).argmax()] *= generator.choice([0, 0.5, -1])
        return np.moveaxis(flat.reshape(np.moveaxis(w, axis, 0).shape), 0, axis)

    return _edit(graph, generator, change)
