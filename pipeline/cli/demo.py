"""``edgewright demo``: the whole pipeline on what is embedded."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli.changes import Changes, Set, Stages, Targets
from pipeline.cli.output import Json, Quiet, Verbose, say, talking
from pipeline.cli.run import Out, StoreFolder, apply_recipe


class Demo(StrEnum):
    """What an embedded model is for."""

    CLASSIFICATION = "classification"
    DETECTION = "detection"
    SEGMENTATION = "segmentation"
    KEYWORD = "keyword"
    DENOISE = "denoise"


FOLDERS = {demo: str(demo) for demo in Demo} | {Demo.CLASSIFICATION: "fashion_mnist"}
ABOUT = {
    Demo.CLASSIFICATION: "images of clothing, ten classes; a residual CNN",
    Demo.DETECTION: "garments in composed scenes, five classes; an anchor-free detector of three scales",
    Demo.SEGMENTATION: "the same scenes, a class for each pixel; a U-Net",
    Demo.KEYWORD: "ten spoken words; a depthwise CNN on log-mel features",
    Demo.DENOISE: "images with noise; a residual CNN",
}


def demo(
    task: Annotated[
        Demo, typer.Option("--task", "-t", help="Which embedded model, by what it is for.")
    ] = Demo.CLASSIFICATION,
    set: Set = None,
    stages: Stages = None,
    targets: Targets = None,
    out: Out = None,
    store: StoreFolder = None,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
    listed: Annotated[
        bool, typer.Option("--list", help="Show what is embedded, and where its recipes are; run nothing.")
    ] = False,
) -> None:
    """Run the whole pipeline on an embedded checkpoint: images of clothing, or another task; three targets.

    Each takes at most four minutes on two cores. Its recipe is a start for your own: --list shows where it is.

    For example:

        edgewright demo
        edgewright demo --task detection --targets onnx
        edgewright demo --list
    """
    if listed:
        say(
            _listing(),
            {str(each): {"about": ABOUT[each], "recipe": str(recipe_of(each))} for each in Demo},
            as_json=json,
        )
        return
    with talking(as_json=json, quiet=quiet, verbose=verbose):
        shown = apply_recipe(recipe_of(task), out, store, Changes(set or (), stages, targets))
    if shown is not None:
        say(*shown, as_json=json)


def _listing() -> str:
    return "\n".join(f"{each:16}{ABOUT[each]}\n{'':16}{recipe_of(each)}" for each in Demo)


def recipe_of(task: Demo) -> Path:
    """The recipe of an embedded model."""
    import calibration_data

    return Path(calibration_data.__file__).parent / FOLDERS[task] / "recipe.yaml"
