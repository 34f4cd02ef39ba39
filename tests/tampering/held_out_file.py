"""What the held-out kinds of tampering edit a `.tflite` file with."""

import copy

import numpy as np

TYPES = {0: np.float32, 2: np.int32, 4: np.int64, 7: np.int16, 9: np.int8}


AXES = {"CONV_2D": (0, 3), "DEPTHWISE_CONV_2D": (3, 3), "FULLY_CONNECTED": (0, 1)}


def one(x, rng):
    """Returns an array like another one with a 1 somewhere, and zeros."""
    return rng.permutation(np.arange(x.size) == 0).astype(np.float64).reshape(x.shape)


def choice(rng, found):
    """Returns one of a list. A ValueError, if it is empty, says that a kind has no place."""
    return found[rng.integers(len(found))]


def few(rng, low=0.03, high=0.15):
    """Returns a factor near 1."""
    return 1 + float(rng.uniform(low, high) * rng.choice([-1, 1]))


class File:
    """A file as objects, with what the kinds need to find their way in it."""

    def __init__(self, content):
        from tensorflow.lite.python import schema_py_generated as schema

        self.schema = schema
        root = schema.Model.GetRootAsModel(bytearray(content), 0)
        self.model = schema.ModelT.InitFromObj(root)
        self.ops = [(graph, op) for graph in self.model.subgraphs for op in graph.operators]
        codes = [max(c.builtinCode, c.deprecatedBuiltinCode) for c in self.model.operatorCodes]
        names = {v: k for k, v in vars(schema.BuiltinOperator).items() if isinstance(v, int)}
        for graph in self.model.subgraphs:
            for owner in (*graph.operators, graph):
                owner.inputs = [] if owner.inputs is None else [int(t) for t in owner.inputs]
                owner.outputs = [] if owner.outputs is None else [int(t) for t in owner.outputs]
            for op in graph.operators:
                op.kind = names[codes[op.opcodeIndex]]
            for tensor in graph.tensors:
                tensor.shape = [] if tensor.shape is None else [int(n) for n in tensor.shape]

    def rename(self, op, name):
        """Makes an operation one of another kind, with its options where they are alike."""
        code, number = self.schema.OperatorCodeT(), getattr(self.schema.BuiltinOperator, name)
        code.builtinCode, code.deprecatedBuiltinCode, code.version = number, min(number, 127), 1
        self.model.operatorCodes.append(code)
        op.opcodeIndex, op.kind = len(self.model.operatorCodes) - 1, name
        kind = f"{name.title().replace('_', '')}Options"
        if hasattr(self.schema, f"{kind}T"):
            old, op.builtinOptions = op.builtinOptions, getattr(self.schema, f"{kind}T")()
            new = vars(op.builtinOptions)
            new.update({k: v for k, v in (vars(old) if old else {}).items() if k in new})
            op.builtinOptionsType = getattr(self.schema.BuiltinOptions, kind)

    def values(self, tensor):
        """Returns a constant as its numbers are stored, or None."""
        data = self.model.buffers[tensor.buffer].data
        if data is None or not len(data) or tensor.type not in TYPES or tensor.sparsity:
            return None
        array = np.frombuffer(bytes(data), TYPES[tensor.type])
        return array.astype(np.float64).reshape(tensor.shape)

    def store(self, tensor, array):
        """Gives a tensor constant numbers, in a buffer of its own."""
        kind, buffer = TYPES[tensor.type], self.schema.BufferT()
        if kind != np.float32:
            array = np.clip(np.round(array), -np.iinfo(kind).max, np.iinfo(kind).max)
        buffer.data = np.frombuffer(np.asarray(array).astype(kind).tobytes(), np.uint8)
        self.model.buffers.append(buffer)
        tensor.buffer = len(self.model.buffers) - 1

    def constant(self, graph, like, array, number=None):
        """Adds a constant with the type and grid of a tensor (or a type), returns its index."""
        tensor = copy.deepcopy(like)
        grid = tensor.quantization
        tensor.type, tensor.quantization = (like.type, grid) if number is None else (number, None)
        tensor.shape, tensor.shapeSignature = list(np.shape(array)), None
        self.store(tensor, array)
        graph.tensors.append(tensor)
        return len(graph.tensors) - 1

    def pick(self, rng, names):
        """Returns an operation of some kinds, with its graph."""
        return choice(rng, [(graph, op) for graph, op in self.ops if op.kind in names])

    def layers(self, names=tuple(AXES), last=False, bias=False, taps=1):
        """Returns layers: their graph, operation, weight, bias, and axes out and in."""
        found = []
        for graph, op in [(graph, op) for graph, op in self.ops if op.kind in names]:
            weight, third = graph.tensors[op.inputs[1]], [*op.inputs, -1][2]
            added = graph.tensors[third] if third >= 0 else None
            if self.values(weight) is not None and min(weight.shape[1:3]) >= taps:
                found += [] if bias and third < 0 else [(graph, op, weight, added, *AXES[op.kind])]
        return found[-len(self.model.subgraphs[0].outputs) :] if last else found

    def between(self, rng, rank=2):
        """Returns a graph and the index of a tensor in it that is computed, and read again."""
        found = [(g, t) for g, op in self.ops for t in op.inputs if t >= 0 and op.kind != "WHILE"]
        found = [(g, t) for g, t in found if g.tensors[t].type in (0, 7, 9)]
        found = [(g, t) for g, t in found if self.values(g.tensors[t]) is None]
        return choice(rng, [(g, t) for g, t in found if len(g.tensors[t].shape) >= rank])

    def insert(self, graph, index, name, extra=(), shape=None, to=None):
        """Puts an operation behind a tensor, for all readers or for one; returns its output."""
        tensor, new = copy.deepcopy(graph.tensors[index]), self.schema.OperatorT()
        tensor.shape, tensor.shapeSignature = shape or tensor.shape, None
        graph.tensors.append(tensor)
        for op in graph.operators if to is None else [to]:
            op.inputs = [len(graph.tensors) - 1 if t == index else t for t in op.inputs]
        new.inputs, new.outputs = [index, *extra], [len(graph.tensors) - 1]
        self.rename(new, name)
        makers = [i for i, op in enumerate(graph.operators) if index in op.outputs]
        graph.operators.insert(makers[0] + 1 if makers else 0, new)
        return tensor
