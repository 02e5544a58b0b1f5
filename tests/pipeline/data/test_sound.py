"""Recordings in tables and folders; values by hand."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from scipy.io import wavfile

from pipeline.core import DataError, Preprocessing, TensorSpec
from pipeline.data.open import open_samples
from pipeline.data.source import DataSource

MONO = (TensorSpec(name="sound", shape=(4,)),)
ROW = (TensorSpec(name="sound", shape=(1, 4)),)
STEREO = (TensorSpec(name="sound", shape=(2, 4)),)


def wav(path: Path, samples: Any, rate: int = 16_000, dtype: Any = np.int16) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    wavfile.write(path, rate, np.asarray(samples, dtype))
    return path


def read(source: DataSource, specs: Any = MONO, classes: Any = (), **preprocessing: Any) -> Any:
    samples = open_samples(source, specs, Preprocessing(**preprocessing), name="test", classes=classes)
    return next(samples.batches(99))


@pytest.mark.parametrize(
    ("dtype", "stored"),
    [
        (np.int16, [0, 16384, -32768, 8192]),
        (np.int32, [0, 1 << 30, -(1 << 31), 1 << 29]),
        (np.uint8, [128, 192, 0, 160]),
        (np.float32, [0, 0.5, -1, 0.25]),
        (np.float64, [0, 0.5, -1, 0.25]),
    ],
)
def test_recording_is_between_minus_one_and_one(dtype: Any, stored: Any, tmp_path: Path) -> None:
    wav(tmp_path / "a.wav", stored, dtype=dtype)
    (tmp_path / "set.csv").write_text("file,label\na.wav,1\n")
    source = DataSource(table=tmp_path / "set.csv", inputs=("file",))
    for specs in (MONO, ROW):
        assert read(source, specs).inputs[0].flatten().tolist() == [0, 0.5, -1, 0.25]


def test_channels_come_first(tmp_path: Path) -> None:
    wav(tmp_path / "a.wav", [[0, 4], [1, 5], [2, 6], [3, 7]], dtype=np.float32)
    (tmp_path / "set.jsonl").write_text('{"file": "a.wav"}\n')
    source = DataSource(table=tmp_path / "set.jsonl", inputs=("file",))
    assert read(source, STEREO).inputs[0].tolist() == [[[0, 1, 2, 3], [4, 5, 6, 7]]]


def test_folders_are_classes_of_recordings(tmp_path: Path) -> None:
    for number, name in enumerate(("no/1.wav", "yes/a/2.wav", "yes/3.WAV")):
        wav(tmp_path / name, [number] * 4, dtype=np.float32)
    batch = read(DataSource(folder=tmp_path), classes=("yes", "no"), sampling_rate=16_000)
    assert batch.labels.tolist() == [1, 0, 0]
    assert batch.inputs[0][:, 0].tolist() == [0, 2, 1]
    assert read(DataSource(folder=tmp_path, labels=None)).labels is None
    (tmp_path / "yes/4.mp3").write_bytes(b"ID3")
    with pytest.raises(DataError, match=r"4.mp3: is a .mp3 recording, and only .wav are read"):
        read(DataSource(folder=tmp_path))


def test_recordings_of_a_hugging_face_data_set_are_read(tmp_path: Path) -> None:
    path = wav(tmp_path / "a.wav", [0, 0.5, -1, 0.25], dtype=np.float32)
    rows = datasets.Dataset.from_dict({"audio": [{"bytes": path.read_bytes(), "path": None}], "label": [1]})
    rows.save_to_disk(tmp_path / "saved")
    source = DataSource(huggingface=tmp_path / "saved", inputs=("audio",))
    assert read(source).inputs[0].tolist() == [[0, 0.5, -1, 0.25]]


def test_recordings_that_are_not_the_models_are_refused(tmp_path: Path) -> None:
    good = wav(tmp_path / "good.wav", [0] * 4)
    cut = tmp_path / "cut.wav"
    cut.write_bytes(good.read_bytes()[:30])
    law = bytearray(good.read_bytes())
    law[20:22] = struct.pack("<H", 7)  # mu-law
    (tmp_path / "law.wav").write_bytes(law)
    (tmp_path / "text.wav").write_text("hello")
    wav(tmp_path / "slow.wav", [0] * 4, rate=8_000)
    wav(tmp_path / "long.wav", [0] * 8)
    wav(tmp_path / "both.wav", [[0, 0]] * 4)
    for name, message in {
        "text.wav": "text.wav: is not a readable WAV: ",
        "cut.wav": "cut.wav: is not a readable WAV: ",
        "law.wav": "law.wav: is not a readable WAV: ",
        "none.wav": "none.wav: no such file",
        "slow.wav": r"line 3: file: slow.wav: is sampled at 8000 Hz, and the others, .* at 16000 Hz",
        "long.wav": r"long.wav: has 8 samples \(0.00 s\), and 'sound' takes 4",
        "both.wav": "both.wav: has 2 channels, and 'sound' takes 1",
    }.items():
        (tmp_path / "set.csv").write_text(f"file,label\ngood.wav,0\n{name},1\n")
        with pytest.raises(DataError, match=message):
            read(DataSource(table=tmp_path / "set.csv", inputs=("file",)))
    (tmp_path / "set.csv").write_text("file,label\ngood.wav,0\n")
    with pytest.raises(DataError, match=r"good.wav: is sampled at 16000 Hz, and .* at 44100 Hz"):
        read(DataSource(table=tmp_path / "set.csv", inputs=("file",)), sampling_rate=44_100)
    with pytest.raises(DataError, match=r"is a recording, and 'x' is float32 \[1, 2, 2\]"):
        read(DataSource(table=tmp_path / "set.csv", inputs=("file",)), (TensorSpec(name="x", shape=(1, 2, 2)),))
