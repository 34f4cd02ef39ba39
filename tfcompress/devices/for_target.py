"""What a target asks of a scheme, of the ends of a file, and of the file itself."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterator
from typing import Any

import keras

from tfcompress.devices.check import CHECKED, TargetReport, check_target, family_of
from tfcompress.devices.target import Target, target_named
from tfcompress.errors import CompressionWarning, ExportError
from tfcompress.scheme import INTEGER_SCHEMES, QuantizationScheme, as_scheme, check_choice

_BITS = {
    "float32": (32, 32),
    "float16": (16, 32),
    "dynamic_int8": (8, 32),
    "int8": (8, 8),
    "int16x8": (8, 16),
    "w4a8": (4, 8),
}
"""Bits of weights and activations of each scheme."""


def known_target(target: str) -> Target | None:
    """Returns what is known of a target by data; None for XNNPACK, which takes every scheme.

    Raises:
        ValueError: If there is no such target.
    """
    check_choice(target, "target", CHECKED)
    return None if target == "xnnpack" else target_named(family_of(target))


def scheme_for(scheme: Any, target: str) -> Any:
    """Returns a scheme with the forms of operations and the arithmetic that a target has.

    Args:
        scheme: A name of a scheme or a `QuantizationScheme`.
        target: The target.

    Raises:
        ValueError: If the target does not compute with the bits of the scheme, or of one of its
            overrides.
    """
    known = known_target(target)
    if known is None:
        return scheme
    for where, name in _names(scheme):
        weights, activations = _BITS[name]
        for bits, what in ((weights, "weight"), (activations, "activation")):
            possible = known.needs[f"{what}_bits"]
            if bits not in possible:
                raise ValueError(
                    f"{where}={name!r} has {what}s of {bits} bits, and {target!r} computes with "
                    f"{' or '.join(map(str, possible))}. Use scheme={_instead(known)!r}."
                )
    if scheme in INTEGER_SCHEMES or isinstance(scheme, QuantizationScheme):
        options = as_scheme(scheme)
        kernels = "xnnpack" if options.uses_sixteen_bits else known.needs.get("kernels", "xnnpack")
        if keras.backend.backend() == "jax":  # which has no 64-bit integers
            kernels = "xnnpack"
        return dataclasses.replace(options, prefer=known.needs["prefer"], kernels=kernels)
    return scheme


def _names(scheme: Any) -> Iterator[tuple[str, str]]:
    """Yields the name of a scheme, and those of its overrides, each with where it stands."""
    options = scheme if isinstance(scheme, QuantizationScheme) else None
    yield "scheme", options.name if options else scheme
    for glob, other in (options.overrides if options else {}).items():
        yield f"overrides[{glob!r}]", other if isinstance(other, str) else other.name


def _instead(known: Target) -> str:
    fits = [
        name
        for name, (weights, activations) in _BITS.items()
        if weights in known.needs["weight_bits"] and activations in known.needs["activation_bits"]
    ]
    return "int8" if "int8" in fits else fits[0]


def io_dtype_for(io_dtype: str | None, scheme: str, target: str | None) -> str:
    """Returns the type of inputs and outputs: the one given, or the one that suits a target.

    Args:
        io_dtype: A type; None to choose one.
        scheme: Name of the scheme.
        target: The target; None for none.

    Raises:
        ValueError: If the target does not take the type.
    """
    known = known_target(target) if target else None
    possible = known.needs["io_dtypes"] if known else ["float32"]
    if io_dtype is None:
        # Where some layers have 16-bit activations, a file has float ends.
        integer = scheme in ("int8", "w4a8") and "float32" not in possible
        return "int8" if integer else "float32"
    if known and io_dtype not in possible:
        raise ValueError(
            f"io_dtype={io_dtype!r} is not possible for {target!r}, which takes "
            f"{', '.join(possible)}. Leave io_dtype out."
        )
    return io_dtype


def report_for(content: bytes, target: str, path: str) -> TargetReport:
    """Returns what of a file a target takes, after a warning if that is not all.

    Args:
        content: The file.
        target: The target.
        path: Where the file will be.

    Raises:
        ExportError: If the file cannot run: neither the target takes an operation, nor what runs
            the others.

    Warns:
        CompressionWarning: If operations are left to others.
    """
    report = dataclasses.replace(check_target(content, target), path=path)
    if report.fits:
        return report
    known = known_target(target)
    impossible = report
    if known and known.others == "tflite-micro":
        left = {issue.index for issue in report.issues}
        beside = check_target(content, known.others)
        lacking = [issue for issue in beside.issues if issue.index in left]
        impossible = dataclasses.replace(beside, path=path, issues=lacking)
    alone = known is not None and not known.others
    if alone or (impossible is not report and impossible.issues):
        raise ExportError(f"The file cannot run on {target}:\n{_listed(impossible)}")
    warnings.warn(
        f"{target} takes {report.operations - len(report.issues)} of {report.operations} "
        f"operations of the file, in {report.partitions} parts. {report.cost} The others:\n"
        + _listed(report),
        CompressionWarning,
        stacklevel=3,
    )
    return report


_MOST = 12


def _listed(report: TargetReport) -> str:
    lines = [
        f"  {issue.layer}: {issue.operation}: {issue.reason}"
        + (f". What helps: {issue.change}" if issue.change else "")
        for issue in report.issues
    ]
    lines = [*dict.fromkeys(lines)]
    more = [f"  and {len(lines) - _MOST} more"] if len(lines) > _MOST else []
    return "\n".join([*lines[:_MOST], *more])
