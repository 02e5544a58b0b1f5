"""``edgewright compare``: two reports side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline.core.files import write_text
from pipeline.report.model import read_report


def compare(
    before: Annotated[Path, typer.Argument(help="The report.json to compare with.")],
    after: Annotated[Path, typer.Argument(help="The report.json to judge.")],
    html: Annotated[Path | None, typer.Option(help="Also write the comparison as an HTML page.")] = None,
    fail_on_regression: Annotated[bool, typer.Option(help="Exit with code 1 when anything got worse, for CI.")] = False,
) -> None:
    """Compare two reports: accuracy, sizes, and latencies with the machine's drift taken out.

    For example:

        edgewright compare before/report.json after/report.json --fail-on-regression
    """
    from pipeline.report.compare import compare, render_html, render_text

    comparison = compare(read_report(before), read_report(after))
    if html is not None:
        write_text(html, render_html(comparison))
    typer.echo(render_text(comparison))
    if fail_on_regression and comparison.regressions:
        raise typer.Exit(1)
