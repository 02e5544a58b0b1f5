import hashlib
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from pipeline.core import TargetError, TensorSpec
from pipeline.models.load import from_module
from pipeline.stages.benchmark import _Artifacts, _in_session, _Timed, artifact_record
from pipeline.target import Lowered, measured
from pipeline.tasks.prediction import session_predictor


def test_measured_statistics_equal_numpy_when_samples_are_random() -> None:
    samples = tuple(np.random.default_rng(0).integers(1_000, 90_000, 101).tolist())
    record = measured(runtime="r", device="d", threads=1, warmup_ns=(), samples_ns=samples)
    for value, percentile in ((record.median_ns, 50), (record.p90_ns, 90), (record.p99_ns, 99)):
        assert value == pytest.approx(np.percentile(samples, percentile), abs=0.5)


class Doubler:
    """A session that takes exactly ``batch_size`` samples."""

    runtime, device, metrics_source = "test", "test", "measured"

    def __init__(self, batch_size: int) -> None:
        self.batch_size = batch_size

    def run(self, inputs):  # type: ignore[no-untyped-def]
        assert len(inputs[0]) == self.batch_size
        return (inputs[0] * 2,)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 7])
def test_session_predictor_returns_every_sample_when_the_batch_size_is_fixed(batch_size: int) -> None:
    inputs = torch.arange(10.0).reshape(5, 2)
    (outputs,) = session_predictor(Doubler(batch_size))((inputs,))  # type: ignore[arg-type]
    assert torch.equal(outputs, inputs * 2)


def test_artifact_record_changes_when_a_file_inside_a_package_changes(tmp_path: Path) -> None:
    package = tmp_path / "model.mlpackage"
    (package / "data").mkdir(parents=True)
    (package / "data" / "weights").write_bytes(b"1234")
    (package / "manifest").write_bytes(b"12")
    before = artifact_record(package, tmp_path)
    assert (before.path, before.size_bytes) == ("model.mlpackage", 6)
    (package / "data" / "weights").write_bytes(b"1235")
    assert artifact_record(package, tmp_path).sha256 != before.sha256
    single = artifact_record(package / "manifest", tmp_path)
    assert single.sha256 == hashlib.sha256(b"12").hexdigest()
    (package / "manifest.data").write_bytes(b"345")
    beside = artifact_record(package / "manifest", tmp_path)
    assert (beside.size_bytes, beside.sha256) == (5, hashlib.sha256(b"12345").hexdigest())


class Recording(Doubler):
    """Keeps what it was given."""

    def run(self, inputs):  # type: ignore[no-untyped-def]
        self.given = inputs
        return inputs


def test_artifacts_are_timed_on_real_samples() -> None:
    ids = TensorSpec(name="ids", shape=(2,), dtype="int64")
    model = replace(from_module(torch.nn.Embedding(5, 2), [ids]), examples=(torch.tensor([[3, 4]]),))
    lowered = Lowered(path=Path("x"), variant="fp32", inputs=model.inputs, outputs=model.outputs, batch_size=2)
    session = Recording(2)
    timed = _Timed(model.module, [model.examples], None)
    _in_session(session, timed, lowered).call()  # type: ignore[arg-type]
    assert session.given[0].tolist() == [[3, 4], [3, 4]]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_target_is_refused_when_a_metric_of_its_file_is_no_number(value: float) -> None:
    def run(metric: float) -> SimpleNamespace:
        return SimpleNamespace(
            scores=SimpleNamespace(values=lambda: {"correlation": metric}),
            session=SimpleNamespace(runtime="LiteRT"),
            lowered=SimpleNamespace(path=Path("model.tflite")),
        )

    artifacts = object.__new__(_Artifacts)
    artifacts.optimized, artifacts.original, artifacts.variants, artifacts.cross_checks = run(value), run(0.5), {}, []
    with pytest.raises(TargetError, match=rf"model\.tflite: correlation is {value} on LiteRT"):
        artifacts.require_metrics()
    artifacts.optimized = run(0.25)
    artifacts.require_metrics()
