"""The command line application: one file a command, wired here in the order in which ``--help`` lists them.

A command imports what needs torch only when it runs, so that ``--help`` and a wrong recipe are answered at once.
"""

from __future__ import annotations

from importlib.metadata import version
from typing import Annotated

import typer

from pipeline.cli.check import check
from pipeline.cli.compare import compare
from pipeline.cli.demo import demo
from pipeline.cli.doctor import doctor
from pipeline.cli.init import init
from pipeline.cli.inspect import inspect
from pipeline.cli.predict import predict
from pipeline.cli.run import run
from pipeline.cli.schema import schema
from pipeline.cli.search import search
from pipeline.cli.show import show

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: 0 done, whatever the verdict; 1 our fault or a crash; 2 a mistake in what was given; "
    "128 + n ended by signal n, such as 130 by Ctrl-C.",
)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"edgewright {version('edgewright')}")
        raise typer.Exit


@app.callback()
def about(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version, and exit.")
    ] = False,
) -> None:
    """From a trained FP32 PyTorch model to small, fast, proven INT8 models for ONNX Runtime, Core ML and TFLite.

    Start with `edgewright demo`, then write a recipe of your own: `edgewright schema recipe`
    prints every key.
    """


for command in (init, doctor, check, run, demo, search, schema, show, compare, predict, inspect):
    app.command()(command)
