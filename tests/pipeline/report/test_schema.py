from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest

import pipeline.report
from pipeline.report.model import Report
from pipeline.report.schema import json_schema
from pipeline.report.write import to_json

PUBLISHED = Path(pipeline.report.__file__).with_name("report.schema.json")


def test_published_schema_equals_the_generated_one_when_the_model_is_as_committed() -> None:
    """When a field is added: ``edgewright schema report > pipeline/report/report.schema.json``."""
    assert json.loads(PUBLISHED.read_text()) == json_schema()


def test_schema_is_itself_valid_when_checked_against_draft_2020_12() -> None:
    jsonschema.Draft202012Validator.check_schema(json_schema())


def test_written_report_validates_when_checked_by_jsonschema(report: Report) -> None:
    jsonschema.validate(json.loads(to_json(report)), json_schema(), cls=jsonschema.Draft202012Validator)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        pytest.param(("original", "macs"), -1, id="negative macs"),
        pytest.param(("original", "macs"), "many", id="macs as text"),
        pytest.param(("targets", 0, "status"), "perfect", id="unknown status"),
        pytest.param(("targets", 0, "latency", 0, "samples_ns"), [], id="no samples"),
        pytest.param(("targets", 0, "latency", 0, "kind"), "guessed", id="unknown kind of latency"),
        pytest.param(("schema_version",), "0.9", id="unknown version"),
    ],
)
def test_schema_refuses_a_report_when_a_field_is_wrong(
    report: Report, path: tuple[str | int, ...], value: object
) -> None:
    document = json.loads(to_json(report))
    place = document
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(document, json_schema(), cls=jsonschema.Draft202012Validator)
