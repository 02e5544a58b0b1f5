"""Whole networks: saved for Core ML and run by the interpreter, against other runtimes on the same network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node

from calibration_data.fashion_mnist import train as demo
from pipeline.core import Model
from pipeline.models.capture import example_inputs
from pipeline.recipe import Budget, CoremlConfig, QuantizeConfig
from pipeline.stages.quantize import quantize
from pipeline.target import Skipped, Target
from pipeline.tasks.comparison import Comparison
from pipeline.tasks.prediction import predictor
from targets.coreml import CoremlTarget
from targets.onnx import OnnxTarget
from tests.networks import architectures as models
from tests.networks.prunable import ARCHITECTURES


def comparison(tested: Target, reference: Target, model: Model, folder: Path) -> Comparison:
    """The outputs of two targets for one batch."""
    inputs = tuple(tensor.numpy() for tensor in example_inputs(model.inputs, 1))
    outputs = []
    for target in (tested, reference):
        lowered = target.lower(model, folder, name="model")
        outputs.append(tuple(torch.from_numpy(array) for array in target.load(lowered, threads=1).run(inputs)))
    result = Comparison(class_axis=1)
    result.update(*outputs)
    return result


@pytest.mark.slow
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_float_network_equals_onnxruntime_to_60_db(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    build, spec = ARCHITECTURES[name]
    network = build().eval()
    model = Model(module=network, reference=network, inputs=(spec,))
    assert comparison(CoremlTarget(), OnnxTarget(), model, tmp_path).sqnr_db >= 60


INT8_CNNS = ("resnet", "mobilenet_v2", "mobilenet_v3", "densenet", "unet", "control_flow")


@pytest.mark.slow
@pytest.mark.parametrize("name", INT8_CNNS)
def test_int8_cnn_equals_the_program_and_fp16_costs_less_than_int8(name: str, tmp_path: Path) -> None:
    """These networks are not trained, so every value that rounds differently grows from layer to layer.

    Exact is what the program itself is sure of: see `sure`.
    """
    architecture = models.ARCHITECTURES[name]
    budget = Budget(metric="agreement", max_drop=1.0)
    settings = QuantizeConfig(observers=("minmax",), equalisation=False)
    int8 = quantize(architecture.model(), settings, architecture.samples(32), budget=budget)
    (batch,) = architecture.samples(32, seed=2).batches(32)
    program = predictor(int8.module)(batch.inputs)

    exact = CoremlTarget(CoremlConfig(precision="float32"))
    steady = sure(int8, batch.inputs, program)
    assert steady.sum() >= 28
    images, answers = (tuple(tensor[steady] for tensor in tensors) for tensors in (batch.inputs, program))
    assert sqnr(exact, int8, images, answers, tmp_path) >= 100
    half = sqnr(CoremlTarget(), int8, batch.inputs, program, tmp_path)
    cost_of_int8 = Comparison(class_axis=1)
    cost_of_int8.update(program, predictor(int8.reference)(batch.inputs))
    assert half >= cost_of_int8.sqnr_db


def sure(model: Model, inputs: tuple[Tensor, ...], answers: tuple[Tensor, ...]) -> Tensor:
    """The samples that a program answers alike alone and in a batch, ``(N,) bool``.

    A convolution then takes its FP32 sums in another order; where that changes an answer, a value lies so close to the
    midway between two integers that FP32 cannot tell them apart, and no runtime's answer is more right than another's.
    """
    samples = zip(*(tensor.split(1) for tensor in inputs), strict=True)
    alone = zip(*(predictor(model.module)(sample) for sample in samples), strict=True)
    alike = [(torch.cat(one) == many).flatten(1).all(1) for one, many in zip(alone, answers, strict=True)]
    return torch.stack(alike).all(0)


class RoundedToHalf(Interpreter):
    """Runs a program and rounds every result to FP16: what Core ML's arithmetic makes of it, without Core ML."""

    def run_node(self, n: Node) -> Any:
        value = super().run_node(n)
        floats = n.op == "call_function" and isinstance(value, Tensor) and value.is_floating_point()
        return value.half().float() if floats else value


@pytest.mark.slow
def test_trained_int8_network_follows_the_program_as_far_as_fp16_allows(tmp_path: Path) -> None:
    """Of the demo's network: 40 dB in FP32 arithmetic, and in FP16 what the program itself has when rounded to FP16."""
    module = demo.load_trained()
    original = Model(module=module, reference=module, inputs=(demo.IMAGE,), outputs=("logits",))
    int8 = quantize(original, QuantizeConfig(), demo.committed_samples("train").take(256), budget=Budget())
    (batch,) = demo.committed_samples("test").take(400).batches(400)
    assert isinstance(int8.module, GraphModule)
    program = predictor(int8.module)(batch.inputs)
    with torch.no_grad():
        rounded = Comparison(class_axis=1)
        rounded.update((RoundedToHalf(int8.module).run(*batch.inputs),), program)
    assert sqnr(CoremlTarget(CoremlConfig(precision="float32")), int8, batch.inputs, program, tmp_path) >= 50
    assert sqnr(CoremlTarget(), int8, batch.inputs, program, tmp_path) >= rounded.sqnr_db - 1

    target = CoremlTarget()
    (in_fp32,) = target.cross_checks(target.lower(int8, tmp_path, name="model"), (batch.inputs[0][:1].numpy(),))
    assert not isinstance(in_fp32, Skipped)
    compared = Comparison(class_axis=1)
    compared.update((torch.from_numpy(in_fp32.run((batch.inputs[0].numpy(),))[0]),), program)
    assert compared.sqnr_db >= 40


def sqnr(
    target: CoremlTarget,
    model: Model,
    inputs: tuple[Tensor, ...],
    expected: tuple[Tensor, ...],
    folder: Path,
) -> float:
    """In dB, of a package's outputs against expected ones."""
    session = target.load(target.lower(model, folder, name="model"), threads=1)
    outputs = session.run(tuple(tensor.numpy() for tensor in inputs))
    compared = Comparison(class_axis=1)
    compared.update(tuple(torch.from_numpy(array) for array in outputs), expected)
    return compared.sqnr_db


CORE_AI = Path(__file__).parents[1] / "core_ai"


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(path.stem for path in CORE_AI.glob("*.npz")))
def test_float_network_equals_apples_core_ai_runtime(name: str, tmp_path: Path) -> None:
    """Its outputs are kept beside the script that makes them."""
    architecture = models.ARCHITECTURES[name]
    (batch,) = architecture.samples(8, seed=2).batches(8)
    target = CoremlTarget()
    lowered = target.lower(architecture.model(), tmp_path, name="model")
    (ours,) = target.load(lowered, threads=1).run(tuple(tensor.numpy() for tensor in batch.inputs))
    with np.load(CORE_AI / f"{name}.npz") as stored:
        theirs = stored["outputs"]
    compared = Comparison(class_axis=1)
    compared.update((torch.from_numpy(ours),), (torch.from_numpy(theirs),))
    assert compared.sqnr_db >= 60
    np.testing.assert_array_equal(ours.argmax(1), theirs.argmax(1))
