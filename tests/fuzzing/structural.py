"""Structural kinds of damage: they edit the object tree, which is packed again, aligned."""

import flatbuffers
import numpy as np
from tensorflow.lite.python import schema_py_generated as fb

from tests.fuzzing.editing import (
    ALL,
    BIG,
    CODES,
    FLOATS,
    FLOW,
    FLOWS,
    OPTIONS_2,
    RECIPES,
    STRINGS,
    TOP,
    WILD,
    _Builder,
    become,
    ints,
    other,
    pack,
    scramble,
    some,
    store,
    tensor,
    used,
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
