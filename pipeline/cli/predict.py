"""``edgewright predict``: run a deployed file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Seconds = Annotated[float | None, typer.Option(min=1, help="Stop after so many seconds; 120 unless given.")]
Memory = Annotated[
    float | None,
    typer.Option(min=0.1, help="GiB of memory it may take; by the sizes of the files unless given."),
]


def predict(
    model: Annotated[Path, typer.Argument(help="An .onnx, .tflite or .mlpackage.")],
    input: Annotated[Path, typer.Option("--input", "-i", help="npz with one array (N, ...) per input, by its name.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="npz to write, one array per output.")],
    seconds: Seconds = None,
    memory: Memory = None,
) -> None:
    """Run a deployed file in its own runtime; Core ML without a Mac: in the reference interpreter.

    For example:

        edgewright predict model.onnx -i samples.npz -o outputs.npz
    """
    from pipeline.execution import deployed as artifact

    for name, array in artifact.predict(model, input, output, limits=artifact.limits(seconds, memory)).items():
        typer.echo(f"{name}: {array.dtype} {list(array.shape)}")
