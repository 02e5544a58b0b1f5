"""``edgewright run``: apply a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli.show import summary
from pipeline.recipe import read_recipe


def folder(text: str) -> Path:
    """A folder that an option names; an empty name, as of a variable that is not set, is a mistake."""
    if not text.strip():
        raise typer.BadParameter("names no folder")
    return Path(text)


Out = Annotated[
    Path | None,
    typer.Option(
        "--out", "-o", parser=folder, metavar="FOLDER", help="Folder of the run. Default: reports/<recipe's name>."
    ),
]
StoreFolder = Annotated[
    Path | None,
    typer.Option(
        "--store",
        parser=folder,
        metavar="FOLDER",
        help="Where finished stages are kept. Default: .store beside the run's folder.",
    ),
]


def run(
    recipe: Annotated[Path, typer.Argument(help="The recipe, a YAML file. Its paths are relative to it.")],
    out: Out = None,
    store: StoreFolder = None,
) -> None:
    """Apply a recipe: prune, distill, quantize, export, benchmark and report.

    Everything is checked before the first stage runs. A run that was killed goes on from its last finished stage when
    the same command is given again.
    """
    apply_recipe(recipe, out, store)


def apply_recipe(path: Path, out: Path | None, store: Path | None) -> None:
    """Run the recipe in a file, and print the headline of its report."""
    recipe = read_recipe(path)
    from pipeline.execution.apply import run as apply  # torch is imported only once the recipe is known to be good
    from pipeline.progress import console

    run_folder = out or Path("reports") / recipe.name
    report = apply(recipe, run_folder, root=path.parent, store=store)
    if not console.quiet:  # of several processes, the first speaks
        typer.echo(summary(report))
        typer.echo(f"report: {run_folder / 'report.html'}")
