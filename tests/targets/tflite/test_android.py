import stat

import pytest

from pipeline.recipe import AndroidConfig
from pipeline.target import Measured, Skipped
from targets.tflite.android import time_on_phone

# What benchmark_model prints, from TensorFlow's 2.4 to LiteRT's releases, shortened.
TOOL = """\
STARTING!
Log parameter values verbosely: [0]
Num threads: [4]
INFO: Initialized TensorFlow Lite runtime.
INFO: Initialized session in 17.187ms.
INFO: Running benchmark for at least 1 iterations and at least 0.5 seconds but terminate if exceeding 150 seconds.
INFO: count=1 curr=637079

INFO: count=520 first=2531 curr=2793 min=1171 max=9925 avg=1885.74 std=870 p5=1180 median=1870 p95=2400

INFO: Inference timings in us: Init: 66002, First inference: 637079, Warmup (avg): 6.37079e+05, Inference (avg): 1885.74
INFO: Note: as the benchmark tool itself affects memory footprint, the following is only APPROXIMATE to the actual \
memory footprint of the model at runtime. Take the information at your discretion.
INFO: Memory footprint delta from the start of the tool (MB): init=7.40234 overall=7.83203
"""


@pytest.fixture
def adb(tmp_path, monkeypatch):
    """A program called adb that answers as a phone does, and notes what it was asked."""

    def install(tool=TOOL, devices="List of devices attached\nR5CT\tdevice\n\n", code=0):
        (tmp_path / "tool.txt").write_text(tool)
        (tmp_path / "devices.txt").write_text(devices)
        script = tmp_path / "adb"
        script.write_text(
            "#!/bin/sh\n"
            f'echo "$@" >> {tmp_path}/asked.txt\n'
            f'case "$*" in devices) cat {tmp_path}/devices.txt;; *getprop*) echo Pixel 9;; '
            f"*--graph*) cat {tmp_path}/tool.txt >&2; exit {code};; esac\n"
        )
        script.chmod(script.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("PATH", str(tmp_path), prepend=":")

    return install


@pytest.fixture
def config(tmp_path):
    (tmp_path / "benchmark_model").touch()
    return AndroidConfig(benchmark_tool=tmp_path / "benchmark_model", threads=2)


def test_time_on_phone_reads_what_the_tool_prints(adb, config, tmp_path):
    adb()
    record = time_on_phone(tmp_path / "model.tflite", config)
    assert isinstance(record, Measured)
    assert record.samples_ns == (1_885_740,) * 5
    assert record.warmup_ns == (637_079_000,) * 5
    assert (record.device, record.threads) == ("Pixel 9 (R5CT)", 2)
    asked = (tmp_path / "asked.txt").read_text().splitlines()
    assert asked[2] == f"push {tmp_path}/benchmark_model /data/local/tmp/edgewright/benchmark_model"
    assert "--graph=/data/local/tmp/edgewright/model.tflite --num_threads=2" in asked[-1]


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ({"devices": "List of devices attached\n\n"}, "adb sees no device, not a single device"),
        ({"devices": "A\tdevice\nB\tdevice\n"}, "adb sees A, B, not a single device"),
        ({"tool": "Failed to load model\n", "code": 1}, "adb shell failed: Failed to load model"),
        ({"tool": "STARTING!\n"}, "benchmark_model printed no timings: STARTING!"),
    ],
    ids=["no device", "two devices", "tool fails", "no timings"],
)
def test_time_on_phone_is_skipped_with_the_tools_reason(adb, config, tmp_path, answer, reason):
    adb(**answer)
    record = time_on_phone(tmp_path / "model.tflite", config)
    assert isinstance(record, Skipped)
    assert record.reason == reason


def test_time_on_phone_is_skipped_when_adb_is_missing(config, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert time_on_phone(tmp_path / "model.tflite", config).reason.startswith("adb is not installed")


def test_time_on_phone_is_skipped_when_the_tool_is_missing(adb, tmp_path):
    adb()
    config = AndroidConfig(benchmark_tool=tmp_path / "nowhere", serial="R5CT")
    assert time_on_phone(tmp_path / "model.tflite", config).reason == f"no such file: {tmp_path}/nowhere"
