"""``edgewright show``: the headline of a report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from pipeline.cli.output import Json, say
from pipeline.execution.log import LOG
from pipeline.report import units
from pipeline.report.model import Parity, Report, read_report
from pipeline.target import Measured


def show(report: Annotated[Path, typer.Argument(help="A report.json.")], json: Json = False) -> None:
    """Print the headline of a report.

    For example:

        edgewright show reports/my_model/report.json
    """
    found = read_report(report)
    say(summary(found), document(found, report.parent), as_json=json)


def document(report: Report, folder: Path) -> dict[str, Any]:
    """The headline for a program: the verdict, where the files are, and a row for each model.

    Args:
        folder: Of the run; all paths start with it.
    """
    from pipeline.report.verdict import verdict

    found = verdict(report)
    return {
        "name": report.run.recipe.get("name"),
        "verdict": {"tone": found.tone, "passed": found.tone == "good", "text": found.sentence},
        "folder": str(folder),
        "report": str(folder / "report.json"),
        "page": str(folder / "report.html"),
        "log": str(folder / LOG) if (folder / LOG).is_file() else None,
        "duration_s": report.run.duration_s,
        "warnings": list(report.warnings),
        "rows": _rows(report, folder),
    }


def _rows(report: Report, folder: Path) -> list[dict[str, Any]]:
    """One row for the original and each target, with the units in the names; null is unknown."""
    from pipeline.report.headline import headline, main_metric

    artifacts = {target.target: target.artifact for target in report.targets}
    reasons = {target.target: target.reason for target in report.targets}
    rows = []
    for line in headline(report):
        artifact = artifacts.get(line.name)
        measured = line.latency if isinstance(line.latency, Measured) else None
        rows.append(
            {
                "name": line.name,
                "status": line.status,
                "reason": reasons.get(line.name),
                "detail": line.detail,
                "artifact": None if artifact is None else str(folder / artifact.path),
                "metric": main_metric(report).name,
                "value": line.metric,
                "change": line.change,
                "interval_95": line.interval,
                "size_bytes": line.size_bytes,
                "latency_ns": None if measured is None else measured.median_ns,
                "speedup_vs_fp32": None if measured is None else measured.speedup_vs_fp32_same_runtime,
                "parity": None if line.parity is None else line.parity.model_dump(mode="json", exclude_none=True),
                "budget": line.budget,
            }
        )
    return rows


def summary(report: Report) -> str:
    """The headline table, the original and every target on a line each, and the verdict."""
    from pipeline.report.headline import headline, main_metric, timed_steps
    from pipeline.report.verdict import TITLES, verdict

    main, steps = main_metric(report), timed_steps(report)
    latency = "latency" if steps is None else f"a step of {steps}"
    rows = [("", main.name, "size", latency, "vs FP32", "parity", "budget")]
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
