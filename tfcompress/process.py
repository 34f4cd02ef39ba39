"""What a call runs in: known versions, a process that was forked, code that is being traced."""

from __future__ import annotations

import os
import re
import sys
from typing import Any

from tfcompress.tensorflow_internals import has_computed

_forked = False


def check_process() -> None:
    """Refuses a process that was forked from one in which TensorFlow had computed.

    The threads of TensorFlow do not follow into it: the first computation would wait for ever.

    Raises:
        RuntimeError: If this is one.
    """
    if _forked:
        raise RuntimeError(
            "This process was forked from one that had used TensorFlow, whose threads do not exist "
            "here: it would wait for ever. Start processes with "
            "multiprocessing.get_context('spawn'), or fork before the first use."
        )


KNOWN = {"keras": ((3, 12), (4, 0)), "tensorflow": ((2, 21), (3, 0))}
"""The first version of each library that is known, and the first that is not."""


def check_versions() -> None:
    """Refuses libraries that are too old, or too new to be known.

    Raises:
        ImportError: If one of those that are loaded is.
    """
    for name, (first, beyond) in KNOWN.items():
        version = getattr(sys.modules.get(name), "__version__", None)
        found = re.match(r"(\d+)\.(\d+)", version or "")
        if found and not first <= (int(found[1]), int(found[2])) < beyond:
            low, high = (".".join(map(str, end)) for end in (first, beyond))
            raise ImportError(
                f"tfcompress knows {name} {low} and later, below {high}. Found: {name} {version}. "
                f"Install one that it knows (pip install '{name}>={low},<{high}'), or a newer "
                "tfcompress."
            )


def is_traced() -> bool:
    """Returns whether the caller is inside of a `tf.function`."""
    tensorflow: Any = sys.modules.get("tensorflow")
    return tensorflow is not None and tensorflow.inside_function()


def _after_fork() -> None:
    global _forked
    _forked = has_computed()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
