"""``edgewright init``: a first recipe for a checkpoint."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli.changes import Changes
from pipeline.cli.check import plan_for, shown
from pipeline.core import CheckpointError, DataError, OutputError, RecipeError
from pipeline.core.callables import require_module
from pipeline.core.files import write_text
from pipeline.progress import console


def init(
    checkpoint: Annotated[
        Path | None,
        typer.Argument(help="A state dict (.pt, .safetensors), .pt2, TorchScript or .keras, or a transformers folder."),
    ] = None,
    factory: Annotated[
        str | None, typer.Option(metavar="MODULE:CALLABLE", help="What builds the network, for a state dict.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="Samples: images by class, with COCO's or YOLO's labels, .npz, a table …")
    ] = None,
    task: Annotated[str | None, typer.Option(metavar="NAME", help="What the model is for, such as detection.")] = None,
    shape: Annotated[
        list[str] | None,
        typer.Option(metavar="SIZES", help="Of an input without the batch, such as 3,224,224; once for each input."),
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="The recipe to write.")] = Path("recipe.yaml"),
    force: Annotated[bool, typer.Option("--force", help="Write it in place of a file that is there.")] = False,
) -> None:
    """Write a recipe for a checkpoint and its data, and check it.

    A state dict needs the code of its network: the Python files beside it and in this folder are looked through for one
    that fits, and only files that define things are imported. What nothing tells is asked for.

    For example:

        edgewright init weights.pt --data photos
        edgewright init weights.pt --factory my_models:resnet --data photos --shape 3,224,224
        edgewright init bert/ --data reviews.csv
    """
    checkpoint = checkpoint or Path(_ask("Checkpoint", "CHECKPOINT, such as weights.pt"))
    data = data or Path(_ask("Samples (a folder or file)", "--data FOLDER"))
    _require_first(checkpoint, data, factory, out, force)
    console.print(f"looking at {checkpoint} and {data}", markup=False, soft_wrap=True)
    from pipeline.data.recognise import recognise
    from pipeline.execution.draft import draft, shape_of
    from pipeline.execution.draft_text import text_of

    shapes = [shape_of(text) for text in shape or ()]
    found = draft(checkpoint, recognise(data), out=out, factory=factory, shapes=shapes, task=task, ask=_ask)
    write_text(out, text_of(found))
    console.print(f"wrote {out}; checking it", markup=False, soft_wrap=True)
    typer.echo(shown(plan_for(out, Changes()), out))


def _require_first(checkpoint: Path, data: Path, factory: str | None, out: Path, force: bool) -> None:
    """Refuse what is wrong with the arguments before anything heavy is imported."""
    if not checkpoint.exists():
        raise CheckpointError("no such file or folder", where=str(checkpoint), fix="correct the path of the checkpoint")
    if not data.exists():
        raise DataError("no such file or folder", where=str(data), fix="correct --data")
    if factory is not None:
        if ":" not in factory:
            raise RecipeError("must be module:callable", where=f"--factory {factory}", fix="such as my_models:resnet")
        require_module(factory, out.parent)
    if out.is_dir() or (out.exists() and not force):
        problem = "is a folder" if out.is_dir() else "is there already, and stays as it is"
        raise OutputError(problem, where=str(out), fix="give another --out, or --force to replace it")
    if not out.absolute().parent.is_dir():
        raise OutputError("its folder does not exist", where=str(out), fix="make it, or give another --out")


def _ask(question: str, option: str) -> str:
    """An answer from the terminal; without one, a refusal that names the option."""
    if not sys.stdin.isatty():
        raise RecipeError(f"{question[0].lower()}{question[1:]}: is not known", where="init", fix=f"give {option}")
    answer: str = typer.prompt(question)
    return answer
