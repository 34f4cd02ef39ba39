"""Checks of the process: supported versions, forks, tracing."""

from __future__ import annotations

import os
import re
import sys
from typing import Any

from tfcompress.tensorflow_internals import has_computed

_forked = False


def check_process() -> None:
    """Rejects a process that was forked from one in which TensorFlow had computed.

    TensorFlow's threads do not exist in the fork: the first computation would hang.

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
"""For each library, the first supported version and the first unsupported one."""


def check_versions() -> None:
    """Rejects versions of libraries that are too old, or too new to be tested.

    Raises:
        ImportError: If a loaded library has such a version.
    """
    for name, (first, limit) in KNOWN.items():
        version = getattr(sys.modules.get(name), "__version__", None)
        match = re.match(r"(\d+)\.(\d+)", version or "")
        if match and not first <= (int(match[1]), int(match[2])) < limit:
            low, high = (".".join(map(str, bound)) for bound in (first, limit))
            raise ImportError(
                f"tfcompress knows {name} {low} and later, below {high}. Found: {name} {version}. "
                f"Install one that it knows (pip install '{name}>={low},<{high}'), or a newer "
                "tfcompress."
            )


def is_traced() -> bool:
    """Returns whether the caller is inside a `tf.function`."""
    tensorflow: Any = sys.modules.get("tensorflow")
    return tensorflow is not None and tensorflow.inside_function()


def _after_fork() -> None:
    global _forked
    _forked = has_computed()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
