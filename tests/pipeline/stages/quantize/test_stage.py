"""The stage on small real networks: the graph it writes, its record, and what it refuses."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from pipeline import from_module
from pipeline.core import DataError, Model, TensorSpec
from pipeline.data.open import from_dataset
from pipeline.data.samples import SampleSet
from pipeline.models.capture import fixed_batch_size
from pipeline.recipe import Budget, QuantizeConfig
from pipeline.stages.quantize import quantize
from pipeline.stages.quantize.judge import Judge
from pipeline.tasks.comparison import sqnr_db
from pipeline.tasks.lookup import suggested_for
from tests.networks.architectures import ARCHITECTURES
from tests.tasks import task

QUANTIZE = torch.ops.quantized_decomposed.quantize_per_tensor.default
WEIGHT_DEQUANTIZE = torch.ops.quantized_decomposed.dequantize_per_channel.default
SPEC = (TensorSpec(name="x", shape=(4,)),)


def quantized(name: str = "resnet", **config: object) -> tuple[Model, Model]:
    architecture = ARCHITECTURES[name]
    original = architecture.model()
    result = quantize(
        original,
        QuantizeConfig(**config),  # type: ignore[arg-type]
        architecture.samples(32),
        budget=Budget(metric="agreement", max_drop=0.1),
        held_out=architecture.samples(32, seed=2),
    )
    return original, result


@pytest.fixture(scope="module")
def resnet() -> tuple[Model, Model]:
    return quantized()


def test_quantize_leaves_its_input_alone(resnet: tuple[Model, Model]) -> None:
    original, result = resnet
    fresh = ARCHITECTURES["resnet"].model()
    for name, value in original.module.state_dict().items():
        torch.testing.assert_close(value, fresh.module.state_dict()[name], rtol=0, atol=0)
    assert result.quantized
    assert not original.quantized


def test_quantized_outputs_follow_the_float_module(resnet: tuple[Model, Model]) -> None:
    original, result = resnet
    images = next(iter(ARCHITECTURES["resnet"].samples(64, seed=3).batches(64))).inputs
    with torch.no_grad():
        assert sqnr_db(original.module(*images), result.module(*images)) > 24


def test_program_takes_any_batch_size(resnet: tuple[Model, Model]) -> None:
    _, result = resnet
    for size in (1, 5):
        assert result.module(torch.zeros(size, 1, 28, 28)).shape == (size, 10)


def test_every_weight_is_narrow_range_and_symmetric(resnet: tuple[Model, Model]) -> None:
    _, result = resnet
    nodes = [node for node in result.module.graph.nodes if node.target == WEIGHT_DEQUANTIZE]
    assert len(nodes) == 7  # stem, two blocks of two, one projection, classifier
    for node in nodes:
        assert node.args[3:6] == (0, -127, 127)
        assert not getattr(result.module, node.args[2].target).any()


def test_no_range_is_taken_between_an_operator_and_its_relu(resnet: tuple[Model, Model]) -> None:
    _, result = resnet
    for node in result.module.graph.nodes:
        if node.target == torch.ops.aten.relu.default:
            assert node.all_input_nodes[0].target in (torch.ops.aten.conv2d.default, torch.ops.aten.add.Tensor)
            assert [user.target for user in node.users] == [QUANTIZE]


def test_record_tells_trials_choice_and_share_of_integer_macs(resnet: tuple[Model, Model]) -> None:
    _, result = resnet
    (record,) = result.history
    details = record.details
    assert details["int8_macs_ratio"] == 1.0
    tried = [(trial["method"], trial["bias_correction"]) for trial in details["trials"]]
    assert tried[:4] == [(m, b) for m in ("minmax", "output_mse") for b in ("empirical", "analytic")]
    assert [trial["equalised"] for trial in details["trials"]] == [False] * 4 + [True] * (len(tried) - 4)
    assert abs(details["held_out"]["sqnr_db"] - details["chosen"]["sqnr_db"]) < 0.5  # the simulation is the program
    within = [trial for trial in details["trials"] if trial["within_budget"]]
    assert details["chosen"] == max(within or details["trials"], key=lambda trial: trial["sqnr_db"])
    assert record.skipped == ()


def test_budget_is_one_sample_at_least_when_few_are_held_out() -> None:
    model = linear()
    data = from_dataset([(torch.randn(4),) for _ in range(20)], model.inputs)
    made = suggested_for(model.module, data)
    wrong = copy.deepcopy(model.module)
    for drop, allowed in ((0.01, 1 / 20), (0.1, 0.1)):
        judge = Judge(model.module, data, made, (Budget(metric="agreement", max_drop=drop),), 20)
        next(wrong.parameters()).data += 0.1
        score = judge(wrong)
        assert score.budget_used == pytest.approx((1 - score.metric) / allowed)


class Uneven(nn.Module):
    """A regressor with a layer that eight bits cannot hold: one of its values is a thousand times the others."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.uneven, self.last = nn.Linear(4, 16), nn.Linear(16, 16), nn.Linear(16, 1)
        self.uneven.weight.data[0] *= 1000
        self.last.weight.data[:, 0] /= 1000

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.uneven(self.first(x).relu()))


def values_of(module: nn.Module, count: int, seed: int) -> SampleSet:
    """Samples with the module's own answers as labels."""
    inputs = torch.randn(count, 4, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        return from_dataset(list(zip(inputs, module(inputs), strict=True)), SPEC)


def test_mixed_precision_spends_float_layers_by_the_tasks_metric() -> None:
    module = Uneven().eval()
    made = task("regression", torch.zeros(1, 1))
    config = QuantizeConfig(observers=("minmax",), equalisation=False, bias_correction=False)

    def details(max_drop: float) -> dict[str, Any]:
        result = quantize(
            from_module(module, SPEC),
            config,
            values_of(module, 64, seed=1),
            budget=Budget(metric="mae", max_drop=max_drop),
            held_out=values_of(module, 64, seed=2),
            task=made,
        )
        return result.history[-1].details

    loose, tight = details(max_drop=10.0), details(max_drop=0.02)
    assert (loose["held_out"]["metric"], loose["chosen"]["float_layers"]) == ("mae", ())
    assert loose["held_out"]["int8"] > 0.02  # more than the tight budget allows
    assert tight["chosen"]["float_layers"]
    assert tight["held_out"]["int8"] <= 0.02
    assert tight["chosen"]["within_budget"]
    assert len(tight["held_out"]["outputs_db"]) == 1


def test_named_modules_stay_in_float_and_are_listed() -> None:
    _, result = quantized(skip=("classifier",), observers=("minmax",))
    (record,) = result.history
    assert [(entry.layer, entry.reason) for entry in record.skipped] == [("classifier", "left in float by the recipe")]
    assert 0.9 < record.details["int8_macs_ratio"] < 1.0


def test_hidden_values_share_parameters_when_an_operator_only_moves_them() -> None:
    _, result = quantized("control_flow", observers=("minmax",))
    pool = next(node for node in result.module.graph.nodes if "max_pool2d" in str(node.target))
    (after,) = (user.args[1:3] for user in pool.users)
    assert pool.all_input_nodes[0].args[1:3] == after


class Values(torch.utils.data.Dataset[torch.Tensor]):
    def __init__(self, *rows: list[float]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.tensor(self.rows[index])


def linear() -> Model:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    return Model(module=module, reference=copy.deepcopy(module), inputs=SPEC)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")], ids=["nan", "inf"])
def test_calibration_data_is_refused_naming_the_sample_when_it_is_not_finite(bad: float) -> None:
    data = from_dataset(Values([1.0, 2.0, 3.0, 4.0], [1.0, bad, 0.0, 0.0]), SPEC)
    with pytest.raises(DataError, match="sample 1 of 'x' holds NaN or infinity"):
        quantize(linear(), QuantizeConfig(), data, budget=Budget(), held_out=data.take(1))


def test_a_layer_stays_in_float_with_the_activation_behind_it_that_the_recipe_skips() -> None:
    data = from_dataset(Values([1.0, -2.0, 3.0, 4.0], [0.5, 1.0, -1.0, 2.0]), SPEC)
    config = QuantizeConfig(skip=("1",), observers=("minmax",))
    result = quantize(linear(), config, data, budget=Budget(), held_out=data)
    reasons = {entry.layer: entry.reason for entry in result.history[-1].skipped}
    assert reasons == {"0": "the clamp behind it stays in float", "1": "left in float by the recipe"}


def test_one_calibration_sample_is_enough() -> None:
    data = from_dataset(Values([1.0, -2.0, 3.0, 4.0]), SPEC)
    result = quantize(linear(), QuantizeConfig(), data, budget=Budget())
    x = torch.tensor([[1.0, -2.0, 3.0, 4.0]])
    with torch.no_grad():
        assert sqnr_db(linear().module(x), result.module(x)) > 30


def test_activations_that_never_fire_and_dead_channels_stay_finite() -> None:
    model = linear()
    with torch.no_grad():
        model.module[0].bias.fill_(-100.0)  # type: ignore[index, union-attr, operator]
        model.module[2].weight[1].zero_()  # type: ignore[index, union-attr, operator]
    data = from_dataset(Values([1.0, -2.0, 3.0, 4.0], [0.0, 0.0, 0.0, 0.0]), SPEC)
    result = quantize(model, QuantizeConfig(), data, budget=Budget())
    torch.testing.assert_close(result.module(torch.zeros(2, 4)), model.module(torch.zeros(2, 4)), rtol=0.01, atol=0.01)


def test_batch_stays_dynamic_when_the_program_is_captured_again(resnet: tuple[Model, Model]) -> None:
    from pipeline.models.capture import capture

    _, result = resnet
    assert fixed_batch_size(capture(result.module, result.inputs)) is None
    assert fixed_batch_size(capture(result.module, result.inputs, batch_size=4)) == 4


def test_moved_values_of_a_prescribed_grid_have_a_range_where_that_operator_stays_in_float() -> None:
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate = nn.Softmax(1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.gate(x).unflatten(1, (2, 2)) * 4

    original = from_module(Gated().eval(), SPEC)
    x = torch.randn(32, 4)
    samples = from_dataset([(row,) for row in x], SPEC)
    config = QuantizeConfig(skip=("gate",))
    result = quantize(original, config, samples, budget=Budget(metric="agreement"))
    assert [entry.layer for entry in result.history[-1].skipped] == ["gate"]
    with torch.no_grad():
        assert sqnr_db(original.module(x), result.module(x)) > 30


def test_a_model_whose_code_fixes_its_batch_has_a_share_of_integer_macs() -> None:
    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(x.view(len(x), 4))

    samples = from_dataset([(torch.randn(4),) for _ in range(16)], SPEC)
    result = quantize(from_module(Fixed().eval(), SPEC), QuantizeConfig(), samples, budget=Budget(metric="agreement"))
    assert result.history[-1].details["int8_macs_ratio"] == 1
