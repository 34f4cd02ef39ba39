"""Names of the numeric schemes."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

SCHEMES = ("float32", "dynamic_int8", "int8")
"""What `export_tflite` writes: float, int8 weights only, or integers throughout."""


def check_choice(value: object, argument: str, allowed: Sequence[str]) -> str:
    """Returns `value` if it is one of `allowed`.

    Raises:
        ValueError: If not; the message names the nearest allowed value.
    """
    if isinstance(value, str) and value in allowed:
        return value
    nearest = difflib.get_close_matches(str(value), allowed, n=1)
    raise ValueError(
        f"{argument} must be one of {', '.join(map(repr, allowed))}. Received: "
        f"{argument}={value!r}." + (f" Did you mean {nearest[0]!r}?" if nearest else "")
    )
