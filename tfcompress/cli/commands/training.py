"""Commands that write a smaller .keras file, by training or by rewriting."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from typing import Any

import click

from tfcompress.cli.options import (
    PATH,
    batch_option,
    data_option,
    import_keras,
    json_option,
    layers_option,
    loaded_data,
    loaded_model,
    model_argument,
    normalize_option,
    prefer_option,
    seed_option,
    target_option,
)
from tfcompress.scheme import PREFERENCES, as_scheme


def _training(required: bool = True) -> Any:
    """Returns what adds the options of commands that train.

    Args:
        required: Whether the command does nothing else.
    """
    least = 1 if required else 0
    epochs: Any = {"required": True} if required else {"default": 0, "help": "0: no training."}

    def add(function: Any) -> Any:
        for option in (
            json_option,
            seed_option(),
            click.option("--learning-rate", type=float, default=3e-4, show_default=True),
            batch_option,
            click.option("--epochs", type=click.IntRange(min=least), **epochs),
            normalize_option,
            click.option("--val-data", help="As --data: its accuracy is shown after each epoch."),
            data_option(required=required),
            click.option("--output", "-o", type=PATH, required=True, help=".keras file to write."),
        ):
            function = option(function)
        return function

    return add


def _identity(source: str) -> list[Any]:
    """Returns the name of a file, with its size and time of change."""
    path = pathlib.Path(source)
    if not path.exists():
        return [source]
    status = path.stat()
    return [source, status.st_size, status.st_mtime_ns]


def _train(model: pathlib.Path, stages: list[Any], **options: Any) -> None:
    """Runs stages, and a training behind them if there is one, and writes the model."""
    if options["seed"] is not None:
        import_keras()
        from tfcompress.recipes.run import make_deterministic

        make_deterministic(options["seed"])  # before layers draw their seeds
    loaded = loaded_model(model)
    from tfcompress.cli.train import rewrite, train
    from tfcompress.graph.read import input_specs
    from tfcompress.recipes.recipe import Recipe
    from tfcompress.recipes.stages import Fit

    data = validation = None
    specs, normalize = input_specs(loaded), options["normalize"]
    if options["data"]:
        data = loaded_data(options["data"], specs, normalize)
    if not options["epochs"]:
        result = rewrite(loaded, Recipe(tuple(stages)), data, options["output"])
        _told(result, options["as_json"])
        return
    if data is None:
        raise ValueError("--epochs needs --data to train on.")
    if options["val_data"]:
        validation = loaded_data(options["val_data"], specs, normalize, "test")
    fit = Fit(
        epochs=options["epochs"],
        batch_size=options["batch_size"],
        learning_rate=options["learning_rate"],
        distill=options.get("distill"),
    )
    identity = {"model": _identity(str(model)), "data": _identity(options["data"])}
    result = train(
        loaded,
        Recipe((*stages, fit)),
        *data,
        output=options["output"],
        identity={**identity, "normalize": normalize and [list(part) for part in normalize]},
        seed=options["seed"],
        quiet=options["as_json"],
        validation=validation,
    )
    _told(result, options["as_json"])


def _told(result: dict[str, Any], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(result, indent=2))
        return
    if "epochs" not in result:
        click.echo(
            f"wrote {result['output']}: parameters {result['parameters_before']:,} before, "
            f"{result['parameters_after']:,} after. Train it: this has cost accuracy."
        )
        return
    metrics = ", ".join(f"{k} {v:.4g}" for k, v in result.items() if k in ("loss", "accuracy"))
    click.echo(f"wrote {result['output']} after {result['epochs']} epochs: {metrics}")
    for name, where in (("accuracy", "these samples"), ("val_accuracy", "--val-data")):
        if f"{name}_before" in result:
            before, after = result[f"{name}_before"], result[f"{name}_after"]
            click.echo(f"accuracy on {where}: {before:.2%} before, {after:.2%} after")


def _layers(layers: tuple[str, ...]) -> list[str] | None:
    return list(layers) or None


@click.command()
@model_argument
@click.option("--sparsity", type=click.FloatRange(0, 1, max_open=True), help="0.8 if left out.")
@click.option(
    "--pattern",
    default="unstructured",
    show_default=True,
    help="unstructured; n:m, such as 2:4; or blocks, such as 4x1.",
)
@click.option("--ranking", default="layer", show_default=True, help="layer or global.")
@layers_option
@_training()
def prune(
    model: pathlib.Path,
    sparsity: float | None,
    pattern: str,
    ranking: Any,
    layers: tuple[str, ...],
    **options: Any,
) -> None:
    """Train MODEL with increasing sparsity, along a cubic schedule.

    A run that is stopped is resumed by the same command.
    """
    from tfcompress.recipes.stages import Prune
    from tfcompress.scheme import check_choice
    from tfcompress.transforms.patterns import as_pattern

    sizes = pattern.split("x")
    chosen: Any = tuple(map(int, sizes)) if all(size.isdigit() for size in sizes) else pattern
    as_pattern(chosen)
    check_choice(ranking, "ranking", ("layer", "global"))
    stage = Prune(sparsity=sparsity, pattern=chosen, ranking=ranking, layers=_layers(layers))
    _train(model, [stage], **options)


@click.command()
@model_argument
@click.option("--clusters", type=click.IntRange(2, 128), default=16, show_default=True)
@click.option("--per-channel", is_flag=True, help="Each output channel has values of its own.")
@layers_option
@_training()
def cluster(
    model: pathlib.Path,
    clusters: int,
    per_channel: bool,
    layers: tuple[str, ...],
    **options: Any,
) -> None:
    """Train MODEL so that the weights of each kernel share a few values."""
    from tfcompress.recipes.stages import Cluster

    stage = Cluster(number_of_clusters=clusters, per_channel=per_channel, layers=_layers(layers))
    _train(model, [stage], **options)


@click.command()
@model_argument
@click.option("--scheme", default="int8", show_default=True, help="int8, w4a8 or int16x8.")
@prefer_option
@target_option
@layers_option
@_training()
def quantize(
    model: pathlib.Path,
    scheme: str,
    prefer: str,
    target: str | None,
    layers: tuple[str, ...],
    **options: Any,
) -> None:
    """Train MODEL with the quantization of the file that `export` will write.

    A run that is stopped is resumed by the same command.
    """
    from tfcompress.recipes.stages import Quantize

    chosen: Any = as_scheme(scheme) and scheme
    if prefer != PREFERENCES[0]:
        chosen = dataclasses.asdict(dataclasses.replace(as_scheme(scheme), prefer=prefer))
    _train(model, [Quantize(scheme=chosen, layers=_layers(layers), target=target)], **options)


@click.command()
@click.argument("teacher", type=PATH)
@click.argument("student", type=PATH)
@click.option("--alpha", type=click.FloatRange(0, 1), default=0.5, show_default=True)
@click.option("--temperature", type=float, help="3 if left out.")
@_training()
def distill(
    teacher: pathlib.Path,
    student: pathlib.Path,
    alpha: float,
    temperature: float | None,
    **options: Any,
) -> None:
    """Train STUDENT on labels and on the outputs of TEACHER, both .keras files.

    TEACHER runs once over the data. A run that is stopped is resumed by the same command.
    """
    from tfcompress.recipes.stages import Distill

    distilled = Distill(teacher=str(teacher), alpha=alpha, temperature=temperature)
    _train(student, [], **options, distill=distilled)


@click.command("prune-channels")
@model_argument
@click.option("--ratio", type=float, default=0.5, show_default=True, help="Share to remove.")
@click.option("--target-macs", type=float, help="Instead: multiply-accumulates of one sample.")
@click.option("--target-latency-ms", type=float, help="Instead: milliseconds of one sample.")
@click.option(
    "--criterion",
    type=click.Choice(["l1", "l2", "bn_gamma", "taylor", "fpgm", "random"]),
    default="l2",
    show_default=True,
)
@click.option("--round-to", type=click.IntRange(min=1), default=1, show_default=True)
@layers_option
@_training(required=False)
def prune_channels(
    model: pathlib.Path,
    ratio: float,
    target_macs: float | None,
    target_latency_ms: float | None,
    criterion: Any,
    round_to: int,
    layers: tuple[str, ...],
    **options: Any,
) -> None:
    """Remove channels of MODEL, and train it if --epochs are given."""
    from tfcompress.recipes.stages import PruneChannels

    stage = PruneChannels(
        ratio=ratio,
        target_macs=target_macs,
        target_latency_ms=target_latency_ms,
        criterion=criterion,
        round_to=round_to,
        layers=_layers(layers),
    )
    _train(model, [stage], **options)


@click.command()
@model_argument
@click.option("--rank", default="0.9", show_default=True, help="A rank, an energy, or vbmf.")
@click.option("--target-macs", type=float, help="Instead: multiply-accumulates of one sample.")
@layers_option
@_training(required=False)
def factorize(
    model: pathlib.Path,
    rank: str,
    target_macs: float | None,
    layers: tuple[str, ...],
    **options: Any,
) -> None:
    """Replace kernels of MODEL by products of smaller ones, and train it if --epochs are given."""
    from tfcompress.recipes.stages import Factorize

    chosen: Any = rank if rank == "vbmf" else int(rank) if rank.isdigit() else float(rank)
    stage = Factorize(rank=chosen, target_macs=target_macs, layers=_layers(layers))
    _train(model, [stage], **options)


@click.command()
@model_argument
@click.option("--width", type=float, default=0.5, show_default=True, help="Share of channels.")
@click.option("--depth", type=float, default=1.0, show_default=True, help="Share of blocks.")
@click.option("--separable", is_flag=True, help="Depthwise separable convolutions.")
@click.option("--round-to", type=click.IntRange(min=1), default=1, show_default=True)
@_training(required=False)
def student(
    model: pathlib.Path,
    width: float,
    depth: float,
    separable: bool,
    round_to: int,
    **options: Any,
) -> None:
    """Make a smaller model of the same kind as MODEL, and train it if --epochs are given.

    `distill MODEL STUDENT` trains it with MODEL as its teacher.
    """
    from tfcompress.recipes.stages import Student

    stage = Student(width=width, depth=depth, separable=separable, round_to=round_to)
    _train(model, [stage], **options)
