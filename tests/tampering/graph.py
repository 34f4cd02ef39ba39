"""A `.tflite` file as an object whose constants are arrays, to be edited."""

import numpy as np

_DTYPES = {0: "f4", 1: "f2", 2: "i4", 4: "i8", 7: "i2", 9: "i1"}


class Graph:
    """The first graph of a file, with its constants as arrays."""

    def __init__(self, model):
        self.model, self.graph = model, model.subgraphs[0]
        self.tensors, self.operators = self.graph.tensors, self.graph.operators

    def code(self, operator):
        code = self.model.operatorCodes[operator.opcodeIndex]
        return max(code.builtinCode, code.deprecatedBuiltinCode)

    def array(self, index):
        """Returns a constant; None if it is none, or of an odd type."""
        tensor = self.tensors[index]
        data = self.model.buffers[tensor.buffer].data
        if data is None or not len(data) or tensor.type not in _DTYPES:
            return None
        flat = np.frombuffer(bytes(bytearray(data)), _DTYPES[tensor.type]).copy()
        shape = tuple(tensor.shape) if tensor.shape is not None else ()
        return flat.reshape(shape) if flat.size == np.prod(shape) else None

    def put(self, index, array):
        """Writes a constant, to a buffer of its own."""
        import copy

        tensor = self.tensors[index]
        limits = np.iinfo(array.dtype) if array.dtype.kind == "i" else None
        if limits and array.dtype.itemsize == 1:
            array = np.clip(array, -127, 127)
        buffer = copy.copy(self.model.buffers[tensor.buffer])
        buffer.data = np.frombuffer(array.astype(_DTYPES[tensor.type]).tobytes(), np.uint8)
        self.model.buffers.append(buffer)
        tensor.buffer = len(self.model.buffers) - 1

    def weighted(self, what=1):
        """Returns operators with weights, and the index of these (or of biases)."""
        found = []
        for operator in self.operators:
            if self.code(operator) in (3, 4, 9) and len(operator.inputs) > what:
                index = operator.inputs[what]
                if index >= 0 and self.array(index) is not None:
                    found.append((operator, index))
        return found

    def scaled(self):
        """Returns the tensors between operators that have a scale."""
        return [
            i
            for i, t in enumerate(self.tensors)
            if t.quantization is not None
            and t.quantization.scale is not None
            and len(t.quantization.scale) == 1
            and self.array(i) is None
        ]

    def of_bytes(self):
        """Returns those of them that are int8."""
        return [index for index in self.scaled() if self.tensors[index].type == 9]
