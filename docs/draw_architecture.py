"""Draws docs/architecture.svg from the imports: `python -m docs.draw_architecture`.

A dependency matrix: a dot says that the floor of the row imports from the floor of the column. All
dots lie left of the diagonal, for imports flow down. A test compares the picture with the code.
"""

import pathlib

from tests.test_architecture import FLOORS, MODULES, NAMES, floor, imported

PICTURE = pathlib.Path(__file__).parent / "architecture.svg"
CELL, LEFT, TOP = 18, 150, 130
GROUND = FLOORS.index("transforms")


def imports():
    """Returns the pairs of floors of which the first imports from the second."""
    return sorted(
        {
            (floor(path), floor(NAMES[name]))
            for path in MODULES
            if path.parent.name != "tfcompress" or path.stem != "__init__"
            for _, name in imported(path)
            if name in NAMES and name != "tfcompress" and floor(NAMES[name]) != floor(path)
        }
    )


def picture():
    """Returns the drawing as SVG."""
    count = len(FLOORS)
    width, height = LEFT + count * CELL + 60, TOP + count * CELL + 20
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
    ]
    for index, name in enumerate(FLOORS):
        at = index * CELL
        shade = "#eef3f8" if index % 2 else "#ffffff"
        weight = "normal" if index < GROUND else "bold"
        parts += [
            f'<rect x="{LEFT}" y="{TOP + at}" width="{count * CELL}" height="{CELL}" '
            f'fill="{shade}"/>',
            f'<rect x="{LEFT + at}" y="{TOP + at}" width="{CELL}" height="{CELL}" fill="#b8c4d0"/>',
            f'<text x="{LEFT - 8}" y="{TOP + at + 13}" text-anchor="end" font-weight="{weight}">'
            f"{name}</text>",
            f'<text transform="translate({LEFT + at + 13},{TOP - 8}) rotate(-60)" '
            f'font-weight="{weight}">{name}</text>',
        ]
    parts += [
        f'<circle cx="{LEFT + column * CELL + CELL // 2}" cy="{TOP + row * CELL + CELL // 2}" '
        'r="4" fill="#20588f"/>'
        for row, column in imports()
    ]
    return "\n".join([*parts, "</svg>"]) + "\n"


if __name__ == "__main__":
    PICTURE.write_text(picture())
