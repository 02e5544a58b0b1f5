"""``edgewright run``: apply a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli.changes import Changes, Set, Stages, Targets, read_changed
from pipeline.cli.output import Json, Quiet, Verbose, say, talking
from pipeline.cli.show import document, summary
from pipeline.execution.paths import require_paths
from pipeline.progress import console
from pipeline.recipe import Recipe


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
RecipeFile = Annotated[Path, typer.Argument(help="The recipe, a YAML file. Its paths are relative to it.")]


def run(
    recipe: RecipeFile,
    set: Set = None,
    stages: Stages = None,
    targets: Targets = None,
    out: Out = None,
    store: StoreFolder = None,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Apply a recipe: prune, distill, quantize, export, benchmark and report.

    Everything is checked before the first stage runs. A run that was killed goes on from its last finished stage when
    the same command is given again. run.log in the run's folder says what each step did.

    For example:

        edgewright run recipe.yaml
        edgewright run recipe.yaml --set stages.prune.macs_ratio=0.5 --set budget.max_drop=0.02
        edgewright run recipe.yaml --stages quantize --targets onnx --json
    """
    changes = Changes(set or (), stages, targets)
    with talking(as_json=json, quiet=quiet, verbose=verbose):
        shown = apply_recipe(recipe, out, store, changes)
    if shown is not None:
        say(*shown, as_json=json)


def opened(path: Path, changes: Changes) -> Recipe:
    """The recipe in a file, once it and the files that it names are known to be there; says what comes next."""
    recipe = read_changed(path, changes)
    require_paths(recipe, path.parent)
    parts = ", ".join(step.name for step in (*recipe.stages, *recipe.targets)) or "benchmark"
    console.print(f"{recipe.name} ({parts}): checking the model and the data", markup=False, soft_wrap=True)
    return recipe


def apply_recipe(path: Path, out: Path | None, store: Path | None, changes: Changes) -> tuple[str, object] | None:
    """Run the recipe in a file.

    Returns:
        The headline of its report for a person and for a program; None in all but the first of several processes.
    """
    recipe = opened(path, changes)
    run_folder = out or Path("reports") / recipe.name
    from pipeline.execution.apply import run as apply  # torch is imported only once the recipe is known to be good
    from pipeline.execution.processes import processes

    report = apply(recipe, run_folder, root=path.parent, store=store)
    if not processes().is_main_process:
        return None
    page = run_folder / "report.html"
    return f"{summary(report)}\nreport: {page}", document(report, run_folder)
