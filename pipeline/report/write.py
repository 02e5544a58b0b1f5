"""Reports on disk: ``report.json`` and ``report.html``, each written completely or not at all."""

from __future__ import annotations

import logging
import re
from pathlib import Path

from pipeline.core.files import write_text
from pipeline.report.html import render
from pipeline.report.model import Report

logger = logging.getLogger(__name__)


def write_report(report: Report, folder: Path) -> tuple[Path, Path]:
    """Write ``report.json`` and ``report.html`` into ``folder``, which is created if missing.

    Both are rendered before either is written, so that one cannot appear without the other.

    Returns:
        The two paths.

    Raises:
        ValidationError: The report would not load again, for example because a metric is not finite.
    """
    json_text, html_text = to_json(report), render(report)
    folder.mkdir(parents=True, exist_ok=True)
    json_path, html_path = folder / "report.json", folder / "report.html"
    write_text(json_path, json_text)
    write_text(html_path, html_text)
    logger.debug("wrote %s and %s", json_path, html_path)
    return json_path, html_path


def to_json(report: Report) -> str:
    """The report as indented JSON, raw samples on one line each, in full precision.

    Raises:
        ValidationError: The text would not load again.
    """
    indented = report.model_dump_json(indent=2)
    text = NUMBERS.sub(lambda found: f"[{' '.join(found[1].split())}]", indented)
    Report.model_validate_json(text)
    return f"{text}\n"


NUMBERS = re.compile(r"\[\n([\d\s,.eE+-]+)\]")
"""An array of numbers over several lines. A line break inside a JSON string is escaped, so no string can match."""
