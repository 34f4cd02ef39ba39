"""The command line: tables for people, --json for machines, one-line errors."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import sys
from typing import Any

import click

from tfcompress import __version__


class _Commands(click.Group):
    """Turns errors that a user can cause into one line on standard error."""

    def invoke(self, context: click.Context) -> Any:
        from tfcompress.errors import ExportError

        try:
            return super().invoke(context)
        except (ValueError, TypeError, OSError, ImportError, ExportError) as error:
            if os.environ.get("TFCOMPRESS_TRACEBACK"):
                raise
            message = " ".join(str(error).split()) or type(error).__name__
            click.echo(f"Error: {message}", err=True)
            context.exit(1)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="tfcompress")
def main() -> None:
    """Prune, quantize and distil Keras 3 models, and ship them as checked INT8 TFLite files.

    Exit codes: 0 done, 1 the work failed, 2 wrong usage. Set TFCOMPRESS_TRACEBACK=1 to see where an
    error comes from.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


def _import_keras() -> None:
    """Imports Keras without TensorFlow's start-up messages."""
    from tfcompress.stderr import captured_stderr

    with captured_stderr():
        import keras

        keras.backend.backend()


_json = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")


@main.command()
@click.option(
    "--output",
    type=click.Path(file_okay=False, path_type=pathlib.Path),
    default="demo-output",
    show_default=True,
    help="Folder for student.tflite, demo.json and demo.png.",
)
@click.option("--full", is_flag=True, help="Use all 60,000 and 10,000 images of Fashion-MNIST.")
@_json
def demo(output: pathlib.Path, full: bool, as_json: bool) -> None:
    """Train, distil, prune, quantize, export and measure on Fashion-MNIST."""
    _import_keras()
    from tfcompress.demo.main import run_demo

    result = run_demo(output, full=full, quiet=as_json)
    if as_json:
        click.echo(json.dumps(result.as_dict(), indent=2))
    else:
        _show(result)


@main.command()
@click.argument("file", type=click.Path(path_type=pathlib.Path))
@_json
def inspect(file: pathlib.Path, as_json: bool) -> None:
    """Say what is inside FILE, a .tflite or .keras file."""
    if file.suffix == ".keras":
        _import_keras()
        from tfcompress.graph.read import load_keras
        from tfcompress.wrap.summary import summary

        report: Any = summary(load_keras(file))
    else:
        from tfcompress.tflite.inspect import inspect_tflite

        report = inspect_tflite(file)
    _print(report, as_json)


@main.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=pathlib.Path))
@click.option("--threads", type=click.IntRange(min=1), default=1, show_default=True)
@click.option("--runs", type=click.IntRange(min=1), default=200, show_default=True)
@_json
def benchmark(files: tuple[pathlib.Path, ...], threads: int, runs: int, as_json: bool) -> None:
    """Measure the latency of each FILE, in turns, on this machine."""
    from tfcompress.tables import table
    from tfcompress.tflite.benchmark import benchmark as measure
    from tfcompress.tflite.run import TFLiteModel

    models = {str(file): TFLiteModel(file, threads) for file in files}
    results = list(measure(models, runs=runs).values())
    if as_json:
        click.echo(json.dumps([dataclasses.asdict(r) for r in results], indent=2))
        return
    first = results[0]
    rows = [
        (
            r.name,
            len(models[r.name].content),
            f"{r.median_ms:.3f}",
            f"{r.p10_ms:.3f}",
            f"{r.p90_ms:.3f}",
            f"{first.median_ms / r.median_ms:.2f}x",
        )
        for r in results
    ]
    columns = ("file", "bytes", "median ms", "p10", "p90", "faster")
    title = f"{runs} runs, {threads} thread(s), {first.runtime}"
    _show(table(title, columns, rows))


def _print(report: Any, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(dataclasses.asdict(report), indent=2))
    else:
        _show(report)


def _show(renderable: Any) -> None:
    from rich.console import Console

    # A pipe or a log has no width of its own; a table should not be folded to 80 columns there.
    Console(width=None if sys.stdout.isatty() else 120).print(renderable)


if __name__ == "__main__":
    main()
