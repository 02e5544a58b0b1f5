import re

import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset

from pipeline.data.open import from_dataset
from pipeline.recipe import TfliteConfig
from pipeline.stages.benchmark import benchmark
from pipeline.target import Exported
from pipeline.tasks.comparison import sqnr_db
from pipeline.tasks.prediction import predictor
from targets.tflite import TfliteTarget
from targets.tflite.placement import CONVERTS, KEPT_REASONS
from tests.networks.architectures import ARCHITECTURES
from tests.targets.float_layers import calibrated
from tests.targets.tflite.programs import QuantizedLinear, model

NPUS = ("ethos-u55-256", "ethos-u85-256")
IN_FLOAT = {"DEQUANTIZE", "HARD_SWISH", "QUANTIZE"}


@pytest.mark.slow
def test_views_of_a_convolution_lower_when_the_converter_moves_it_to_nhwc(tmp_path):
    """MobileViT's windows: a view of an NCHW tensor that would need a copy in NHWC."""
    lowered = TfliteTarget().lower(calibrated("mobilevit"), tmp_path, name="model")
    assert lowered.path.exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet", "mobilenet_v2", "mobilenet_v3", "efficientnet", "densenet"])
def test_cnns_run_as_integers_in_one_partition_and_on_the_npu(name, tmp_path):
    architecture = ARCHITECTURES[name]
    program = calibrated(name)
    target = TfliteTarget(TfliteConfig(npu=NPUS))
    lowered = target.lower(program, tmp_path, name="model")
    placement = target.placement(lowered)
    assert {fallback.op for fallback in placement.fallback} <= IN_FLOAT
    assert {fallback.reason for fallback in placement.fallback} <= {KEPT_REASONS["HARD_SWISH"], CONVERTS}
    assert "1 XNNPACK partition" in placement.source
    for estimate in target.estimates(lowered):
        assert estimate.placement.fallback == ()
        assert estimate.median_ns > 0

    (x,) = next(iter(architecture.samples(16, seed=7).batches(16))).inputs
    session = target.load(lowered, threads=1)
    outputs = torch.from_numpy(np.concatenate([session.run((image[None].numpy(),))[0] for image in x]))
    assert sqnr_db(predictor(program.module)((x,))[0], outputs) > 25


def test_benchmark_notes_that_the_reference_kernels_were_left_out_when_they_are_slow(tmp_path, monkeypatch):
    monkeypatch.setattr("targets.tflite.target.SLOW_S", 0.0)
    monkeypatch.setattr("pipeline.stages.benchmark.SECONDS_PER_CANDIDATE", 0.01)
    target, program = TfliteTarget(), model(QuantizedLinear(), (2,), quantized=True)
    exported = Exported(
        target=target,
        status="ok",
        optimized=target.lower(program, tmp_path, name="model"),
        original=target.lower(program.original(), tmp_path, name="original"),
    )
    samples = from_dataset(TensorDataset(torch.randn(8, 2), torch.zeros(8, dtype=torch.int64)), program.inputs)
    _, (record,) = benchmark(program, [exported], samples, root=tmp_path)
    (note,) = record.notes
    assert re.search(r"reference kernels left out: they take \d+ ms a sample", note)
    assert record.cross_checks == ()
