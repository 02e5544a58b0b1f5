"""``edgewright search``: many variants of a recipe, and the best of them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli.run import folder
from pipeline.core import RecipeError
from pipeline.execution.paths import require_paths
from pipeline.recipe import read_recipe


def search(
    recipe: Annotated[Path, typer.Argument(help="The recipe to vary.")],
    trials: Annotated[
        int, typer.Option(min=1, help="Finished trials the study shall have, earlier ones counted.")
    ] = 20,
    objective: Annotated[
        list[str] | None,
        typer.Option(
            help="A metric of the task, latency:<target> or size:<target>; repeatable. "
            "Default: the first budget's metric, latency:onnx."
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", parser=folder, metavar="FOLDER", help="Default: reports/<recipe's name>-search."),
    ] = None,
    storage: Annotated[
        str | None, typer.Option(help="URL of a database that several workers share. Default: SQLite under --out.")
    ] = None,
) -> None:
    """Search pruning, distillation and quantization settings; write the Pareto front and a recipe for each point.

    Trials are judged on a held-out part of the training data. An interrupted search goes on when it is run again.

    For example:

        edgewright search recipe.yaml --trials 30 --objective top1 --objective latency:onnx
    """
    read = read_recipe(recipe)
    require_paths(read, recipe.parent)
    from pipeline.search.objectives import parse_objective

    if objective and len(set(objective)) < len(objective):
        raise RecipeError("an objective is there twice", where="--objective", fix="name each once")
    from pipeline.execution.apply import run
    from pipeline.execution.prepare import check
    from pipeline.search.study import search

    prepared = check(read, recipe.parent)  # before a study is made for it
    wanted = objective or [str(prepared.budgets[0].metric), "latency:onnx"]
    objectives = [parse_objective(text, [spec.info for spec in prepared.task.metrics]) for text in wanted]
    front = out or Path("reports") / f"{read.name}-search"
    points = search(read, front, run=run, trials=trials, objectives=objectives, root=recipe.parent, storage=storage)
    for point in points:
        typer.echo(f"trial {point.trial}: {', '.join(f'{name} {value}' for name, value in point.shown.items())}")
    typer.echo(f"front: {front / 'front.html'}")
