from __future__ import annotations

import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from pipeline.core import OutputError
from pipeline.report.model import Report, read_report
from pipeline.report.write import to_json, write_report


def test_report_is_equal_again_when_written_and_read(report: Report, tmp_path: Path) -> None:
    json_path, html_path = write_report(report, tmp_path / "new" / "folder")
    assert read_report(json_path) == report
    assert html_path.read_text().startswith("<!DOCTYPE html>")
    assert sorted(path.name for path in json_path.parent.iterdir()) == ["report.html", "report.json"]


def test_json_equals_the_plain_dump_when_parsed(report: Report) -> None:
    odd = report.original.model_copy(update={"note": "[\n 1,\n 2] [ 1,  2]", "ratios": [0.1 + 0.2, 1e-9]})
    changed = report.model_copy(update={"original": odd})
    assert json.loads(to_json(changed)) == json.loads(changed.model_dump_json())


def test_samples_share_one_line_when_written(report: Report) -> None:
    samples = report.original.latency[0].samples_ns  # type: ignore[union-attr]
    assert f'"samples_ns": [{", ".join(map(str, samples))}]' in to_json(report)


def test_nothing_is_written_when_a_metric_is_not_finite(report: Report, tmp_path: Path) -> None:
    write_report(report, tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    broken = report.original.model_copy(update={"metrics": {"top1": float("nan")}})
    with pytest.raises(ValidationError, match=r"original\.metrics\.top1"):
        write_report(report.model_copy(update={"original": broken}), tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_old_report_stays_whole_when_the_new_one_cannot_be_put_in_place(report: Report, tmp_path: Path) -> None:
    (tmp_path / "report.json").mkdir()  # a folder cannot be replaced by a file
    with pytest.raises(OutputError, match=r"report\.json"):
        write_report(report, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]
