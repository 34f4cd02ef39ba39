"""Commands that run a file as microcontrollers and their NPUs do."""

from __future__ import annotations

import pathlib

import click

from tfcompress.cli.options import PATH, json_option, print_report


@click.command()
@click.argument("file", type=PATH)
@json_option
def micro(file: pathlib.Path, as_json: bool) -> None:
    """Run FILE, a .tflite file, on tflite-micro: working memory, operations, what is missing."""
    from tfcompress.devices.micro import run_micro

    result = run_micro(file)
    print_report(result, as_json)
    if result.missing:
        raise click.exceptions.Exit(1)


@click.command()
@click.argument("file", type=PATH)
@click.option("--accelerator", default="ethos-u55-128", show_default=True)
@click.option("--system-config", help="Vela's name of clock and memories.")
@click.option("--memory-mode", help="Vela's name of how memories are used.")
@click.option("--output", "-o", type=PATH, help="Write the compiled file.")
@json_option
def vela(
    file: pathlib.Path,
    accelerator: str,
    system_config: str | None,
    memory_mode: str | None,
    output: pathlib.Path | None,
    as_json: bool,
) -> None:
    """Compile FILE, a .tflite file, for an Ethos-U NPU: where it runs, memory, estimated time."""
    from tfcompress.devices.ethos_u import compile_ethos_u
    from tfcompress.files import check_path

    if output:
        check_path(output, ".tflite")
    result = compile_ethos_u(
        file, accelerator, system_config=system_config, memory_mode=memory_mode
    )
    if output:
        result.save(output)
    print_report(result, as_json)


@click.command("compress-lut")
@click.argument("file", type=PATH)
@click.option("--output", "-o", type=PATH, required=True, help="File to write.")
@json_option
def compress_lut(file: pathlib.Path, output: pathlib.Path, as_json: bool) -> None:
    """Store weights of few values in FILE, a .tflite file, as indices, for tflite-micro alone."""
    from tfcompress.devices.lut import compress_lut as compress

    print_report(compress(file, output), as_json)


@click.command()
@click.argument("file", type=PATH)
@click.option(
    "--target",
    required=True,
    help="xnnpack, tflite-micro, ethos-u55, ethos-u65, ethos-u85, an NPU of `vela`, edgetpu, gpu "
    "or coreml.",
)
@click.option("--predict", is_flag=True, help="Answer from lists, without the target's own tool.")
@json_option
def check(file: pathlib.Path, target: str, predict: bool, as_json: bool) -> None:
    """Say what of FILE, a .tflite file, a target does not take, why, and what helps."""
    from tfcompress.devices.check import check_target

    report = check_target(file, target, tool=False if predict else None)
    print_report(report, as_json)
    if not report.fits:
        raise click.exceptions.Exit(1)
