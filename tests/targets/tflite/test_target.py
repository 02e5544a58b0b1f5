import numpy as np
import pytest
import torch

from pipeline.metrics import predictor, sqnr_db
from pipeline.recipe import Budget, QuantizeConfig, TfliteConfig
from pipeline.stages.quantize import quantize
from targets.tflite import TfliteTarget
from tests.models import ARCHITECTURES

NPUS = ("ethos-u55-256", "ethos-u85-256")


def quantized(name):
    """One of the test networks, calibrated on 32 samples with the plainest settings."""
    architecture = ARCHITECTURES[name]
    config = QuantizeConfig(observers=("minmax",), bias_correction=False, equalisation=False, mixed_precision=False)
    return quantize(architecture.artifact(), config, architecture.samples(32), budget=Budget(metric="agreement"))


@pytest.mark.slow
def test_views_of_a_convolution_lower_when_the_converter_moves_it_to_nhwc(tmp_path):
    """MobileViT's windows: a view of an NCHW tensor that would need a copy in NHWC."""
    lowered = TfliteTarget().lower(quantized("mobilevit"), tmp_path, name="model")
    assert lowered.path.exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet", "mobilenet_v2", "mobilenet_v3", "efficientnet", "densenet"])
def test_cnns_run_as_integers_in_one_partition_and_on_the_npu(name, tmp_path):
    architecture = ARCHITECTURES[name]
    program = quantized(name)
    target = TfliteTarget(TfliteConfig(npu=NPUS))
    lowered = target.lower(program, tmp_path, name="model")

    placement = target.placement(lowered)
    assert placement.fallback == ()
    assert "1 XNNPACK partition" in placement.source
    for estimate in target.estimates(lowered):
        assert estimate.placement.fallback == ()
        assert estimate.median_ns > 0

    (x,) = next(iter(architecture.samples(16, seed=7).batches(16))).inputs
    session = target.load(lowered, threads=1)
    outputs = torch.from_numpy(np.concatenate([session.run((image[None].numpy(),))[0] for image in x]))
    assert sqnr_db(predictor(program.module)((x,))[0], outputs) > 25
