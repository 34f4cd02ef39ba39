"""Raw kinds of damage: they edit bytes."""

import struct

from tests.fuzzing.editing import ALL, WILD


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
