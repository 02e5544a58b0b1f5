"""A report's headline as a table for a notebook: a verdict, one line a model, and what is missing."""

from __future__ import annotations

from html import escape

from pipeline.report import units
from pipeline.report.headline import Line, headline, main_metric, reasons
from pipeline.report.model import Report
from pipeline.report.verdict import TITLES, verdict
from pipeline.target import Latency

_STYLE = (
    "<style>.ew-report{font:13px/1.45 system-ui,sans-serif;max-width:60em}.ew-report table{border-collapse:collapse}"
    ".ew-report th,.ew-report td{padding:.25em .8em;text-align:right;border-bottom:1px solid #8884}"
    ".ew-report th:first-child,.ew-report td:first-child{text-align:left}.ew-report small{opacity:.7}"
    ".ew-report p{margin:.4em 0}</style>"
)
_COLUMNS = ("model", "size", "latency", "parity")


def table(report: Report) -> str:
    """The headline as HTML that needs nothing else; all text of the report's is escaped."""
    info, found = main_metric(report), verdict(report)
    heads = "".join(f"<th>{escape(text)}</th>" for text in (_COLUMNS[0], info.title, *_COLUMNS[1:]))
    rows = "".join(_row(line, report) for line in headline(report))
    missing = "".join(f"<li>{escape(what)}: {escape(why)}</li>" for what, why in reasons(report))
    doubts = "".join(f"<p>{escape(text)}</p>" for text in report.warnings)
    parts = (
        _STYLE,
        f"<p><b>{escape(TITLES[found.tone])}</b> {escape(found.sentence)}</p>{doubts}",
        f"<table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table>",
        f"<ul>{missing}</ul>" if missing else "",
    )
    return f'<div class="ew-report">{"".join(parts)}</div>'


def _row(line: Line, report: Report) -> str:
    info = main_metric(report)
    metric = "–" if line.metric is None else units.metric(line.metric, info)
    if line.change is not None:
        metric += f" ({units.change(line.change, info)})"
    cells = (
        metric,
        "–" if line.size_bytes is None else units.size(line.size_bytes),
        _latency(line.latency),
        _parity(line),
    )
    status = "" if line.status in ("original", "ok") else f" – {line.status}"
    name = f"{escape(line.name)} <small>{escape(line.detail)}{escape(status)}</small>"
    return f"<tr><td>{name}</td>" + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>"


def _latency(latency: Latency | None) -> str:
    if latency is None or latency.kind == "skipped":
        return "–"
    text = units.milliseconds(latency.median_ns)
    return f"{text} (estimated)" if latency.kind == "estimated" else text


def _parity(line: Line) -> str:
    if line.parity is None:
        return "–"
    db = line.parity.sqnr_db
    return "equal" if db is None else f"{units.significant(db)}{units.NO_BREAK_SPACE}dB"
