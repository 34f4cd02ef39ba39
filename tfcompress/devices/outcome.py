"""What a device makes of a file, in a few words."""

from __future__ import annotations

from tfcompress.devices.ethos_u import ACCELERATORS, compile_ethos_u
from tfcompress.devices.micro import require, run_micro
from tfcompress.tables import size

DEVICES = ("tflite-micro", *ACCELERATORS)
"""The devices that are run here: a runtime, and NPUs by their compiler."""


def check_device(device: str) -> None:
    """Raises an error for a device that is not known, or whose tool is not installed."""
    if device not in DEVICES:
        raise ValueError(f"devices must be of {', '.join(DEVICES)}. Received: {device!r}")
    if device == "tflite-micro":
        require("tflite_micro", "tflite-micro", "micro")
    else:
        require("ethosu", "ethos-u-vela", "micro")


def outcome(content: bytes, device: str) -> str:
    """Returns what a device makes of a file.

    Args:
        content: A `.tflite` file.
        device: One of `DEVICES`.
    """
    try:
        if device == "tflite-micro":
            micro = run_micro(content)
            if micro.missing:
                return "lacks " + ", ".join(micro.missing)
            return f"arena {size(micro.arena_bytes or 0)}"
        result = compile_ethos_u(content, device)
    except ValueError as error:
        return str(error).splitlines()[0].replace("the content given", "it")
    memory = result.flash_bytes or result.dram_bytes
    return f"{result.share_on_npu:.0%}, {size(memory)}, {result.milliseconds:.3f} ms"
