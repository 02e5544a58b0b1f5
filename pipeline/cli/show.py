"""``edgewright show``: the headline of a report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline.report import units
from pipeline.report.model import Parity, Report, read_report
from pipeline.target import Measured


def show(report: Annotated[Path, typer.Argument(help="A report.json.")]) -> None:
    """Print the headline of a report."""
    typer.echo(summary(read_report(report)))


def summary(report: Report) -> str:
    """The headline table, the original and every target on a line each, and the verdict."""
    from pipeline.report.headline import headline, main_metric
    from pipeline.report.verdict import TITLES, verdict

    main = main_metric(report)
    rows = [("", main.name, "size", "latency", "vs FP32", "parity", "budget")]
    for line in headline(report):
        measured = line.latency if isinstance(line.latency, Measured) else None
        speedup = measured.speedup_vs_fp32_same_runtime if measured else None
        rows.append(
            (
                f"{line.name}, {line.detail}" if line.status in ("original", "ok") else f"{line.name}: {line.status}",
                "-" if line.metric is None else units.metric(line.metric, main),
                "-" if line.size_bytes is None else units.size(line.size_bytes),
                "-" if measured is None else units.milliseconds(measured.median_ns),
                "-" if speedup is None else units.times(speedup),
                "-" if line.parity is None else _parity(line.parity),
                {"unsure": "cannot tell", None: "-"}.get(line.budget, str(line.budget)),
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(
            text.ljust(width) if column == 0 else text.rjust(width)
            for column, (text, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    found = verdict(report)
    warned = [f"warning: {warning}" for warning in report.warnings]
    return "\n".join([*warned, *lines, "", f"{TITLES[found.tone]} {found.sentence}"])


def _parity(parity: Parity) -> str:
    """How the outputs follow the program: agreement of class scores, else the signal to noise ratio."""
    if parity.top1_agreement is not None:
        return units.percent(parity.top1_agreement)
    return "equal" if parity.sqnr_db is None else units.by_name("sqnr_db", parity.sqnr_db)
