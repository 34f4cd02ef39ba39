"""Commands that measure and inspect; they change nothing."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from typing import Any

import click

from tfcompress.cli.options import (
    PATH,
    data_option,
    import_keras,
    json_option,
    loaded_data,
    loaded_model,
    loaded_specs,
    model_argument,
    normalize_option,
    print_report,
    show,
)


@click.command()
@model_argument
@data_option(required=True)
@normalize_option
@json_option
def evaluate(model: pathlib.Path, data: str, normalize: Any, as_json: bool) -> None:
    """Measure the accuracy of MODEL, a .keras or .tflite file."""
    import_keras()
    from tfcompress.measure.comparison import measure_accuracy
    from tfcompress.tflite.metadata import read_metadata

    loaded, specs = loaded_specs(model)
    x, y = loaded_data(data, specs, normalize, "test")
    metadata = read_metadata(loaded.content) if model.suffix == ".tflite" else None
    if metadata and metadata.get("normalization") and not normalize:
        click.echo(
            "Note: the file expects inputs that are normalized first (see inspect). If the "
            "data is raw, pass --normalize.",
            err=True,
        )
    fraction, count = measure_accuracy(loaded, x, y)
    if as_json:
        click.echo(
            json.dumps({"model": str(model), "accuracy": fraction, "samples": count}, indent=2)
        )
    else:
        click.echo(f"{model}: accuracy {fraction:.2%} on {count:,} samples")


@click.command()
@click.argument("models", nargs=-1, required=True, type=PATH)
@data_option(required=False)
@normalize_option
@click.option("--html", type=PATH, help="Write a page as well.")
@click.option("--plot", type=PATH, help="Write a picture as well.")
@click.option("--threads", type=click.IntRange(min=1), default=1, show_default=True)
@click.option(
    "--device", "devices", multiple=True, help="A column: tflite-micro, or an NPU of `vela`."
)
@json_option
def compare(
    models: tuple[pathlib.Path, ...],
    data: str | None,
    normalize: Any,
    html: pathlib.Path | None,
    plot: pathlib.Path | None,
    threads: int,
    devices: tuple[str, ...],
    as_json: bool,
) -> None:
    """Put accuracy, bytes and latency of MODELS, .keras or .tflite, side by side."""
    import_keras()
    from tfcompress.files import check_path
    from tfcompress.measure.comparison import compare as compare_models

    for target in (html, plot):
        if target:
            check_path(target)
    x = y = None
    if data:
        x, y = loaded_data(data, loaded_specs(models[0])[1], normalize, "test")
    named = {str(path): path for path in models}
    comparison = compare_models(named, x, y, num_threads=threads, devices=devices)
    if html:
        comparison.to_html(html)
    if plot:
        comparison.plot(plot)
    print_report(
        dataclasses.replace(comparison, reports={}, profiles={}) if as_json else comparison, as_json
    )


@click.command()
@model_argument
@json_option
def summary(model: pathlib.Path, as_json: bool) -> None:
    """Show MODEL, a .keras file, layer by layer: bits, sparsity, parameters, MACs."""
    loaded = loaded_model(model)
    from tfcompress.measure.summary import summary as summarize

    print_report(summarize(loaded), as_json)


@click.command("layer-errors")
@model_argument
@click.argument("file", type=PATH)
@data_option(required=True)
@normalize_option
@json_option
def layer_errors(
    model: pathlib.Path, file: pathlib.Path, data: str, normalize: Any, as_json: bool
) -> None:
    """Show where FILE, a .tflite file, differs from MODEL, layer by layer, worst first."""
    loaded = loaded_model(model)
    from tfcompress.graph.read import input_specs
    from tfcompress.measure.layer_errors import layer_errors as measure

    x, _ = loaded_data(data, input_specs(loaded), normalize)
    print_report(measure(loaded, file, x), as_json)


@click.command()
@click.argument("file", type=PATH)
@click.option("--delegates", is_flag=True, help="Say what accelerators would take over.")
@json_option
def inspect(file: pathlib.Path, delegates: bool, as_json: bool) -> None:
    """Say what is inside FILE, a .tflite or .keras file."""
    if file.suffix == ".keras":
        if delegates:
            raise ValueError("--delegates needs a .tflite file: export the model first.")
        click.get_current_context().invoke(summary, model=file, as_json=as_json)
    elif delegates:
        from tfcompress.devices.delegate_report import delegate_report

        print_report(delegate_report(file), as_json)
    else:
        from tfcompress.tflite.inspect import inspect_tflite

        print_report(inspect_tflite(file), as_json)


@click.command()
@click.argument("file", type=PATH)
@click.option("--output", "-o", type=PATH, required=True, help="Picture to write.")
def histograms(file: pathlib.Path, output: pathlib.Path) -> None:
    """Draw the weights and ranges of FILE, a .tflite or .keras file."""
    from tfcompress.files import check_path

    check_path(output)
    import_keras()
    from tfcompress.measure.weight_histograms import histograms as measure

    result = measure(loaded_model(file) if file.suffix == ".keras" else file)
    result.plot(output)
    show(result)


@click.command()
@click.argument("file", type=PATH)
@click.option("--threads", type=click.IntRange(min=1), default=1, show_default=True)
@click.option("--plot", type=PATH, help="Write a picture of the slowest layers as well.")
@json_option
def profile(file: pathlib.Path, threads: int, plot: pathlib.Path | None, as_json: bool) -> None:
    """Say where the time of FILE, a .tflite file, goes: by operation, and by Keras layer."""
    from tfcompress.files import check_path
    from tfcompress.tflite.profile import profile_tflite

    if plot:
        check_path(plot)
    result = profile_tflite(file, threads)
    if plot:
        result.plot(plot)
    print_report(result, as_json)


@click.command()
@click.argument("files", nargs=-1, required=True, type=PATH)
@click.option("--threads", type=click.IntRange(min=1), default=1, show_default=True)
@click.option("--runs", type=click.IntRange(min=1), default=200, show_default=True)
@json_option
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
    show(table(title, columns, rows))
