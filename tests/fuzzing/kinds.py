"""Damaged variants of a valid `.tflite` file, to see what a reader makes of them.

`mutants` is seeded and deterministic and never raises. Structural kinds edit the object tree of the
file and pack it again, aligned as TensorFlow's converter would; raw kinds edit bytes.
"""

import random
import struct
import zlib

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


def operator(m, r, how):
    """Inputs, outputs, cycles, order, codes and versions, other builtins, custom operators."""
    (g, o), c = some(m, r), m.operatorCodes
    v, z, n, all_ = ints(o.inputs), ints(o.outputs), len(g.tensors), list(g.operators)
    i, k, near = r.randrange(len(all_)), r.randrange(len(v) or 1), r.choice(all_)
    full = [j for j, t in enumerate(g.tensors) if len(ints(m.buffers[t.buffer].data))]
    if how == "swap":
        own = become(m, o, r.choice(sorted(CODES)), r)
        old = o.builtinOptionsType, o.builtinOptions
        o.builtinOptionsType, o.builtinOptions = r.choice([own, own, old])
    elif how == "custom":  # most come with the runtime
        become(
            m,
            o,
            "CUSTOM",
            r,
            0,
            r.choice(
                [
                    b"TFLite_Detection_PostProcess",
                    b"Mfcc",
                    None,
                    b"AudioSpectrogram",
                    b"NumericVerify",
                    b"FlexAdd",
                ]
            ),
        )
        o.customOptions = r.choice([None, [], [r.randrange(256)] * 40, [0, 0, 2, 36, 1]])
    else:
        return {
            "inputs": (
                o,
                "inputs",
                [
                    other(v, r, "", [-1, -1, -2, n, n - 1, 0, r.randrange(n)]),
                    r.sample(v, len(v)),
                    [-1] * len(v),
                    v[:1] * len(v),
                    v * 300,
                ],
            ),
            "outputs": (
                o,
                "outputs",
                [
                    other(z, r, "", [-1, n, 1 << 30, r.randrange(n)]),
                    z * 2,
                    [r.choice(full or [0])],
                    ints(g.inputs)[:1],
                ],
            ),
            "cycle": (o, "inputs", [[*v[:k], x, *v[k + 1 :]] for x in z + ints(near.outputs)]),
            "twice": (near, "outputs", [z]),
            "index": (o, "opcodeIndex", [*range(len(c) + 1), ALL]),
            "order": (
                g,
                "operators",
                [
                    all_[::-1],
                    all_[:i] + all_[i + 1 :],
                    [*all_, all_[i]],
                    [],
                    [all_[i]] * 40 + all_,
                    r.sample(all_, len(all_)),
                ],
            ),
            "code": (
                c[o.opcodeIndex],
                r.choice(["version", "deprecatedBuiltinCode", "builtinCode"]),
                [0, -1, 1, 2, 3, 5, 9, 40, 127, -128],
            ),
        }[how]


def option(m, r, how):
    """Fields of options; options that are missing or those of others; StableHLO operators."""
    o, near, name = some(m, r)[1], some(m, r)[1], r.choice(sorted(OPTIONS_2))
    if how == "value":
        k = r.choice(sorted(vars(o.builtinOptions)))
        return o.builtinOptions, k, [other(getattr(o.builtinOptions, k), r, k)]
    if how == "table":
        o.builtinOptionsType = r.choice([o.builtinOptionsType, near.builtinOptionsType, 0, 200])
        return o, "builtinOptions", [near.builtinOptions, o.builtinOptions, None]
    become(m, o, name, r)
    o.builtinOptions, o.builtinOptionsType, o.builtinOptions2Type = None, 0, OPTIONS_2[name][0]
    o.builtinOptions2 = scramble(getattr(fb, OPTIONS_2[name][1])(), r, 0.7)


def shape(m, r, how):
    """One size, the rank, the signature, another shape for as many bytes; one type, or many."""
    t = r.choice([t for t in used(m, full=how == "same_bytes") if len(ints(t.shape))])
    if how == "signature" and r.random() < 0.5:
        t = m.subgraphs[0].tensors[r.choice(ints(m.subgraphs[0].inputs))]
    v, i, n = ints(t.shape), r.randrange(len(ints(t.shape))), int(np.prod(ints(t.shape)))
    size = r.choice([0, 0, -1, v[i] + 1, v[i] - 1, v[i] * 2, *WILD])
    if how == "types":
        old, new, (g, o) = t.type, r.choice([0, 1, 2, 3, 4, 5, 6, 7, 9, 10, 17, 18]), some(m, r)
        near = [g.tensors[i] for i in ints(o.inputs) + ints(o.outputs) if i >= 0]
        for t in r.choice([used(m), near]):
            t.type = new if t.type == old else t.type
    return {
        "size": (t, "shape", [[*v[:i], size, *v[i + 1 :]]] * 5 + [[65536] * max(2, len(v))]),
        "rank": (
            t,
            "shape",
            [
                [1, *v],
                [*v, 1],
                v[1:],
                v[:-1],
                [],
                None,
                [1] * 9 + v,
                [1] * 300,
                [n],
                v + v,
                [0] * len(v),
            ],
        ),
        "signature": (t, "shapeSignature", [[-1] * len(v), [-1], [*v, -1], [], other(v, r)]),
        "same_bytes": (
            t,
            "shape",
            [
                v[::-1],
                [n],
                [1, n],
                [n, 1],
                r.sample(v, len(v)),
                [*v, 1],
                [n // 2, 2] if n % 2 == 0 else [1, 1, n],
            ],
        ),
        "type": (t, "type", [*range(21), 100]),
        "types": None,
    }[how]


def buffer(m, r, how):
    """Buffers too short, of others, unaligned, or behind the flatbuffer."""
    t, n = r.choice(used(m, full=True)), len(m.buffers)
    b = m.buffers[t.buffer]
    data, size = bytes(bytearray(b.data)), len(b.data)
    if how == "size":
        store(m, t, r.choice([data[: size // 2], data[:1], data[:-1], b"", data + b"\1" * 5]))
        return pack(m, r.choice([_Builder] * 4 + [flatbuffers.Builder]))
    if how == "offset":
        end = len(pack(m)) + 40
        b.offset = r.choice([1, 2, end, end - size, end + 64, BIG, 1 << 63, end - 40])
        b.size = r.choice([size, size, size + 1, 0, 1 << 40, BIG, BIG - b.offset + 1])
        b.data = r.choice([None, b.data])
        return pack(m) + (b"\0" * 128 + data * 3)[: r.choice([0, size // 2, size + 200])]
    return {
        "link": (t, "buffer", [r.randrange(n), r.randrange(n), 0, n, n + 1, ALL, 1 << 31]),
        "list": (m, "buffers", [m.buffers[: n // 2], None, [], m.buffers[::-1]]),
    }[how]


def stored(m, r, how):
    """Wild stored integers; targets, axes, paddings of another length; data that is gone."""
    t = r.choice(used(m, *(() if how == "gone" else (2, 4)), full=True))
    if how == "gone":
        t.buffer, t.isVariable, g = 0, r.random() < 0.25, m.subgraphs[0]
        g.inputs = ints(g.inputs) + [i for i, x in enumerate(g.tensors) if x is t][: r.randrange(2)]
        return t, "shapeSignature", [t.shapeSignature, [-1] * len(ints(t.shape))]
    v = np.frombuffer(bytes(bytearray(m.buffers[t.buffer].data)), f"<i{2 * t.type}"[:3]).tolist()
    if how == "ints":
        v = [r.choice([*WILD, *range(-9, 9)]) if r.random() < 0.4 else x for x in v]
    else:
        v = r.choice(
            [
                v + v,
                v[:-1],
                v[::-1],
                [x + 1 for x in v],
                [-x for x in v],
                [],
                v[:1] * len(v),
                [x - 9 for x in v],
                v * 5,
                [x * 1000 for x in v],
            ]
        )
        rows = ints(t.shape)[1:]
        t.shape = [len(v) // int(np.prod(rows or [1])), *rows] if len(v) != 1 else t.shape
    store(m, t, np.array(v, f"<i{2 * t.type}").tobytes())


def quant(m, r, how):
    """Scales of 0, NaN, infinity; zero points out of range; counts and axes."""
    fit = [t for t in used(m) if t.quantization is not None and t.quantization.scale is not None]
    t = r.choice(fit if fit and r.random() < 0.9 else used(m))
    q = t.quantization = t.quantization or fb.QuantizationParametersT()
    s, z = [0.5] if q.scale is None else [float(x) for x in q.scale], ints(q.zeroPoint) or [0]
    i, new, n = r.randrange(len(s)), r.choice(FLOATS), r.choice([*ints(t.shape), 2, len(s)])
    if how == "axis":
        q.quantizedDimension = r.choice([q.quantizedDimension, 0, 1, 3, 4, 99, -1, TOP])
    q.scale, q.zeroPoint = r.choice(
        {
            "scale": [([*s[:i], new, *s[i + 1 :]], z), ([new] * len(s), z)],
            "zero": [
                (s, [*z[:i], x, *z[i + 1 :]]) for x in (*WILD, BIG >> 1, -(BIG >> 1), 1 << 32)
            ],
            "counts": [
                (s[:1], z),
                (s, z[:-1]),
                (s + s, z + z),
                ([], []),
                (None, z),
                (None, None),
                (s, None),
                (s[:-1], z[:-1]),
                (s * 999, z),
            ],
            "axis": [(s, z), ([0.1] * n, [0] * n)],
        }[how]
    )


def sparsity(m, r, how):
    """Tables of sparse matrices, wrong in a number of ways."""
    t = r.choice([t for t in used(m) if t.sparsity] or used(m, full=True))
    dims, n = ints(t.shape), r.randrange(1, 4)
    vec = [fb.Int32VectorT, fb.Uint16VectorT, fb.Uint8VectorT][n - 1]
    s = t.sparsity = t.sparsity or fb.SparsityParametersT(
        list(range(len(dims))),
        [],
        [
            fb.DimensionMetadataT(
                r.randrange(2),
                d,
                n,
                vec([0] + [r.choice([0, 1, 255])] * d),
                n,
                vec([r.choice([0, 1, 2, 255])] * d),
            )
            for d in dims
        ],
    )
    parts = [x for d in s.dimMetadata for x in (d.arraySegments, d.arrayIndices) if x]
    x, k = r.choice([(x, k) for x in [s, *s.dimMetadata, *parts * 2] for k in sorted(vars(x))])
    return x, k, [other(getattr(x, k), r, k, [0, 1, 2, 3, 200, 255])]


def added(m, r, how):
    """New operators that ask for what cannot be had; WHILE, IF ... of wild graphs or their own."""
    g, o = some(m, r, *FLOWS)
    x, n, found = o.builtinOptions, len(m.subgraphs), []
    if how == "flow" and o.builtinOptionsType in FLOWS and r.random() < 0.6:
        return x, r.choice(sorted(vars(x))), [-1, 0, n, 1, n - 1, TOP]
    if how == "flow":
        found = [r.choice([tensor(m, g, [1], 2), tensor(m, g, [], 6, b"\1")]), *ints(g.inputs)]
        name, out = r.choice(FLOW), found[: r.randrange(3)]
        m.subgraphs += r.choice([[], [fb.SubGraphT.InitFromPackedBuf(pack(g))]])
    else:
        g, (name, *parts) = m.subgraphs[0], r.choice(RECIPES.replace("\n", " ").split(";")).split()
        for part in parts:
            v = np.arange(6, dtype="<f4").reshape(2, 3)
            if part not in "xy":
                v = [r.choice([int(x)] * 4 + [r.choice(WILD)]) for x in part.split(",") if x]
                v = np.array(v, "<i4").reshape(r.choice([-1, -1, (-1, 2 - len(v) % 2)]))
                v = v if "," in part else v.reshape(())
            found.append(
                r.randrange(len(g.tensors))
                if part == "x"
                else tensor(m, g, v.shape, 0 if part == "y" else 2, v.tobytes())
            )
        first = g.tensors[found[0]].type if found else r.choice([0, 13])
        out = [
            tensor(m, g, r.choice([[2, 3], [1], []]), r.choice([first, 0, 2]))
            for _ in range(r.choice([1, 1, 1, 2]))
        ]
    op = fb.OperatorT(0, found, out)
    op.builtinOptionsType, op.builtinOptions = become(m, op, name, r, 0.3)
    for k in sorted(vars(op.builtinOptions)) if how == "flow" else ():
        setattr(op.builtinOptions, k, r.choice([0, 0, n, n - 1, -1, 1 << 20]))
    g.operators.insert(r.choice([0, len(g.operators)]), op)
    g.outputs = ints(g.outputs) + out


def graph(m, r, how):
    """Inputs and outputs, lists of graphs, signatures, metadata, and names."""
    v, n, s, x = list(m.subgraphs), len(m.subgraphs[0].tensors), m.signatureDefs, fb.MetadataT()
    g, k = r.choice(v), r.choice(["inputs", "outputs"])
    every = [*(s[0].inputs or []), *(s[0].outputs or [])]
    wild = other(getattr(g, k), r, "", [-1, n, r.randrange(n), r.randrange(n), 1 << 30])
    if how == "metadata":
        x.name = r.choice([b"TFLITE_METADATA", b"min_runtime_version", *STRINGS])
        store(m, x, [r.choice([0, 0, 1, 4, 8, 12, 255]) for _ in range(r.choice([0, 3, 16, 90]))])
        m.metadata = r.choice([[x], [*(m.metadata or []), x], [x, *(m.metadata or [])]])
    return {
        "ends": (g, k, [wild, wild, ints(g.inputs), ints(g.outputs) * 2, list(range(n))]),
        "parts": (g, r.choice(["tensors", "operators", k]), [None, []]),
        "list": (m, "subgraphs", [[], None, v[::-1], v[1:], [*v, fb.SubGraphT()], v * 100]),
        "metadata": (x, "buffer", [x.buffer, x.buffer, x.buffer + 1, 0, ALL]),
        "names": (r.choice([*v, *used(m)]), "name", STRINGS),
        "signature": r.choice(
            [
                (s[0], "subgraphIndex", [len(v), 1, ALL]),
                (s[0], "signatureKey", STRINGS),
                (s[0], k, [None, [], list(getattr(s[0], k)) * 2, every]),
                (r.choice(every), "tensorIndex", [n, r.randrange(n), ALL, 1 << 31]),
                (r.choice(every), "name", [*STRINGS, every[0].name]),
                (m, "signatureDefs", [s * 2, [], s * 200, [fb.SignatureDefT()]]),
            ]
        ),
    }[how]


def any_(m, r, how):
    """Any field of any table, one to four of them; or two structural kinds at once."""
    spots, queue = [], [m]
    for name in r.sample(sorted(KINDS), 2) if how == "two_kinds" else ():
        apply(m, r, name)
    for x in queue if how == "field" else ():
        spots += [(x, k) for k in sorted(vars(x))]
        queue += [
            y
            for v in vars(x).values()
            for y in (v if isinstance(v, list) else [v])
            if hasattr(y, "Pack")
        ]
    for x, k in r.sample(spots, min(len(spots), r.choice([1, 1, 4]))):
        setattr(x, k, r.choice([None, *[other(getattr(x, k), r, k)] * 3]))


def places(b):
    """The (table, vtable, entry of it, field) positions of what looks like a field of a table."""
    found = []
    for pos in range(8, len(b) - 3, 4):
        vt = pos - struct.unpack_from("<i", b, pos)[0]
        size, length = struct.unpack_from("<HH", b, vt) if 0 <= vt <= len(b) - 4 else (0, 0)
        if 4 < size <= 64 and size % 2 == 0 and 4 <= length <= 256 and pos + length <= len(b):
            offsets = struct.unpack_from(f"<{size // 2 - 2}H", b, vt + 4)
            found += [
                (pos, vt, vt + 4 + 2 * i, pos + x)
                for i, x in enumerate(offsets)
                if x and max(offsets) < length
            ]
    return found


def raw(b, r, how):
    """Bits, words, vtables, lengths of vectors, offsets, cuts, splices."""
    s, n, i, j = bytes(b), len(b), r.randrange(len(b)), r.randrange(len(b))
    k, times = r.choice([4, 16, 64, 500]), r.choice([1, 1, 2, 8, 64])
    if how in ("bits", "words"):
        for i in (r.randrange(n // 4) * 4 + r.randrange(4) * (how == "bits") for _ in range(times)):
            new = r.choice(WILD) & ALL if how == "words" else b[i] ^ 1 << r.randrange(8)
            struct.pack_into("<I" if how == "words" else "B", b, i, new)
    elif how == "splice":
        b[i : i + k] = r.choice([s[j : j + k], b"", b"\0" * len(s[i : i + k]), b"\xff" * k])
    elif how == "length":
        b[:] = r.choice([s[:i], s[:-1], s + b"\0" * r.choice([1, 1 << 20]), s + s, s[: i % 24]])
    else:
        found = places(b)
        pos, vt, entry, field = r.choice(found)
        word, near = struct.unpack_from("<I", b, field)[0], r.choice(found)
        form, to, values = {
            "vector": ("<I", field + word, [int(b[field + word]) + 1, 0, n, *WILD]),
            "alias": (
                "<I",
                r.choice([field] * 9 + [0]),
                [x - field for x in (near[0], near[3], pos, field, n, n - 2, field + word + 1)],
            ),
            "vtable": r.choice(
                [("<i", pos, [*WILD, pos - near[1], pos - n])]
                + 2
                * [("<H", r.choice([vt, vt + 2, entry, entry]), [*range(9), 12, 400, 32768, 65535])]
            ),
        }[how]
        struct.pack_into(form, b, to, r.choice([x & ALL if form == "<I" else x for x in values]))


KINDS = {
    f"{f.__name__}_{how}": (f, how)
    for f, hows in (
        (operator, "inputs outputs cycle twice order index code swap custom"),
        (option, "value table stablehlo"),
        (shape, "size rank signature same_bytes type types"),
        (added, "recipe flow"),
        (buffer, "size link list offset"),
        (stored, "ints arguments gone"),
        (sparsity, "table"),
        (quant, "scale zero counts axis"),
        (any_, "field two_kinds"),
        (graph, "ends parts list signature metadata names"),
        (raw, "bits words vtable vector alias length splice"),
    )
    for how in hows.split()
}


def apply(m, r, name):
    """Edits a model or bytes; bytes come back where the edit made some."""
    f, how = KINDS[name]
    made = f(m, r, how)
    if isinstance(made, tuple):
        setattr(made[0], made[1], r.choice(made[2]))
    return made if isinstance(made, bytes) else None


def _one(content, name, key):
    """One variant of a kind, or None where the kind does not apply."""
    for attempt in range(12):
        r, is_raw = random.Random(f"{key}/{name}/{attempt}"), KINDS[name][0] is raw
        try:
            m = bytearray(content) if is_raw else fb.ModelT.InitFromPackedBuf(content)
            made = apply(m, r, name) or (bytes(m) if is_raw else pack(m))
            if made not in (content, pack(fb.ModelT.InitFromPackedBuf(content))):
                return made
        except Exception:
            continue
    return None


def mutants(content: bytes, seed: int, count: int) -> list[tuple[str, bytes]]:
    """Returns `count` damaged variants of a file as (kind, bytes), kinds taking turns."""
    content, order, made, crc = bytes(content), sorted(KINDS), [], zlib.crc32(content)
    random.Random(f"order {seed} {crc}").shuffle(order)
    for i in range(count):
        turn, key = order[i % len(order) :] + order[: i % len(order)], f"{seed}/{i}/{crc}"
        tried = ((name, found) for name in turn if (found := _one(content, name, key)) is not None)
        made.append(next(tried, ("raw_cut", content[: i % (len(content) + 1)])))
    return made
