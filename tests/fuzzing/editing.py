"""What all kinds of damage are made with: odd values, and edits of the object tree of a file."""

import flatbuffers
import numpy as np
from tensorflow.lite.python import schema_py_generated as fb

TOP, LOW, ALL, BIG = (1 << 31) - 1, -(1 << 31), (1 << 32) - 1, (1 << 64) - 1


WILD = [
    0,
    -1,
    1,
    2,
    3,
    4,
    5,
    7,
    -2,
    -3,
    16,
    100,
    127,
    -128,
    255,
    65535,
    65536,
    1 << 20,
    1 << 24,
    1 << 28,
    1 << 30,
    TOP,
    LOW,
    LOW + 1,
]


FLOATS = [0.0, -0.0, -1.0, *map(float, ("nan", "inf", "-inf")), 1e-45, 1e-38, 1e-20, 3e38, 0.5, 1e9]


CODES = {k: v for k, v in vars(fb.BuiltinOperator).items() if isinstance(v, int)}


OPTIONS = {k[:-7].lower(): (v, k + "T") for k, v in vars(fb.BuiltinOptions).items() if "Opt" in k}


OPTIONS |= {k: OPTIONS["reducer"] for k in ("mean", "sum", "reducemax", "reduceprod", "reduceall")}


OPTIONS |= {k: OPTIONS["pool2d"] for k in ("maxpool2d", "averagepool2d", "l2pool2d")}


OPTIONS_2 = {
    c: (v, k + "T")
    for k, v in vars(fb.BuiltinOptions2).items()
    for c in CODES
    if k.lower() == c.replace("_", "").lower() + "options"
}


STRINGS = [b"", None, b"\xff\xfe\x80", b"a\0b", b"x" * 70000, b"%s%n", b"serving_default", b"../x"]


FLOW = ("WHILE", "IF", "CALL_ONCE", "CALL")


FLOWS = [OPTIONS[x.replace("_", "").lower()][0] for x in FLOW]


RECIPES = f"""FILL 65536,65536 1;RANGE 0 {TOP} 1;TILE y 30000,30000;BROADCAST_TO y 40000,2,3;ONE_HOT
9, 9999999 1 0;DIV 1,2 0,0;FLOOR_MOD {LOW},5 -1,0;FLOOR_DIV {LOW},5 -1,0;GATHER y 1,900000;
GATHER_ND y 70000,-5;SCATTER_ND 99999999, 7, 4,;SPARSE_TO_DENSE 9,-9 4, 1,2 0;REVERSE_SEQUENCE y
50,-50;SEGMENT_SUM y 0,90000000;VAR_HANDLE;UNSORTED_SEGMENT_SUM y 0,-7 2;EMBEDDING_LOOKUP 80000,-1 y
;DYNAMIC_UPDATE_SLICE y y 9,-9;SPACE_TO_BATCH_ND x 0,0 0,1,0,1;BATCH_TO_SPACE_ND x 0,3 0,1,0,1;RNN x
y y y y;DEPTH_TO_SPACE x;CUMSUM y 9;SPACE_TO_DEPTH x;RESIZE_BILINEAR x 0,50000;TRANSPOSE y 0,0;PACK
x y;TOPK_V2 y -1;PAD y -9,0,0,99999999;MIRROR_PAD y 9,9,9,9;SPLIT 5 y;SPLIT_V y -1,900 1;BITCAST y;
STRIDED_SLICE y 0,0 2,9 0,-1;RFFT2D y 0,3;REVERSE_V2 y 7,;ARG_MAX y -8;MEAN y 5,-5;SELECT x y x;SVDF
y y y y y;BATCH_MATMUL y y;SLICE y 1,9 5,-1;LSTM {"y " * 20};UNPACK y;LSH_PROJECTION y 1, y;UNIQUE y
;HASHTABLE_LOOKUP 1, 1,2 y;MATRIX_DIAG y;NON_MAX_SUPPRESSION_V4 y y 99999999 1 1;MULTINOMIAL y 99999
;CONV_3D x y;EXPAND_DIMS y 99;BUCKETIZE y;TRANSPOSE_CONV 1,9,9,1 y x;SKIP_GRAM x;READ_VARIABLE x;
EMBEDDING_LOOKUP_SPARSE 9, 9,9 9, y y;RANDOM_UNIFORM 30000,30000;ASSIGN_VARIABLE x y;HASHTABLE_FIND
x 1, 0;HASHTABLE_IMPORT x 1, 2,;UNIDIRECTIONAL_SEQUENCE_LSTM x {"y " * 23}"""


class _Builder(flatbuffers.Builder):
    """Aligns data at 16 bytes, as the runtime asks for."""

    def CreateNumpyVector(self, x):
        self.Prep(16 if x.dtype == np.uint8 else 4, x.nbytes)
        return super().CreateNumpyVector(x)


def pack(m, builder=_Builder):
    """The bytes of a model, or of a part of one."""
    builder = builder(1024)
    builder.Finish(m.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())


def ints(v):
    """A vector as a list."""
    return [] if v is None else [int(x) for x in v]


def some(m, r, *types):
    """A (graph, operator), one with options of some types where there is any."""
    every = [(g, o) for g in m.subgraphs for o in g.operators or []]
    return r.choice([x for x in every if x[1].builtinOptionsType in types] or every)


def used(m, *types, full=False):
    """The tensors that operators use; those of some types, or with data in the file."""
    found = {
        (n, i): g.tensors[i]
        for n, g in enumerate(m.subgraphs)
        for o in g.operators or []
        for i in ints(o.inputs) + ints(o.outputs)
        if 0 <= i < len(g.tensors)
    }
    return [
        t
        for t in found.values()
        if (not types or t.type in types) and (not full or len(ints(m.buffers[t.buffer].data)))
    ]


def store(m, t, data):
    """Gives a tensor its own buffer."""
    m.buffers = [*m.buffers, fb.BufferT(np.frombuffer(bytes(data), np.uint8))]
    t.buffer = len(m.buffers) - 1


def tensor(m, g, dims, type_=0, data=None):
    """Adds a tensor, and returns its number."""
    g.tensors.append(fb.TensorT(list(dims), type_, 0, b"new", fb.QuantizationParametersT()))
    if data is not None:
        store(m, g.tensors[-1], data)
    return len(g.tensors) - 1


def scramble(x, r, p):
    """Gives fields of a table other values, and returns it."""
    for k in sorted(vars(x)):
        if k.lower().startswith(("stride", "filter", "dilation")):
            setattr(x, k, 1)
        if r.random() < p:
            setattr(x, k, other(getattr(x, k), r, k))
    return x


def become(m, o, name, r, p=0.1, custom=None):
    """Makes an operator another, and returns the (type, table) of options that it should have."""
    version, n = r.choice([1, 1, 1, 2, 3, 4]), CODES[name]
    m.operatorCodes.append(fb.OperatorCodeT(min(n, 127), custom, version, n))
    o.opcodeIndex = len(m.operatorCodes) - 1
    type_, table = OPTIONS.get(name.replace("_", "").lower(), (0, ""))
    return type_, scramble(getattr(fb, table)(), r, p) if table else None


def other(v, r, name="", pool=WILD):
    """Another value of a field, or another vector, of integers or of tables."""
    small = any(s in name.lower() for s in ("padding", "activation", "type", "format", "mode"))
    plain = {
        bool: [not v],
        float: FLOATS,
        bytes: STRINGS,
        int: [0, 1, 2, 3, 4, 5, 9, 17, 127] if small else WILD,
    }
    if type(v) in plain or hasattr(v, "Pack"):
        return r.choice(plain.get(type(v), [None]))
    objects = v is not None and len(v) and hasattr(v[0], "Pack")
    v = list(v) if objects else ints(v)
    i, new = r.randrange(max(1, len(v))), r.choice(v if objects else pool)
    return r.choice(
        [
            None,
            [],
            [new] * r.choice([1, 2, 4, 9]),
            [*v[:i], new, *v[i:]],
            v[:i] + v[i + 1 :],
            [*v[:i], new, *v[i + 1 :]],
            [*v[:i], new, *v[i + 1 :]],
        ]
    )
