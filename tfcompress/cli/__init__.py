"""The command line: tables for people, --json for machines, one-line errors."""

from __future__ import annotations

import importlib
import os
import pkgutil

import click

from tfcompress import __version__
from tfcompress.cli import commands
from tfcompress.cli.options import Commands, import_keras


@click.group(
    cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.version_option(__version__, prog_name="tfcompress")
@click.option(
    "--import",
    "modules",
    multiple=True,
    metavar="MODULE",
    help="Import a module first, such as that of custom layers.",
)
def main(modules: tuple[str, ...]) -> None:
    """Prune, quantize and distil Keras 3 models, and ship them as checked INT8 TFLite files.

    Exit codes: 0 done, 1 the work failed, 2 wrong usage, 130 stopped by
    Ctrl-C. Set TFCOMPRESS_TRACEBACK=1 to see where an error comes from.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    if modules:
        from tfcompress.cli.data import import_module

        import_keras()
        for name in modules:
            import_module(name)


for module in pkgutil.iter_modules(commands.__path__, f"{commands.__name__}."):
    for command in list(vars(importlib.import_module(module.name)).values()):
        if isinstance(command, click.Command):
            main.add_command(command)


@main.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the script that makes SHELL complete commands and options.

    For bash: tfcompress completion bash >> ~/.bashrc
    """
    from click.shell_completion import get_completion_class

    completion_class = get_completion_class(shell)
    if completion_class is None:  # pragma: no cover - all three are built in
        raise ValueError(f"There is no completion for {shell!r}.")
    click.echo(completion_class(main, {}, "tfcompress", "_TFCOMPRESS_COMPLETE").source())
