"""Both runtimes on real images, with networks that have learned something: the committed ResNet and a small ViT."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from calibration_data.fashion_mnist.train import committed_samples, load_trained
from pipeline.core import ModelArtifact
from pipeline.data import from_dataset
from pipeline.metrics import Comparison, predictor, session_predictor
from pipeline.recipe import Budget, QuantizeConfig
from pipeline.stages.quantize import quantize
from targets.tflite import TfliteTarget, parity
from targets.tflite.session import ReferenceSession
from tests.models import RGB, ViT

pytestmark = pytest.mark.slow

SETTINGS = QuantizeConfig(observers=("minmax",), bias_correction=False, mixed_precision=False)


def trained_vit(samples):
    """A minute transformer after one epoch: about 80 % top-1."""
    torch.manual_seed(0)
    vit = ViT()
    optimizer = torch.optim.AdamW(vit.parameters(), 3e-3)
    for batch in samples.loader(128, shuffle_seed=0):
        loss = F.cross_entropy(vit(*batch.inputs), batch.labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return vit.eval()


def as_rgb(samples):
    """Grey 28x28 images as colour images of 32x32."""
    batch = next(samples.batches(len(samples)))
    images = F.pad(batch.inputs[0], (2, 2, 2, 2), value=float(batch.inputs[0].min())).repeat(1, 3, 1, 1)
    return from_dataset(TensorDataset(images, batch.labels), RGB)


@pytest.fixture(scope="module", params=["resnet", "vit"])
def deployed(request, tmp_path_factory):
    """A quantized program, its file, and images that neither has seen."""
    train, test = committed_samples("train"), committed_samples("test")
    test = test.take(2000 if request.param == "vit" else 400)  # the reference kernels are slow on convolutions
    if request.param == "vit":
        train, test = as_rgb(train), as_rgb(test)
        module = trained_vit(train)
    else:
        module = load_trained()
    model = ModelArtifact(module=module, reference=module, inputs=train.inputs)
    program = quantize(model, SETTINGS, train.take(128), budget=Budget(metric="agreement"))
    lowered = TfliteTarget().lower(program, tmp_path_factory.mktemp(request.param), name="model")
    return request.param, program.module, lowered, next(test.batches(len(test)))


@pytest.mark.parametrize("reference_kernels", [True, False], ids=["reference kernels", "XNNPACK"])
def test_runtimes_agree_with_the_program_on_real_images(deployed, reference_kernels):
    _, program, lowered, batch = deployed
    expected = predictor(program)(batch.inputs)
    if reference_kernels:
        outputs = session_predictor(ReferenceSession(lowered.path))(batch.inputs)
    else:
        outputs = session_predictor(TfliteTarget().load(lowered, threads=1))(batch.inputs)
    comparison = Comparison()
    comparison.update(outputs, expected, batch.labels)
    assert comparison.agreement >= 0.995
    assert comparison.top1 > 0.7
    assert comparison.sqnr_db > 35


@pytest.mark.parametrize("reference_kernels", [True, False], ids=["reference kernels", "XNNPACK"])
def test_layers_differ_by_at_most_one_step_on_a_real_image(deployed, reference_kernels):
    name, program, lowered, batch = deployed
    sample = tuple(tensor[:1] for tensor in batch.inputs)
    found = parity.layers(program, lowered.path, sample, reference_kernels=reference_kernels)
    assert len(found) >= (13 if name == "resnet" else 60)
    assert parity.first_divergence(found) is None
    assert np.mean([layer.differing_ratio for layer in found]) < 0.005


def test_every_operator_runs_in_one_partition(deployed):
    _, _, lowered, _ = deployed
    placement = TfliteTarget().placement(lowered)
    assert "1 XNNPACK partition" in placement.source
    assert not [fallback for fallback in placement.fallback if "outside" in fallback.reason]
