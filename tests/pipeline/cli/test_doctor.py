"""``edgewright doctor``: hardware by fake programs, extras by the package's own metadata, an answer without torch."""

from __future__ import annotations

import json
import os
import stat
import time
from pathlib import Path

import pytest

from pipeline.cli import doctor as command
from pipeline.cli.doctor import measurable
from pipeline.machine import survey as machine
from pipeline.machine.survey import survey
from tests.pipeline.cli.conftest import edgewright


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of programs that takes the place of the system's."""
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}/bin{os.pathsep}/usr/bin")
    return tmp_path


def install(folder: Path, name: str, script: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod((folder / name).stat().st_mode | stat.S_IXUSR)


def test_document_has_versions_extras_and_hardware(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert edgewright(monkeypatch, "doctor", "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert document["packages"]["torch"]
    assert {"onnx", "coreml", "tflite"} <= {extra["name"] for extra in document["extras"]}
    assert document["machine"]["cores"] >= 1
    assert document["machine"]["disk_free_bytes"] > 0
    assert set(document["measurable"]) == {"onnx", "coreml", "tflite"}


def test_missing_extra_is_named_with_the_line_that_installs_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = command._version
    monkeypatch.setattr(command, "_version", lambda name: None if name == "onnxruntime" else found(name))
    assert edgewright(monkeypatch, "doctor") == 0
    printed = capsys.readouterr().out
    assert "onnx        missing onnxruntime: pip install 'edgewright[onnx]'" in printed
    assert "onnx        nothing: pip install 'edgewright[onnx]'" in printed


def test_gpu_and_phones_are_those_that_the_programs_name(programs: Path) -> None:
    install(programs, "nvidia-smi", "echo 'NVIDIA H200, 570.1, 143771 MiB'")
    listed = "List of devices attached\\nR5C\\tdevice\\nX9\\tunauthorized\\n"
    install(programs, "adb", f"printf '{listed}'")
    found = survey()
    assert found.gpu == ("NVIDIA H200, 570.1, 143771 MiB",)
    assert found.phones == ("R5C",)
    assert found.phones_note == "X9 is unauthorized"
    assert "latency on the phones R5C" in measurable(found, {"tflite"})["tflite"]


def test_program_that_hangs_is_not_waited_for(programs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "SECONDS", 0.2)
    install(programs, "adb", "exec sleep 60")
    install(programs, "nvidia-smi", "exit 9")
    started = time.monotonic()
    found = survey()
    assert time.monotonic() - started < 10
    assert found.gpu == found.phones == ()
    assert "does not answer" in found.phones_note
    assert "finds none" in found.gpu_note


def test_processor_is_read_from_linux_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nmodel name\t: Some CPU\nflags\t\t: fpu avx2 avx512_vnni\n")
    monkeypatch.setattr(machine, "CPUINFO", tmp_path / "cpuinfo")
    found = survey()
    assert (found.cpu, found.cpu_features) == ("Some CPU", ("avx2", "avx512_vnni"))
