"""Where a call comes from: a process that was forked, or code that is being traced."""

from __future__ import annotations

import os
import sys
from typing import Any

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


def is_traced() -> bool:
    """Returns whether the caller is inside of a `tf.function`."""
    tensorflow: Any = sys.modules.get("tensorflow")
    return tensorflow is not None and tensorflow.inside_function()


def _has_computed() -> bool:
    context: Any = sys.modules.get("tensorflow.python.eager.context")
    return getattr(getattr(context, "_context", None), "_initialized", False)


def _after_fork() -> None:
    global _forked
    _forked = _has_computed()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
