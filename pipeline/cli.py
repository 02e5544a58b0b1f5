"""The ``edgewright`` command: arguments and wiring only."""

from __future__ import annotations

import json
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from pipeline.core import EdgewrightError
from pipeline.progress import console
from pipeline.recipe import Recipe, read_recipe
from pipeline.report.model import Report, read_report
from pipeline.target import Measured

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="""From a trained FP32 PyTorch model to small, fast, proven INT8 models for ONNX Runtime, Core ML and TFLite.

    Start with [bold]edgewright demo[/bold], then write a recipe of your own: [bold]edgewright schema recipe[/bold]
    prints every key.""",
)

Out = Annotated[Path | None, typer.Option("--out", "-o", help="Folder of the run. Default: reports/<recipe's name>.")]
StoreFolder = Annotated[
    Path | None,
    typer.Option("--store", help="Where finished stages are kept. Default: .store beside the run's folder."),
]


@app.command()
def run(
    recipe: Annotated[Path, typer.Argument(help="The recipe, a YAML file. Its paths are relative to it.")],
    out: Out = None,
    store: StoreFolder = None,
) -> None:
    """Apply a recipe: prune, distill, quantize, export, benchmark and report.

    Everything is checked before the first stage runs. A run that was killed goes on from its last finished stage when
    the same command is given again.
    """
    _run(recipe, out, store)


@app.command()
def demo(out: Out = None, store: StoreFolder = None) -> None:
    """Run the whole pipeline on the embedded checkpoint: Fashion-MNIST, a residual CNN, three targets."""
    import calibration_data.fashion_mnist

    _run(Path(calibration_data.fashion_mnist.__file__).parent / "recipe.yaml", out, store)


def _run(path: Path, out: Path | None, store: Path | None) -> None:
    recipe = read_recipe(path)
    from pipeline import runner  # torch is imported only once the recipe is known to be good

    folder = out or Path("reports") / recipe.name
    report = runner.run(recipe, folder, root=path.parent, store=store)
    console.print(summary(report))
    typer.echo(folder / "report.html")


class Schema(StrEnum):
    """What ``edgewright schema`` can print."""

    RECIPE = "recipe"
    REPORT = "report"


@app.command()
def schema(of: Annotated[Schema, typer.Argument(help="The recipe you write, or the report you get.")]) -> None:
    """Print a JSON Schema, for editors and programs."""
    model = Recipe if of is Schema.RECIPE else Report
    typer.echo(json.dumps(model.model_json_schema(), indent=2))


@app.command()
def show(report: Annotated[Path, typer.Argument(help="A report.json.")]) -> None:
    """Print the headline of a report."""
    console.print(summary(read_report(report)))


def summary(report: Report) -> Table:
    """The headline table: the original and every target."""
    metric = report.budget.metric
    table = Table(title=report.run.id)
    for column in (
        "",
        metric,
        "size",
        "latency, 1 thread",
        "vs FP32, same runtime",
        "agreement with the program",
        "budget",
    ):
        table.add_column(column, justify="left" if not column else "right")
    table.add_row(
        "original, PyTorch FP32",
        _percent(report.original.metrics.get(metric)),
        _bytes(report.original.size_bytes),
        *_latency(report.original.latency),
        "",
        "",
    )
    for target in report.targets:
        if target.artifact is None:
            table.add_row(target.target, f"{target.status}: {target.reason}")
            continue
        met = report.budget.met.get(target.target)
        table.add_row(
            target.target,
            _percent((target.metrics or {}).get(metric)),
            _bytes(target.artifact.size_bytes),
            *_latency(target.latency),
            _percent(target.parity.top1_agreement if target.parity else None),
            "" if met is None else "met" if met else "exceeded",
        )
    return table


def _latency(records: tuple[object, ...]) -> tuple[str, str]:
    for record in records:
        if isinstance(record, Measured) and record.threads == 1:
            speedup = record.speedup_vs_fp32_same_runtime
            return f"{record.median_ns / 1e6:.3f} ms", "" if speedup is None else f"{speedup:.2f}x"
    return "not measured", ""


def _percent(ratio: float | None) -> str:
    return "not measured" if ratio is None else f"{ratio:.2%}"


def _bytes(size: int) -> str:
    return f"{size / 1000:,.1f} kB"


def main() -> None:
    """Entry point: a user's mistake is one message and exit code 2, never a traceback."""
    try:
        app()
    except EdgewrightError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
