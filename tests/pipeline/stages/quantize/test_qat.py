"""Quantization-aware training, on networks trained on Fashion-MNIST."""

import copy
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e

import targets
from calibration_data.fashion_mnist.harder.train import load_trained
from calibration_data.fashion_mnist.train import IMAGE, committed_samples
from pipeline.core import Model, StageError, TensorSpec
from pipeline.data.samples import SampleSet
from pipeline.recipe import Budget, QatConfig, QuantizeConfig
from pipeline.stages.quantize import quantize
from pipeline.stages.quantize.graph.canonical import canonical_graph
from pipeline.stages.quantize.improve.correction import bias_name
from pipeline.stages.quantize.qat import LearnedGrid, train, trainable
from pipeline.stages.quantize.ranges.calibration import calibrate
from pipeline.stages.quantize.scales.grids import ActivationGrid, grids_of
from pipeline.stages.quantize.scales.products import moved, self_products_of
from pipeline.stages.quantize.scales.sums import sums_of, tie_free
from pipeline.stages.quantize.simulation import convert
from pipeline.tasks.comparison import Comparison, sqnr_db
from pipeline.tasks.evaluation import evaluate
from pipeline.tasks.lookup import suggested_for
from pipeline.tasks.prediction import predictor, session_predictor
from tests.pipeline.stages.quantize.prepared import prepare
from tests.tasks import follows


@pytest.fixture(scope="module")
def images() -> SampleSet:
    return committed_samples("train").take(96)


def model_of(module: nn.Module) -> Model:
    return Model(module=module, reference=module, inputs=(IMAGE,), outputs=("logits",))


@pytest.fixture(scope="module")
def silu_and_gates(images: SampleSet) -> tuple[nn.Module, torch.fx.GraphModule]:
    """The EfficientNet-like network, whose sigmoids have prescribed grids, and its prepared graph."""
    module = load_trained("efficientnet")
    calibrated = calibrate(canonical_graph(model_of(module)), images, batch_size=32)
    return module, prepare(calibrated, method="minmax", bias_correction="analytic")


def scales(prepared: torch.fx.GraphModule) -> list[float]:
    found = [module for module in prepared.modules() if isinstance(module, ActivationGrid)]
    return [grid.scale for grid in found]


def test_learned_grid_has_lsqs_gradient_when_values_lie_inside_and_outside() -> None:
    grid = LearnedGrid(scale=0.5, zero_point=-128)  # holds 0 to 127.5
    values = torch.tensor([[0.7, 200.0, -3.0]], requires_grad=True)
    grid(values).sum().backward()
    # Inside, d q/d s = round(v/s) - v/s = 1 - 1.4; above, 127 - (-128) = 255; below, 0.
    by_scale = (1 - 1.4) + 255 + 0
    assert grid.log_factor.grad is not None
    assert grid.log_factor.grad.item() == pytest.approx(by_scale * 0.5 / math.sqrt(3 * 127), rel=1e-5)
    assert values.grad is not None
    assert values.grad.tolist() == [[1.0, 0.0, 0.0]]


def test_learned_grid_keeps_to_its_new_parameters_when_it_is_settled() -> None:
    grid = LearnedGrid(scale=0.5, zero_point=-128)
    grid.settle(0.25, -127)
    with torch.no_grad():
        grid.log_factor.fill_(1.0)
    assert grid.scale.item() == 0.25
    assert grid(torch.tensor([[-9.0, 0.3, 99.0]])).tolist() == [[-0.25, 0.25, 63.5]]


def test_student_gives_exactly_the_programs_outputs_when_biases_are_not_rounded_yet(
    silu_and_gates: tuple[nn.Module, torch.fx.GraphModule], images: SampleSet
) -> None:
    _, prepared = silu_and_gates
    student, _ = trainable(prepared)
    (batch,) = images.batches(len(images))
    ours = predictor(student.eval())(batch.inputs)[0]
    program = convert_pt2e(copy.deepcopy(prepared), fold_quantize=False)
    assert torch.equal(ours, predictor(program)(batch.inputs)[0])


def test_whole_units_change_the_program_little_when_float16_holds_the_biases(
    silu_and_gates: tuple[nn.Module, torch.fx.GraphModule], images: SampleSet
) -> None:
    prepared = copy.deepcopy(silu_and_gates[1])
    biases = [value for name, value in prepared.named_parameters() if name.endswith(bias_name(""))]
    for bias in biases:
        bias.data = bias.data.half().float()
    (batch,) = images.batches(len(images))
    (ours,) = predictor(trainable(prepared)[0].eval())(batch.inputs)
    (program,) = predictor(convert(copy.deepcopy(prepared)))(batch.inputs)
    assert biases
    assert sqnr_db(program, ours) > 30


def test_student_leaves_batch_norms_frozen_when_it_trains(
    silu_and_gates: tuple[nn.Module, torch.fx.GraphModule], images: SampleSet
) -> None:
    _, prepared = silu_and_gates
    student, _ = trainable(prepared)
    student.train()
    (batch,) = images.batches(len(images))
    predict = predictor(student)  # without gradients; the student stays in training mode
    (together,), (alone,) = predict(batch.inputs), predict((batch.inputs[0][:8],))
    assert sqnr_db(together[:8], alone) > 30  # batch statistics would let the others show; rounding may flip a step


@pytest.mark.parametrize(("freeze_ratio", "moves"), [(0.0, False), (1.0, True)])
def test_ranges_stay_where_they_are_when_frozen(
    silu_and_gates: tuple[nn.Module, torch.fx.GraphModule], images: SampleSet, freeze_ratio: float, moves: bool
) -> None:
    teacher, prepared = silu_and_gates
    trained = copy.deepcopy(prepared)
    before = {name: tensor.clone() for name, tensor in trained.named_parameters()}
    config = QatConfig(batch_size=32, freeze_ratio=freeze_ratio)
    train(trained, teacher, images, suggested_for(teacher, images), config, seed=0)
    assert (scales(trained) != scales(prepared)) == moves
    assert any(not torch.equal(before[name], tensor) for name, tensor in trained.named_parameters())


def test_ranges_move_no_more_when_the_share_of_steps_is_reached(
    silu_and_gates: tuple[nn.Module, torch.fx.GraphModule], images: SampleSet
) -> None:
    teacher, prepared = silu_and_gates
    trained = copy.deepcopy(prepared)
    after_epochs: list[list[float]] = []

    def note_scales(student: nn.Module) -> None:
        after_epochs.append([grid.scale.item() for grid in student.modules() if isinstance(grid, LearnedGrid)])

    train(
        trained,
        teacher,
        images,
        suggested_for(teacher, images),
        QatConfig(epochs=3, batch_size=48),
        seed=0,
        validate=note_scales,
    )
    first, second, third = after_epochs  # three of the six steps are done in the middle of the second epoch
    assert first != second == third == scales(trained)


@pytest.mark.parametrize("freeze_ratio", [0.5, 1.0])
def test_learned_scales_are_such_that_every_runtime_rounds_alike(
    silu_and_gates: tuple[nn.Module, torch.fx.GraphModule], images: SampleSet, freeze_ratio: float
) -> None:
    teacher, prepared = silu_and_gates
    trained = copy.deepcopy(prepared)
    train(
        trained,
        teacher,
        images,
        suggested_for(teacher, images),
        QatConfig(batch_size=32, freeze_ratio=freeze_ratio),
        seed=0,
    )
    found = scales(trained)
    assert found != scales(prepared)
    assert [float(np.float16(scale)) for scale in found] == found
    for addition in sums_of(trained):
        grids = [*addition.terms, addition.total]
        settled = tie_free([grid.scale for grid in grids], [grid is addition.total for grid in grids])
        assert settled == [grid.scale for grid in grids]
    products = self_products_of(trained)
    left = [moved(product.integers(), product.unit / product.result.scale) for product in products]
    assert left == [0] * 12


def test_conversion_gives_the_students_outputs_when_training_has_moved_everything(
    silu_and_gates: tuple[nn.Module, torch.fx.GraphModule], images: SampleSet
) -> None:
    teacher, prepared = silu_and_gates
    trained = copy.deepcopy(prepared)
    students: list[nn.Module] = []
    train(
        trained,
        teacher,
        images,
        suggested_for(teacher, images),
        QatConfig(batch_size=32),
        seed=0,
        validate=students.append,
    )
    (batch,) = images.batches(len(images))
    learned = predictor(students[0])(batch.inputs)[0]
    program = convert_pt2e(trained, fold_quantize=False)
    assert torch.equal(learned, predictor(program)(batch.inputs)[0])


def test_training_is_refused_when_the_models_code_fixes_the_batch() -> None:
    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.stack([self.layer(sample) for sample in x])  # one layer call per sample: no other batch fits

    samples = committed_samples("train").take(1)
    module = Fixed().eval()
    model = Model(module=module, reference=module, inputs=(TensorSpec(name="x", shape=(4,)),))
    prepared = canonical_graph(model)
    with pytest.raises(StageError, match="fixes its batch size"):
        train(prepared, module, samples, follows(torch.zeros(1, 2)), QatConfig(), seed=0)


def test_quantize_is_refused_when_qat_has_nothing_to_train_on(images: SampleSet) -> None:
    with pytest.raises(StageError, match="training samples"):
        quantize(model_of(load_trained("mobilenet_v2")), QuantizeConfig(qat=QatConfig()), images, budget=Budget())


@pytest.mark.slow
def test_qat_ends_in_a_program_that_onnx_runs_alike_when_a_trained_network_is_quantized(tmp_path: Path) -> None:
    model = model_of(load_trained("mobilenet_v2"))
    data, test = committed_samples("train").take(1500), committed_samples("test").take(1000)
    fitted, held_out = data.split(300, 0)
    config = QuantizeConfig(qat=QatConfig(batch_size=64), equalisation=False)
    result = quantize(model, config, fitted.take(128), budget=Budget(), held_out=held_out, train=fitted)

    learned = result.history[-1].details["qat"]
    assert learned["samples"] == len(fitted)
    assert [epoch["epoch"] for epoch in learned["epochs"]] == [1]
    assert learned["kept"] == (learned["metric"] >= learned["post_training"])
    assert not grids_of(result.module)
    baseline = evaluate(model.module, test)["top1"]
    assert evaluate(result.module, test)["top1"] >= baseline - 0.01

    target = targets.get("onnx")
    lowered = target.lower(result, tmp_path, name="qat")
    run, program = session_predictor(target.load(lowered, threads=1)), predictor(result.module)
    parity = Comparison(class_axis=1)
    for batch in test.batches(250):
        parity.update(run(batch.inputs), program(batch.inputs))
    assert parity.agreement is not None
    assert parity.agreement >= 0.999
    assert parity.sqnr_db > 40
