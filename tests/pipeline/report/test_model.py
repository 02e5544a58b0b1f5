from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.core import EdgewrightError
from pipeline.report.model import Report, read_report
from pipeline.target import Estimated, Measured, Skipped


def test_frozen_report_loads_with_every_figure_when_it_is_of_format_1_0(report: Report) -> None:
    onnx, coreml, tflite = report.targets
    assert (report.schema_version, report.original.parameters, report.original.macs) == ("1.0", 175_290, 20_504_576)
    assert [stage.stage for stage in report.stages] == ["prune", "distill", "quantize"]
    assert onnx.metrics == {"top1": 0.9263}
    assert [type(latency) for latency in (onnx.latency[0], *coreml.latency)] == [Measured, Estimated, Skipped]
    assert tflite.parity is not None
    assert tflite.parity.sqnr_db is None


def test_report_keeps_keys_of_newer_versions_when_it_is_read_and_written(frozen_path: Path) -> None:
    newer = json.loads(frozen_path.read_text()) | {"added_later": {"a": [1]}}
    newer["targets"][0]["latency"][0]["energy_uj"] = 12.5
    again = json.loads(Report.model_validate(newer).model_dump_json())
    assert again["added_later"] == {"a": [1]}
    assert again["targets"][0]["latency"][0]["energy_uj"] == 12.5


def test_report_is_refused_with_its_field_when_a_latency_has_no_samples(frozen_path: Path, tmp_path: Path) -> None:
    broken = json.loads(frozen_path.read_text())
    broken["original"]["latency"][0]["samples_ns"] = []
    (tmp_path / "report.json").write_text(json.dumps(broken))
    with pytest.raises(EdgewrightError, match=r"original\.latency\.0\.measured\.samples_ns"):
        read_report(tmp_path / "report.json")


def test_report_is_refused_when_its_version_is_unknown(frozen_path: Path, tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text(
        frozen_path.read_text().replace('"schema_version": "1.0"', '"schema_version": "7"')
    )
    with pytest.raises(EdgewrightError, match="schema_version"):
        read_report(tmp_path / "report.json")


def test_missing_report_is_one_clear_error_when_the_path_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(EdgewrightError, match="no such file"):
        read_report(tmp_path / "none.json")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(b"", "is not a report: Invalid JSON", id="empty"),
        pytest.param(b"{", "is not a report: Invalid JSON", id="cut off"),
        pytest.param(b"\xff\xfe", "is not a report: Invalid JSON", id="no text"),
        pytest.param(b"[]", "is not a report: Input should be an object", id="a list"),
        pytest.param(b"{}", "is not a report: run: Field required", id="an empty object"),
    ],
)
def test_file_is_refused_in_one_message_when_it_is_no_report(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "report.json").write_bytes(content)
    with pytest.raises(EdgewrightError) as refusal:
        read_report(tmp_path / "report.json")
    assert message in refusal.value.problem


def test_folder_is_refused_when_given_instead_of_the_file(tmp_path: Path) -> None:
    with pytest.raises(EdgewrightError, match="Is a directory"):
        read_report(tmp_path)


def test_reading_imports_neither_torch_nor_matplotlib_when_a_report_is_opened(frozen_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; import pipeline.report.write, pipeline.report.compare\n"
        "from pipeline.report.model import read_report\n"
        f"read_report(Path({str(frozen_path)!r}))\n"
        "print(sorted({'torch', 'matplotlib', 'numpy'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_reading_takes_milliseconds_when_the_report_is_the_frozen_one(frozen_path: Path) -> None:
    def seconds() -> float:
        start = time.process_time()
        read_report(frozen_path)
        return time.process_time() - start

    assert min(seconds() for _ in range(5)) < 0.1
