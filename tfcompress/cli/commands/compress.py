"""Commands that create models and files: export, prune, quantize, demo."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
from typing import Any

import click

from tfcompress.cli.options import (
    PATH,
    batch_option,
    data_option,
    import_keras,
    json_option,
    loaded_data,
    loaded_model,
    model_argument,
    normalize_option,
    print_report,
    show,
)
from tfcompress.scheme import INTEGER_SCHEMES, PREFERENCES, SCHEMES, as_scheme

_prefer_option = click.option(
    "--prefer",
    type=click.Choice(PREFERENCES),
    default=PREFERENCES[0],
    show_default=True,
    help="Which form a layer gets where the runtime has several; a trained model keeps its own.",
)

_target_option = click.option(
    "--target",
    help="What the file will run on, as for `check`: it is made and checked for that.",
)


def _preferring(scheme: str | None, prefer: str, default: str | None = None) -> Any:
    """Returns a scheme by name, or as an object if it prefers something else than by default."""
    if scheme == "auto":
        if prefer != PREFERENCES[0]:
            raise ValueError(f"--prefer is not for --scheme auto. Received: {prefer!r}")
        return scheme
    name = scheme or default
    if prefer == PREFERENCES[0] or name not in INTEGER_SCHEMES:
        return scheme
    return dataclasses.replace(as_scheme(name), prefer=prefer)


@click.command()
@model_argument
@click.option("--output", "-o", type=PATH, help="File to write; MODEL.tflite if left out.")
@data_option(required=False)
@click.option(
    "--scheme",
    shell_complete=lambda context, option, typed: [
        s for s in (*SCHEMES, "auto") if s.startswith(typed)
    ],
    help=f"One of {', '.join(SCHEMES)}; int8 if there is data; auto: the smallest that is enough.",
)
@click.option("--max-rmse", type=float, help="For auto: RMSE to the model, over the deviation.")
@click.option("--max-drop", type=float, help="For auto: loss of accuracy; needs labels.")
@_prefer_option
@_target_option
@click.option("--io-dtype", help="float32, int8, uint8 or int16; else what suits the target.")
@click.option(
    "--batch-size", type=click.IntRange(min=0), default=1, show_default=True, help="0: open."
)
@click.option(
    "--input-shape",
    "input_shapes",
    multiple=True,
    metavar="[INPUT=]SIZES",
    help="Of one sample, such as 224,224,3, for a model that takes any size.",
)
@click.option("--sparse", is_flag=True, help="Store many zeros in TFLite's sparse format.")
@click.option("--labels", type=PATH, help="A text file with a label in each line.")
@click.option("--benchmark", is_flag=True, help="Measure the file beside the float one.")
@click.option("--c-array", is_flag=True, help="Write C source and header for tflite-micro as well.")
@click.option(
    "--golden",
    type=click.IntRange(min=1),
    metavar="N",
    help="Write inputs and the integers that the file must put out, for N samples.",
)
@normalize_option
@json_option
def export(
    model: pathlib.Path,
    output: pathlib.Path | None,
    data: str | None,
    scheme: str | None,
    max_rmse: float | None,
    max_drop: float | None,
    prefer: str,
    target: str | None,
    io_dtype: str | None,
    batch_size: int,
    input_shapes: tuple[str, ...],
    sparse: bool,
    labels: pathlib.Path | None,
    benchmark: bool,
    c_array: bool,
    golden: int | None,
    normalize: Any,
    as_json: bool,
) -> None:
    """Write MODEL, a .keras file, as a .tflite file that was checked against it.

    A run that is stopped leaves no file; the next run starts anew.
    """
    output = output or model.with_suffix(".tflite")
    if output.suffix != ".tflite":
        raise ValueError(f"--output must end in .tflite. Received: {str(output)!r}")
    if labels and not labels.is_file():
        raise FileNotFoundError(f"--labels: no such file: {str(labels)!r}")
    if golden and not data:
        raise ValueError("--golden needs --data, the samples to take.")
    input_shape = _shapes(input_shapes)
    loaded = loaded_model(model)
    from tfcompress.export.export_tflite import export_tflite
    from tfcompress.graph.read import input_specs

    dataset = x = None
    if data:
        x, y = loaded_data(data, input_specs(loaded), normalize)
        dataset = x if y is None else (x, y)
    result = export_tflite(
        loaded,
        output,
        scheme=_preferring(scheme, prefer, "int8" if data else None),
        representative_dataset=dataset,
        io_dtype=io_dtype,
        target=target,
        batch_size=batch_size or None,
        input_shape=input_shape,
        max_rmse=max_rmse,
        max_drop=max_drop,
        sparse=sparse,
        labels=labels.read_text().splitlines() if labels else None,
        normalization=normalize,
        benchmark=benchmark,
        verbose=False if as_json else "auto",
    )
    print_report(result, as_json)
    from tfcompress.devices.c_source import write_c_source, write_golden

    written = write_c_source(output, output.with_suffix(".c")) if c_array else []
    if golden:
        beside = output.with_name(f"{output.stem}_golden.npz")
        written += write_golden(output, x, beside, golden)
    for path in written:
        click.echo(f"wrote {path}", err=True)


def _shapes(options: tuple[str, ...]) -> Any:
    """Returns the shape of a sample, or a dict of these by input; None if there are none."""
    shapes: dict[str, tuple[int, ...]] = {}
    for text in options:
        name, _, sizes = text.rpartition("=")
        try:
            shapes[name] = tuple(int(size) for size in sizes.split(","))
        except ValueError:
            raise ValueError(
                "--input-shape must be sizes such as 224,224,3, or INPUT=224,224,3. Received: "
                f"{text!r}"
            ) from None
    return shapes[""] if set(shapes) == {""} else shapes or None


def _training(function: Any) -> Any:
    """Adds the options of commands that train."""
    for option in (
        json_option,
        click.option(
            "--seed",
            type=click.IntRange(min=0),
            help="Two runs with one seed are equal to the byte. Any, if left out.",
        ),
        click.option("--learning-rate", type=float, default=3e-4, show_default=True),
        batch_option,
        click.option("--epochs", type=click.IntRange(min=1), required=True),
        normalize_option,
        click.option("--layers", multiple=True, metavar="GLOB", help="Only these layers."),
        data_option(required=True),
        click.option("--output", "-o", type=PATH, required=True, help=".keras file to write."),
        model_argument,
    ):
        function = option(function)
    return function


def _identity(source: str) -> list[Any]:
    """Returns the name of a file, with its size and time of change."""
    path = pathlib.Path(source)
    if not path.exists():
        return [source]
    status = path.stat()
    return [source, status.st_size, status.st_mtime_ns]


def _train(model: pathlib.Path, wrap: Any, settings: dict[str, Any], **options: Any) -> None:
    if options["seed"] is not None:
        os.environ.setdefault("TF_DETERMINISTIC_OPS", "1")
        import_keras()
        import keras

        keras.utils.set_random_seed(
            options["seed"]
        )  # layers draw their seeds when they are created
    loaded = loaded_model(model)
    from tfcompress.cli.train import train
    from tfcompress.graph.read import input_specs

    x, y = loaded_data(options["data"], input_specs(loaded), options["normalize"])
    train_options = ("output", "epochs", "batch_size", "learning_rate", "seed")
    settings = {**settings, "model": _identity(str(model)), "data": _identity(options["data"])}
    recorded = ("batch_size", "learning_rate", "normalize", "seed")
    settings |= {name: options[name] for name in recorded}
    result = train(
        loaded,
        wrap,
        x,
        y,
        settings={key: list(v) if isinstance(v, tuple) else v for key, v in settings.items()},
        quiet=options["as_json"],
        **{name: options[name] for name in train_options},
    )
    if options["as_json"]:
        click.echo(json.dumps(result, indent=2))
    else:
        metrics = ", ".join(f"{k} {v:.4g}" for k, v in result.items() if k in ("loss", "accuracy"))
        click.echo(f"wrote {result['output']} after {result['epochs']} epochs: {metrics}")
        if "accuracy_before" in result:
            before, after = result["accuracy_before"], result["accuracy_after"]
            click.echo(f"accuracy on these samples: {before:.2%} before, {after:.2%} after")


@click.command()
@click.option("--sparsity", type=click.FloatRange(0, 1, max_open=True), help="0.8 if left out.")
@click.option(
    "--pattern",
    default="unstructured",
    show_default=True,
    help="unstructured; n:m, such as 2:4; or blocks, such as 4x1.",
)
@click.option("--ranking", default="layer", show_default=True, help="layer or global.")
@_training
def prune(sparsity: float | None, pattern: str, ranking: str, **options: Any) -> None:
    """Train MODEL with increasing sparsity, along a cubic schedule.

    A run that is stopped is resumed by the same command.
    """

    def wrap(model: Any, steps: int) -> Any:
        from tfcompress.transforms.patterns import as_pattern
        from tfcompress.transforms.schedules import PolynomialDecay
        from tfcompress.wrap.prune import prune as prune_model

        block_sizes = pattern.split("x")
        parsed_pattern = as_pattern(
            tuple(map(int, block_sizes)) if all(b.isdigit() for b in block_sizes) else pattern
        )
        target = sparsity if sparsity is not None else parsed_pattern.sparsity or 0.8
        end_step = max(1, int(0.6 * steps))
        schedule = PolynomialDecay(0.0, target, 0, end_step, frequency=max(1, end_step // 50))
        return prune_model(
            model, schedule, pattern=parsed_pattern.spec, ranking=ranking, layers=_layers(options)
        )

    settings = {"sparsity": sparsity, "pattern": pattern, "ranking": ranking}
    _train(options.pop("model"), wrap, {**settings, "layers": options["layers"]}, **options)


@click.command()
@click.option("--scheme", default="int8", show_default=True, help="int8, w4a8 or int16x8.")
@_prefer_option
@_target_option
@_training
def quantize(scheme: str, prefer: str, target: str | None, **options: Any) -> None:
    """Train MODEL with the quantization of the file that `export` will write.

    A run that is stopped is resumed by the same command.
    """

    def wrap(model: Any, steps: int) -> Any:
        from tfcompress.qat import quantize as quantize_model

        chosen = _preferring(scheme, prefer)
        return quantize_model(model, chosen, layers=_layers(options), target=target)

    settings = {"scheme": scheme, "layers": options["layers"]}
    if prefer != PREFERENCES[0]:
        settings["prefer"] = prefer
    if target:
        settings["target"] = target
    _train(options.pop("model"), wrap, settings, **options)


def _layers(options: dict[str, Any]) -> list[str] | None:
    return list(options["layers"]) or None


@click.command()
@click.option(
    "--output",
    type=click.Path(file_okay=False, path_type=pathlib.Path),
    default="demo-output",
    show_default=True,
    help="Folder for student.tflite, demo.json and demo.png.",
)
@click.option("--full", is_flag=True, help="Use all 60,000 and 10,000 images of Fashion-MNIST.")
@json_option
def demo(output: pathlib.Path, full: bool, as_json: bool) -> None:
    """Train, distil, prune, quantize, export and measure on Fashion-MNIST."""
    import_keras()
    from tfcompress.demo.main import run_demo

    result = run_demo(output, full=full, quiet=as_json)
    if as_json:
        click.echo(json.dumps(result.as_dict(), indent=2))
    else:
        show(result)
