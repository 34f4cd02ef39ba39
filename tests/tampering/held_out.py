"""Tampered copies of valid `.tflite` files, to try out a checker of files that never saw them.

Every copy runs in ai_edge_litert, and computes something somewhat different. All follows from the
seed. Run as a script, the file is the child process that tries copies out.
"""

import contextlib
import copy
import pickle
import signal
import subprocess
import sys
import zlib

import numpy as np

from tests.tampering.held_out_file import AXES, TYPES, File, choice, few, one

FLOOR = 0.01  # the least effect that counts, of the range of an output


_PROBES, _CANDIDATES, _ROUNDS, _SECONDS = 24, 3, 5, 15


_SPATIAL, _POOLS = ("CONV_2D", "DEPTHWISE_CONV_2D"), ("MAX_POOL_2D", "AVERAGE_POOL_2D")


_PAIRED = ("ADD", "SUB", "MUL", "DIV", "MAXIMUM", "MINIMUM", "PRELU")


_ROWS = """ADD SUB MUL MAXIMUM;SUB ADD;MUL ADD MINIMUM;MAXIMUM MINIMUM ADD;MINIMUM MAXIMUM;
MAX_POOL_2D AVERAGE_POOL_2D;AVERAGE_POOL_2D MAX_POOL_2D;HARD_SWISH GELU RELU;GELU HARD_SWISH;
TANH RELU_N1_TO_1 LOGISTIC;LOGISTIC TANH;SOFTMAX LOGISTIC;ELU RELU;RELU RELU6 GELU ABS;DIV MUL;
RELU6 RELU HARD_SWISH;LEAKY_RELU ELU RELU;MEAN REDUCE_MAX SUM;REDUCE_MAX MEAN;LESS LESS_EQUAL;
RESIZE_BILINEAR RESIZE_NEAREST_NEIGHBOR;SUM MEAN;SQUARED_DIFFERENCE SUB"""


_INSTEAD = {row.split()[0]: row.split()[1:] for row in _ROWS.split(";")}


_EDITS = {  # of one filter x, whose largest weight is t
    "gain": lambda x, t, rng: x * few(rng), "classgain": lambda x, t, rng: x * few(rng),
    "quiet": lambda x, t, rng: 0 * x, "mirrored": lambda x, t, rng: x[:, ::-1],
    "opposed": lambda x, t, rng: x + t * rng.uniform(0.1, 0.5) * (one(x, rng) - one(x, rng)),
    "negated": lambda x, t, rng: x * (1 - 2 * one(x, rng)),
    "corner": lambda x, t, rng: x * (1 + 0.5 * (np.indices(x.shape)[:2].sum(0) == 0)),
    "clipped": lambda x, t, rng: np.clip(x, -0.8 * t, rng.uniform(0.5, 1) * t),
    "flipped": lambda x, t, rng: x[::-1], "coarse": lambda x, t, rng: np.round(x / t * 4) * t / 4,
    "sparse": lambda x, t, rng: x * (np.abs(x) > t * rng.uniform(0.05, 0.3)),
    "noise": lambda x, t, rng: x + t * rng.uniform(-0.06, 0.06, x.shape),
}  # fmt: skip


_METHODS = f"""filter {" ".join(_EDITS)};scale;undone;alike out into class;fused;relabelled;
bias one opposed class;masked high low channel corner;regrid range zero;padded pad mirror_pad padv2;
geometry;op_code;order;outputs all signature;alpha_beta;rewired;moved;transposed"""


KINDS = [(m, how) for m, *hows in map(str.split, _METHODS.split(";")) for how in hows or [""]]


class Tamper(File):
    """The kinds: methods that change the file. Some return a name of their own."""

    def filter(self, rng, how):
        """Changes one filter in one of the ways above."""
        wide = how in ("corner", "mirrored", "flipped")
        found = self.layers(_SPATIAL, taps=2) if wide else self.layers(last=how == "classgain")
        *_, weight, _, out, _ = choice(rng, found)
        values = self.values(weight)
        filters = np.moveaxis(values, out, 0)
        tops = np.abs(filters).reshape(len(filters), -1).max(1)
        steps = np.asarray(weight.quantization.scale) if weight.type != 0 else 1
        index = int(np.argmin(tops * steps) if how == "quiet" else rng.integers(len(filters)))
        filters[index] = _EDITS[how](filters[index].copy(), tops[index] or 1, rng)
        self.store(weight, values)

    def scale(self, rng, how):
        """One channel of integers has another scale."""
        grid = choice(rng, [x for x in self.layers() if x[2].type != 0])[2].quantization
        gains = 1 + (few(rng) - 1) * one(grid.scale, rng)
        grid.scale = (np.asarray(grid.scale) * gains).astype(np.float32)

    def undone(self, rng, how):
        """A channel is larger, and what reads it multiplies by less, but not by enough less."""
        readers = self.layers(("CONV_2D", "FULLY_CONNECTED"))
        pairs = [(a, b) for a in self.layers() for b in readers if a[1].outputs == b[1].inputs[:1]]
        (*_, first, _, out, _), (*_, second, _, _, into) = choice(rng, pairs)
        gain = rng.uniform(0.15, 0.5) * one(np.empty(first.shape[out]), rng)
        grown = np.moveaxis(self.values(first), out, -1) * (1 + gain)
        undone = np.moveaxis(self.values(second), into, -1) / (1 + 0.65 * gain)
        self.store(first, np.moveaxis(grown, -1, out))
        self.store(second, np.moveaxis(undone, -1, into))

    def alike(self, rng, how):
        """Two channels change places: the most alike, or two classes with their biases."""
        names = ("CONV_2D", "FULLY_CONNECTED") if how == "into" else tuple(AXES)
        *_, weight, bias, out, into = choice(rng, self.layers(names, last=how == "class"))
        axis = into if how == "into" else out
        rows = np.moveaxis(self.values(weight), axis, 0)
        pair = rng.choice(len(rows), 2, replace=False)
        if how != "class":
            far = np.square(rows - rows[pair[0]]).reshape(len(rows), -1).sum(1)
            pair[1] = next(i for i in np.argsort(far) if i != pair[0])
        for tensor in (weight, bias) if how == "class" and bias is not None else (weight,):
            order = np.arange(len(rows))
            order[pair] = pair[::-1]
            self.store(tensor, np.take(self.values(tensor), order, axis))

    def bias(self, rng, how):
        """One bias is moved, or two in opposite directions."""
        graph, op, weight, bias, out, _ = choice(rng, self.layers(last=how == "class", bias=True))
        values, rows = self.values(bias), np.moveaxis(self.values(weight), out, 0)
        unit = {9: 40, 7: 8000}.get(graph.tensors[op.inputs[0]].type, 1) * rng.uniform(0.03, 0.25)
        pair = rng.choice(len(values), 2, replace=False)
        steps = np.sqrt(np.square(rows[pair].reshape(2, -1)).sum(1)) * unit
        values[pair] += steps * [1, -(how == "opposed")]
        self.store(bias, values)

    def masked(self, rng, how):
        """Puts a MINIMUM or MAXIMUM in: for all tails, one channel's, or a corner of an image."""
        graph, index = self.between(rng, 4 if how == "corner" else 2)
        kind, sign = ("MAXIMUM", -1) if how == "low" else ("MINIMUM", 1)
        tensor = graph.tensors[index]
        far, near = sign * 3e38, sign * rng.choice([4, 2, 1, 0.5])
        if tensor.type != 0:
            far, zero = sign * np.iinfo(TYPES[tensor.type]).max, tensor.quantization.zeroPoint[0]
            near = zero + (far - zero) * rng.uniform(0.1 if how == "corner" else 0.4, 0.9)
        mask = np.full([1, *tensor.shape[1:]] if how == "corner" else tensor.shape[-1:], float(far))
        place = {"corner": np.s_[:, :2, -2:], "channel": rng.integers(tensor.shape[-1])}
        mask[place.get(how, ...)] = near
        self.insert(graph, index, kind, [self.constant(graph, tensor, mask)])

    def relabelled(self, rng, how):
        """A tensor is read with another scale or zero point than it was written with."""
        graph, index = self.between(rng)
        tensor = graph.tensors[index]
        if tensor.type == 0:  # there is no grid: one channel is multiplied
            gains = 1 + (few(rng) - 1) * one(np.empty(tensor.shape[-1]), rng)
            self.insert(graph, index, "MUL", [self.constant(graph, tensor, gains)])
            return
        shape = self.constant(graph, tensor, np.array([-1, *tensor.shape[1:]]), 2)
        grid = self.insert(graph, index, "RESHAPE", [shape]).quantization
        grid.scale = np.asarray(grid.scale) * np.float32(few(rng, 0.02, 0.08))
        if tensor.type == 9:
            grid.zeroPoint = np.clip(np.asarray(grid.zeroPoint) + rng.integers(-3, 4), -128, 127)

    def regrid(self, rng, how):
        """All tensors of one grid get another range, for who writes and who reads them."""
        graph, index = self.between(rng)
        old = copy.deepcopy(graph.tensors[index].quantization)
        ratio, move = (rng.uniform(0.6, 0.9), 0) if how == "range" else (1, choice(rng, [-9, 9]))
        for grid in [t.quantization for t in graph.tensors if t.type in (7, 9)]:
            if [*grid.scale, *grid.zeroPoint] == [*old.scale, *old.zeroPoint]:
                grid.scale = np.asarray(grid.scale) * np.float32(ratio)
                grid.zeroPoint = np.clip(np.asarray(grid.zeroPoint) + move, -128, 127)

    def fused(self, rng, how):
        """The activation that is fused into an operation is another one."""
        names, key = ("none", "relu", "relu_n1_to_1", "relu6"), "fusedActivationFunction"
        options = vars(self.pick(rng, _POOLS + _PAIRED[:4] + tuple(AXES))[1].builtinOptions)
        old, options[key] = options[key], int((options[key] + rng.integers(1, 4)) % 4)
        return f"fused_{names[old]}_{names[options[key]]}"

    def padded(self, rng, how):
        """A layer's padding is an operation: shifted by one, mirrored, or not with zeros."""
        wide = [x for x in self.layers(_SPATIAL, taps=2) if x[1].builtinOptions.padding == 0]
        graph, op, kernel, *_ = choice(rng, wide)
        options, image = vars(op.builtinOptions), graph.tensors[op.inputs[0]]
        pads = np.zeros((4, 2))
        for axis, side in ((1, "H"), (2, "W")):
            reach = (kernel.shape[axis] - 1) * options[f"dilation{side}Factor"]
            reach -= (image.shape[axis] - 1) % options[f"stride{side}"]
            before = min(reach // 2 + (how == "pad"), reach)
            pads[axis] = before, reach - before
        options["padding"], extra = 1, [self.constant(graph, image, pads, 2)]
        if how == "padv2":
            zero = 0.5 if image.type == 0 else image.quantization.zeroPoint[0] + 20
            extra.append(self.constant(graph, image, np.array(zero)))
        shape = [int(n) for n in image.shape + pads.sum(1)]
        self.insert(graph, op.inputs[0], how.upper(), extra, shape, op)

    def geometry(self, rng, how):
        """A window is another, or a dilation, where the shapes allow it."""
        options = vars(self.pick(rng, _SPATIAL + _POOLS)[1].builtinOptions)
        keys = ("filterWidth", "filterHeight", "dilationWFactor", "dilationHFactor")
        options[choice(rng, [key for key in keys if key in options])] += 1

    def op_code(self, rng, how):
        """An operation is another one that takes and gives the same."""
        op = self.pick(rng, _INSTEAD)[1]
        old = op.kind
        self.rename(op, str(rng.choice(_INSTEAD[old])))
        return f"op_code_{old}_{op.kind}".lower()

    def order(self, rng, how):
        """Two operands of an operation, or two pieces that it makes, change places."""
        op = self.pick(rng, ("SUB", "DIV", "CONCATENATION", "PACK", "SPLIT", "UNPACK"))[1]
        ends = op.outputs if op.kind in ("SPLIT", "UNPACK") else op.inputs
        i, k = rng.choice(len(ends), 2, replace=False)
        ends[i], ends[k] = ends[k], ends[i]

    def outputs(self, rng, how):
        """Two outputs change places, for all or in the signature only."""
        graph = self.model.subgraphs[0]
        first, second = rng.choice(graph.outputs, 2, replace=False)
        other = {first: int(second), second: int(first)}
        graph.outputs = [other.get(t, t) if how == "all" else t for t in graph.outputs]
        for end in [end for entry in self.model.signatureDefs or [] for end in entry.outputs]:
            end.tensorIndex = other.get(end.tensorIndex, end.tensorIndex)

    def alpha_beta(self, rng, how):
        """The slope of a leaky ReLU or the sharpness of a softmax is another."""
        options = vars(self.pick(rng, ("LEAKY_RELU", "SOFTMAX"))[1].builtinOptions)
        options["beta" if "beta" in options else "alpha"] *= few(rng, 0.05, 0.25)

    def rewired(self, rng, how):
        """An operation reads another tensor of the same shape, computed before it."""
        graph, op = choice(rng, self.ops)
        before = [t for o in graph.operators[: graph.operators.index(op)] for t in o.outputs]
        looks = [(tensor.type, tensor.shape) for tensor in graph.tensors]
        found = [(i, t) for i, t in enumerate(op.inputs) if t in before]
        found = [(i, u) for i, t in found for u in before if u != t and looks[u] == looks[t]]
        place, op.inputs[place] = choice(rng, found)

    def moved(self, rng, how):
        """A number of an operand that is constant, a row of a table or a limit is another."""
        graph, op = self.pick(rng, (*_PAIRED, "GATHER", "EMBEDDING_LOOKUP", "LESS"))
        found = [graph.tensors[t] for t in op.inputs if self.values(graph.tensors[t]) is not None]
        tensor = choice(rng, found)
        values = np.atleast_1d(self.values(tensor))
        values[rng.integers(len(values))] *= few(rng, 0.1, 0.4)
        self.store(tensor, np.floor(values) if tensor.type in (2, 4) else values)

    def transposed(self, rng, how):
        """An image is turned over its diagonal."""
        graph, index = self.between(rng, 3)
        tensor, shape = graph.tensors[index], graph.tensors[index].shape
        a = choice(rng, [a for a in range(1, len(shape) - 1) if shape[a] == shape[a + 1] > 1])
        axes = np.array([*range(a), a + 1, a, *range(a + 2, len(shape))])
        self.insert(graph, index, "TRANSPOSE", [self.constant(graph, tensor, axes, 2)])


def probes(content, seed):
    """Returns made-up data for each input: of the range that the file's first grid tells."""
    graph, rng, made = File(content).model.subgraphs[0], np.random.default_rng(seed), []
    for t in graph.inputs:
        kind, shape = graph.tensors[t].type, graph.tensors[t].shape
        low, high = (-99, 99) if kind in (7, 9) else (-3, 3)
        for op in [op for op in graph.operators if t in op.inputs and op.kind == "QUANTIZE"]:
            grid = graph.tensors[op.outputs[0]].quantization
            end = 128 if graph.tensors[op.outputs[0]].type == 9 else 32768
            low, high = (np.array([-end, end - 1]) - grid.zeroPoint[0]) * float(grid.scale[0])
        data = rng.normal((low + high) / 2, (high - low) / 6, (_PROBES, *shape))
        data[::3] = rng.uniform(low, high, data.shape)[::3]
        made.append((np.abs(data) if kind in (2, 4) else data).astype(TYPES[kind]))
    return made


def effects(content, files, data):
    """Returns how far copies are off, less a grid's step, of an output's range; -1: not run."""
    done = []
    while len(done) < len(files):
        given = pickle.dumps((content, files[len(done) :], data))
        ran = subprocess.run(
            [sys.executable, "-m", __spec__.name], input=given, stdout=-1, stderr=-3
        )
        done += [float(size) for size in ran.stdout.split()]
        done += [-1.0] if len(done) < len(files) else []  # the child died of this one
    return done


def computed(content, data):
    """Returns what a file puts out, by its outputs' order and by its signature's names."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter, rows = Interpreter(model_content=content, num_threads=1), []
    interpreter.allocate_tensors()
    places = [detail["index"] for detail in interpreter.get_output_details()]
    for key in interpreter.get_signature_list():
        ends = interpreter.get_signature_runner(key).get_output_details()
        places += [ends[name]["index"] for name in sorted(ends)]
    for sample in zip(*data, strict=True):
        for detail, values in zip(interpreter.get_input_details(), sample, strict=True):
            interpreter.set_tensor(detail["index"], values)
        interpreter.invoke()
        rows.append([interpreter.get_tensor(place).astype(np.float64) for place in places])
    return [np.array(row) for row in zip(*rows, strict=True)]


def child():
    """Runs the files that are handed in, and prints the effect of each."""
    content, files, data = pickle.load(sys.stdin.buffer)
    right = computed(content, data)
    for file in files:
        effect = -1.0
        signal.alarm(_SECONDS)  # a loop without an end ends the child
        with contextlib.suppress(RuntimeError, ValueError):
            pairs = list(zip(computed(file, data), right, strict=True))
            if all(given.shape == r.shape and np.isfinite(given).all() for given, r in pairs):
                steps = [np.diff(np.unique(r)).min(initial=np.ptp(r)) for _, r in pairs]
                sizes = np.array([np.abs(g - r).max() for g, r in pairs]) - steps
                effect = max(0, *(sizes / [np.ptp(r) or 1 for r in right]))
        print(effect, flush=True)


def candidate(kind, content, key):
    """Returns the name and the bytes of one try at a kind, or None if the file has no place."""
    import flatbuffers

    file, builder = Tamper(content), flatbuffers.Builder(1024)
    try:
        name = getattr(file, kind[0])(np.random.default_rng(key), kind[1])
    except (ValueError, AttributeError, KeyError, TypeError):
        return None
    builder.Finish(file.model.Pack(builder), file_identifier=b"TFL3")
    return name or "_".join(kind).strip("_"), bytes(builder.Output())


def mutants(content: bytes, seed: int, count: int, data=None) -> list[tuple[str, bytes]]:
    """Returns tampered copies of a file, of as many kinds as it has room for: at most `count`.

    Of every second kind, those of a few candidates that show least come first. `data` holds
    samples for each input, with the batch that the file takes; they are made up if left out.
    """
    data = probes(content, seed) if data is None else data
    found, seen = {kind: [] for kind in KINDS}, {content}
    for turn in range(_ROUNDS):
        tried = []
        for kind, number in [(kind, n) for kind in KINDS for n in range(_CANDIDATES)]:
            made = candidate(kind, content, [seed, turn, number, zlib.crc32(repr(kind).encode())])
            if made is not None and made[1] not in seen:
                seen.add(made[1])
                tried.append((kind, *made))
        sizes = effects(content, [made for *_, made in tried], data)
        for (kind, name, made), size in zip(tried, sizes, strict=True):
            found[kind] += [(size, name, made)] if size >= FLOOR else []
        if sum(len(copies) for copies in found.values()) >= count:
            break
    kinds = [KINDS[i] for i in np.random.default_rng([seed, 1]).permutation(len(KINDS))]
    for kind in kinds[::2]:
        found[kind].sort()
    dealt = [found[kind][turn : turn + 1] for turn in range(count) for kind in kinds]
    return [(name, made) for copies in dealt for _, name, made in copies][:count]


if __name__ == "__main__":
    child()
