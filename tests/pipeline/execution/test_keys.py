from pathlib import Path

from pipeline.execution.keys import code_sha256


def test_code_sha256_changes_when_a_source_changes(tmp_path: Path) -> None:
    source = tmp_path / "stage.py"
    source.write_text("x = 1")
    before = code_sha256(source)
    source.write_text("x = 2")
    assert code_sha256(source) != before
