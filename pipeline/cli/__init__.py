"""The ``edgewright`` command: arguments and wiring only."""

from __future__ import annotations

import json
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from pipeline.core import EdgewrightError
from pipeline.recipe import Recipe, read_recipe
from pipeline.report import units
from pipeline.report.model import Report, read_report
from pipeline.report.schema import json_schema
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
    from pipeline.execution.apply import run as apply  # torch is imported only once the recipe is known to be good
    from pipeline.progress import console

    folder = out or Path("reports") / recipe.name
    report = apply(recipe, folder, root=path.parent, store=store)
    if not console.quiet:  # of several processes, the first speaks
        typer.echo(summary(report))
        typer.echo(f"report: {folder / 'report.html'}")


@app.command()
def search(
    recipe: Annotated[Path, typer.Argument(help="The recipe to vary.")],
    trials: Annotated[
        int, typer.Option(min=1, help="Finished trials the study shall have, earlier ones counted.")
    ] = 20,
    objective: Annotated[
        list[str] | None,
        typer.Option(
            help="top1, agreement, latency:<target> or size:<target>; repeatable. Default: top1, latency:onnx."
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Default: reports/<recipe's name>-search.")] = None,
    storage: Annotated[
        str | None, typer.Option(help="URL of a database that several workers share. Default: SQLite under --out.")
    ] = None,
) -> None:
    """Search pruning, distillation and quantization settings; write the Pareto front and a recipe for each point.

    Trials are judged on a held-out part of the training data. An interrupted search goes on when it is run again.
    """
    read = read_recipe(recipe)
    from pipeline.search.study import parse_objective, search

    objectives = [parse_objective(text) for text in objective or ("top1", "latency:onnx")]
    folder = out or Path("reports") / f"{read.name}-search"
    points = search(read, folder, trials=trials, objectives=objectives, root=recipe.parent, storage=storage)
    for point in points:
        typer.echo(f"trial {point.trial}: {', '.join(f'{name} {value:g}' for name, value in point.values.items())}")
    typer.echo(f"front: {folder / 'front.html'}")


class Schema(StrEnum):
    """What ``edgewright schema`` can print."""

    RECIPE = "recipe"
    REPORT = "report"


@app.command()
def schema(of: Annotated[Schema, typer.Argument(help="The recipe you write, or the report you get.")]) -> None:
    """Print a JSON Schema, for editors and programs."""
    typer.echo(json.dumps(Recipe.model_json_schema() if of is Schema.RECIPE else json_schema(), indent=2))


@app.command()
def show(report: Annotated[Path, typer.Argument(help="A report.json.")]) -> None:
    """Print the headline of a report."""
    typer.echo(summary(read_report(report)))


@app.command()
def compare(
    before: Annotated[Path, typer.Argument(help="The report.json to compare with.")],
    after: Annotated[Path, typer.Argument(help="The report.json to judge.")],
    html: Annotated[Path | None, typer.Option(help="Also write the comparison as an HTML page.")] = None,
    fail_on_regression: Annotated[bool, typer.Option(help="Exit with code 1 when anything got worse, for CI.")] = False,
) -> None:
    """Compare two reports: accuracy, sizes, and latencies with the machine's drift taken out."""
    from pipeline.report.compare import compare, render_html, render_text

    comparison = compare(read_report(before), read_report(after))
    typer.echo(render_text(comparison))
    if html is not None:
        html.write_text(render_html(comparison), encoding="utf-8")
    if fail_on_regression and comparison.regressions:
        raise typer.Exit(1)


@app.command()
def predict(
    model: Annotated[Path, typer.Argument(help="An .onnx, .tflite or .mlpackage.")],
    input: Annotated[Path, typer.Option("--input", "-i", help="npz with one array (N, ...) per input, by its name.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="npz to write, one array per output.")],
) -> None:
    """Run a deployed file in its own runtime; Core ML without a Mac: in the reference interpreter."""
    from pipeline.execution import deployed as artifact

    for name, array in artifact.predict(model, input, output).items():
        typer.echo(f"{name}: {array.dtype} {list(array.shape)}")


@app.command()
def inspect(model: Annotated[Path, typer.Argument(help="An .onnx, .tflite or .mlpackage.")]) -> None:
    """Show which operators of a deployed file run accelerated, and why the others do not."""
    from pipeline.execution import deployed as artifact

    placement = artifact.inspect(model)
    typer.echo(f"{placement.accelerated} of {placement.operators} operators accelerated ({placement.source})")
    for fallback in placement.fallback:
        typer.echo(f"  {fallback.count} x {fallback.op}: {fallback.reason}")
    if placement.before is not None:
        before = placement.before
        typer.echo(f"without our rewriting: {before.accelerated} of {before.operators}")
    if placement.slowest:
        typer.echo("slowest operators, one sample on one thread:")
    for operator in placement.slowest:
        time = units.milliseconds(operator.median_ns)
        typer.echo(f"  {time} ({operator.share:.1%})  {operator.op} {operator.name}")


def summary(report: Report) -> str:
    """The headline table: the original and every target, one line each."""
    from pipeline.report.html import headline

    rows = [("", report.budget.metric, "size", "latency", "vs FP32", "parity", "budget")]
    for line in headline(report):
        measured = line.latency if isinstance(line.latency, Measured) else None
        speedup = measured.speedup_vs_fp32_same_runtime if measured else None
        parity = line.parity.top1_agreement if line.parity else None
        rows.append(
            (
                f"{line.name}, {line.detail}" if line.status in ("original", "ok") else f"{line.name}: {line.status}",
                "-" if line.metric is None else units.percent(line.metric),
                "-" if line.size_bytes is None else units.size(line.size_bytes),
                "-" if measured is None else units.milliseconds(measured.median_ns),
                "-" if speedup is None else units.times(speedup),
                "-" if parity is None else units.percent(parity),
                {True: "met", False: "exceeded", None: "-"}[line.within_budget],
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            text.ljust(width) if column == 0 else text.rjust(width)
            for column, (text, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )


def main() -> None:
    """Entry point: a user's mistake is one message and exit code 2, never a traceback."""
    try:
        app()
    except EdgewrightError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
