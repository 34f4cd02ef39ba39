"""Shared code of the commands: options, loading, printing, one-line errors."""

from __future__ import annotations

import dataclasses
import difflib
import json
import os
import pathlib
import sys
from typing import Any

import click

from tfcompress.scheme import PREFERENCES


class Commands(click.Group):
    """Turns errors into one line on standard error, and names the nearest command."""

    def invoke(self, context: click.Context) -> Any:
        """Runs a command."""
        try:
            return super().invoke(context)
        except (click.exceptions.Exit, click.ClickException, click.Abort):
            raise
        except KeyboardInterrupt as error:
            click.echo(str(error) or "Stopped. Nothing was written.", err=True)
            context.exit(130)
        except BrokenPipeError:  # the reader of the output has ended, such as head
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            context.exit(1)
        except Exception as error:
            if os.environ.get("TFCOMPRESS_TRACEBACK"):
                raise
            click.echo(f"Error: {_one_line(error)}", err=True)
            context.exit(1)

    def resolve_command(self, context: click.Context, args: list[str]) -> Any:
        """Finds a command by its name."""
        try:
            return super().resolve_command(context, args)
        except click.UsageError as error:
            near = difflib.get_close_matches(args[0], self.list_commands(context), n=1)
            if near and "Did you mean" not in error.message:
                raise click.UsageError(
                    f"{error.message} Did you mean {near[0]!r}?", context
                ) from None
            raise


def _one_line(error: Exception) -> str:
    from tfcompress.errors import ExportError

    message = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, (ValueError, TypeError, OSError, ImportError, ExportError)):
        return message
    return (
        f"{type(error).__name__}: {message[:500]} (set TFCOMPRESS_TRACEBACK=1 to see where it "
        "comes from)"
    )


def import_keras() -> None:
    """Imports Keras without TensorFlow's start-up messages."""
    from tfcompress.stderr import captured_stderr

    with captured_stderr():
        import keras

        keras.backend.backend()


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
PATH = click.Path(path_type=pathlib.Path)
model_argument = click.argument("model", type=PATH)
batch_option = click.option(
    "--batch-size", type=click.IntRange(min=1), default=32, show_default=True
)

layers_option = click.option("--layers", multiple=True, metavar="GLOB", help="Only these layers.")
prefer_option = click.option(
    "--prefer",
    type=click.Choice(PREFERENCES),
    default=PREFERENCES[0],
    show_default=True,
    help="Which form a layer gets where the runtime has several; a trained model keeps its own.",
)
target_option = click.option(
    "--target",
    help="What the file will run on, as for `check`: it is made and checked for that.",
)


def seed_option(left_out: str = "Any") -> Any:
    """Returns the option of a seed, which says what it is if it is left out."""
    told = f"Two runs with one seed are equal to the byte. {left_out}, if left out."
    return click.option("--seed", type=click.IntRange(min=0), help=told)


def data_option(required: bool) -> Any:
    """Returns the option that names samples."""
    return click.option(
        "--data",
        required=required,
        metavar="FILE.npz|DIR|MODULE:FUNCTION",
        help="Samples: an .npz or .npy file (x, y, or the names of the inputs), a folder of images "
        "(subfolders are classes), or a function that returns (x, y) or a dataset.",
    )


class _Pair(click.ParamType):
    """MEAN,DEVIATION; with several channels, M1,M2,M3,D1,D2,D3."""

    name = "MEAN,DEVIATION"

    def convert(self, value: Any, param: Any, context: Any) -> tuple[list[float], list[float]]:
        if isinstance(value, tuple):
            return value
        try:
            numbers = [float(part) for part in value.split(",")]
        except ValueError:
            self.fail(f"{value!r} is no list of numbers.", param, context)
        half = len(numbers) // 2
        if not numbers or len(numbers) % 2 or min(numbers[half:]) <= 0:
            self.fail("give means, then as many deviations above 0.", param, context)
        return numbers[:half], numbers[half:]


normalize_option = click.option(
    "--normalize",
    type=_Pair(),
    help="Give the model (x - mean) / deviation. export also writes it into the file.",
)


def loaded_model(path: pathlib.Path) -> Any:
    """Loads a .keras file."""
    import_keras()
    from tfcompress.graph.inline import as_graph
    from tfcompress.graph.read import load_keras

    if path.suffix != ".keras":
        raise ValueError(f"MODEL must be a .keras file. Received: {str(path)!r}")
    return as_graph(load_keras(path))


def loaded_data(
    data: str, specs: Any, normalize: Any = None, split: str = "train"
) -> tuple[Any, Any]:
    """Loads --data; returns samples and labels (None if there are none)."""
    from tfcompress.cli.data import load_data, normalized

    x, y = load_data(data, specs, split=split)
    return normalized(x, normalize), y


def loaded_specs(path: pathlib.Path) -> tuple[Any, Any]:
    """Returns a model or file, and the specs of its inputs."""
    if path.suffix == ".tflite":
        from tfcompress.tflite.run import TFLiteModel

        file = TFLiteModel(path)
        return file, file.specs()
    from tfcompress.graph.read import input_specs

    model = loaded_model(path)
    return model, input_specs(model)


def print_report(report: Any, as_json: bool) -> None:
    """Prints a result as a table or as JSON."""
    if as_json:
        content = report.as_dict() if hasattr(report, "as_dict") else dataclasses.asdict(report)
        click.echo(json.dumps(content, indent=2))
    else:
        show(report)


def show(renderable: Any) -> None:
    """Prints a table."""
    from rich.console import Console

    # A pipe or a log has no width; without one, tables would be folded to 80 columns.
    Console(width=None if sys.stdout.isatty() else 120).print(renderable)
