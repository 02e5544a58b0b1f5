"""``edgewright demo``: the whole pipeline on what is embedded."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

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
    out: Out = None,
    store: StoreFolder = None,
    listed: Annotated[
        bool, typer.Option("--list", help="Show what is embedded, and where its recipes are; run nothing.")
    ] = False,
) -> None:
    """Run the whole pipeline on an embedded checkpoint: images of clothing, or another task; three targets.

    Each takes at most four minutes on two cores. Its recipe is a start for your own: --list shows where it is.
    """
    if not listed:
        apply_recipe(recipe_of(task), out, store)
        return
    for each in Demo:
        typer.echo(f"{each:16}{ABOUT[each]}\n{'':16}{recipe_of(each)}")


def recipe_of(task: Demo) -> Path:
    """The recipe of an embedded model."""
    import calibration_data

    return Path(calibration_data.__file__).parent / FOLDERS[task] / "recipe.yaml"
