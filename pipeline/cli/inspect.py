"""``edgewright inspect``: where the operators of a deployed file run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli.predict import Memory, Seconds
from pipeline.core.printing import printable
from pipeline.report import units


def inspect(
    model: Annotated[Path, typer.Argument(help="An .onnx, .tflite or .mlpackage.")],
    seconds: Seconds = None,
    memory: Memory = None,
) -> None:
    """Show which operators of a deployed file run accelerated, and why the others do not.

    For example:

        edgewright inspect model.tflite
    """
    from pipeline.execution import deployed as artifact

    placement = artifact.inspect(model, limits=artifact.limits(seconds, memory))
    typer.echo(f"{placement.accelerated} of {placement.operators} operators accelerated ({placement.source})")
    for fallback in placement.fallback:
        typer.echo(f"  {fallback.count} x {printable(fallback.op)}: {fallback.reason}")
    if placement.before is not None:
        before = placement.before
        typer.echo(f"without our rewriting: {before.accelerated} of {before.operators}")
    if placement.slowest:
        typer.echo("slowest operators, one sample on one thread:")
    for operator in placement.slowest:
        time = units.milliseconds(operator.median_ns)
        typer.echo(f"  {time} ({operator.share:.1%})  {printable(operator.op)} {printable(operator.name)}")
