"""Commands that write a checked file: export, run, search, reproduce, demo."""

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
    model_argument,
    normalize_option,
    prefer_option,
    print_report,
    seed_option,
    show,
    target_option,
)
from tfcompress.scheme import INTEGER_SCHEMES, PREFERENCES, SCHEMES, as_scheme


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
@prefer_option
@target_option
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


@click.command()
@click.argument("recipe")
@click.option("--model", type=PATH, required=True, help="A trained .keras file.")
@data_option(required=True)
@click.option("--val-data", help="As --data: its accuracy is shown after each epoch.")
@normalize_option
@click.option("--output", "-o", type=PATH, help="File to write; MODEL.tflite if left out.")
@seed_option("0")
@json_option
def run(
    recipe: str,
    model: pathlib.Path,
    data: str,
    val_data: str | None,
    normalize: Any,
    output: pathlib.Path | None,
    seed: int | None,
    as_json: bool,
) -> None:
    """Run RECIPE, a .yaml file or the name of one that comes with the package, on a model.

    A run that is stopped is resumed by the same command.
    """
    from tfcompress.recipes.parse import RecipeError
    from tfcompress.recipes.recipe import Recipe

    chosen = Recipe.from_yaml(recipe)  # refused before the model is loaded
    if chosen.export is None:
        raise RecipeError(f"{recipe}: the last stage must be 'export', which writes the file.")
    loaded = loaded_model(model)
    from tfcompress.graph.read import input_specs
    from tfcompress.recipes.run import run_recipe

    specs = input_specs(loaded)
    validation = loaded_data(val_data, specs, normalize, "test") if val_data else None
    result = run_recipe(
        chosen,
        loaded,
        loaded_data(data, specs, normalize),
        output or model.with_suffix(".tflite"),
        validation=validation,
        seed=seed or 0,
        verbose=not as_json,
    )
    print_report(result, as_json)


@click.command()
@model_argument
@data_option(required=True)
@click.option("--val-data", required=True, help="As --data: what files are judged on.")
@normalize_option
@click.option("--output", "-o", type=PATH, required=True, help="Folder for the files of the front.")
@click.option("--trials", type=click.IntRange(min=1), default=60, show_default=True)
@click.option(
    "--space", default="auto", show_default=True, help="auto, ptq, fast, thorough, student."
)
@click.option(
    "--objective",
    "objectives",
    multiple=True,
    help="accuracy and bytes, gzip_bytes, macs, latency_ms, arena_bytes; give it several times.",
)
@click.option("--max-drop", type=float, help="Loss of accuracy beyond which files are no use.")
@click.option("--storage", help="A journal file or the URL of a database; else in --output.")
@click.option("--folder", type=PATH, help="For models and files, with the URL of a database.")
@click.option("--executor", default="local", show_default=True, help="local, or ray.")
@click.option("--worker", is_flag=True, help="Only try trials for the others; write nothing.")
@click.option("--budget-seconds", type=float, help="Start no trial after this time.")
@target_option
@seed_option("0")
@json_option
def search(
    model: pathlib.Path,
    data: str,
    val_data: str,
    normalize: Any,
    output: pathlib.Path,
    trials: int,
    space: str,
    objectives: tuple[str, ...],
    max_drop: float | None,
    storage: str | None,
    folder: pathlib.Path | None,
    executor: str,
    worker: bool,
    target: str | None,
    budget_seconds: float | None,
    seed: int | None,
    as_json: bool,
) -> None:
    """Search for the smallest, fastest files of MODEL that lose little.

    Writes a table, a page (index.html), a picture, and each file of the front with its recipe. A
    search that is stopped goes on by the same command; the same command in several shells, with
    --worker, shares the work.
    """
    loaded = loaded_model(model)
    from tfcompress.graph.read import input_specs
    from tfcompress.pareto.search import search as search_recipes

    specs = input_specs(loaded)
    output.mkdir(parents=True, exist_ok=True)
    found = search_recipes(
        loaded,
        loaded_data(data, specs, normalize),
        loaded_data(val_data, specs, normalize, "test"),
        objectives=objectives or ("accuracy", "bytes", "latency_ms"),
        trials=trials,
        space=space,
        storage=storage or output / "journal.log",
        folder=folder,
        executor=executor,
        target=target,
        budget_seconds=budget_seconds,
        max_drop=max_drop,
        seed=seed or 0,
        verbose=not as_json,
    )
    if worker:
        return
    found.plot(output / "front.png")
    found.to_html(output / "index.html")
    written = found.write_front(output)
    print_report(found, as_json)
    if not as_json:
        click.echo(f"wrote {len(written)} files of the front to {output}")


@click.command()
@click.argument("file", type=PATH)
@click.option("--model", type=PATH, required=True, help="The .keras file that it was made from.")
@data_option(required=True)
@normalize_option
@json_option
def reproduce(
    file: pathlib.Path, model: pathlib.Path, data: str, normalize: Any, as_json: bool
) -> None:
    """Make FILE again by the recipe inside it, and say whether the bytes are the same.

    Exits with 1 if they are not.
    """
    from tfcompress.recipes.reproduce import read_record

    content = file.read_bytes()
    read_record(content, str(file))  # refused before the model is loaded
    loaded = loaded_model(model)
    from tfcompress.graph.read import input_specs
    from tfcompress.recipes.reproduce import reproduce as reproduce_file

    data_given = loaded_data(data, input_specs(loaded), normalize)
    result = reproduce_file(content, loaded, data_given, str(file), verbose=not as_json)
    if as_json:
        click.echo(json.dumps(dataclasses.asdict(result), indent=2))
    else:
        click.echo(str(result))
    if not result.same_model:
        click.get_current_context().exit(1)


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
