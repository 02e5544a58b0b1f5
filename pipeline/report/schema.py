"""The published JSON Schema of ``report.json`` (``report.schema.json`` beside this file)."""

from __future__ import annotations

from typing import Any

from pipeline.report.model import SCHEMA_VERSION, Report


def json_schema() -> dict[str, Any]:
    """JSON Schema 2020-12 of a report: what must be there, with room for what newer versions add."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"edgewright report {SCHEMA_VERSION}",
        **{key: value for key, value in Report.model_json_schema().items() if key != "title"},
    }
