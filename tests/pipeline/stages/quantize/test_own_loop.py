"""Training in a loop of the caller's: a prepared network learns while it rounds, and becomes that very program."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss

from pipeline import from_dataset, from_module
from pipeline.core import Model, StageError, TensorSpec
from pipeline.data.samples import SampleSet
from pipeline.recipe import Budget, QatConfig, QuantizeConfig
from pipeline.stages.quantize import QatModule, convert, prepare_qat, quantize
from pipeline.tasks.comparison import sqnr_db

IMAGE = TensorSpec(name="image", shape=(1, 8, 8))
CONFIG = QuantizeConfig(observers=("minmax",), equalisation=False)
BUDGET = Budget(metric="agreement", max_drop=1.0)


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.drop, self.head = nn.Dropout(0.5), nn.Linear(8, 4)

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.drop(self.norm(self.stem(image)).relu().mean((2, 3))))


def images(count: int, seed: int) -> Tensor:
    return torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def samples() -> SampleSet:
    return from_dataset(images(32, 0), (IMAGE,))


@pytest.fixture(scope="module")
def model() -> Model:
    torch.manual_seed(0)
    return from_module(Network(), [IMAGE])


@pytest.fixture(scope="module")
def prepared(model: Model, samples: SampleSet) -> QatModule:
    return prepare_qat(model, CONFIG, samples, budget=BUDGET)


def trained(prepared: QatModule, steps: int = 30, *, freeze: bool = True) -> tuple[QatModule, list[float]]:
    """Teach the network other labels, as its user would."""
    module = copy.deepcopy(prepared).train()
    optimizer = torch.optim.Adam([each for each in module.parameters() if each.requires_grad], lr=0.02)
    x = images(64, 1)
    labels = (x.mean((1, 2, 3)) > 0).long()
    losses = []
    for step in range(steps):
        if freeze and step == steps // 2:
            module.freeze_ranges()
        optimizer.zero_grad()
        loss = cross_entropy(module(x), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return module.eval(), losses


def test_loop_of_the_callers_lowers_the_loss_and_the_program_is_what_was_trained(prepared: QatModule) -> None:
    module, losses = trained(prepared)
    assert losses[-1] < 0.7 * losses[0]
    result = convert(module)
    x = images(16, 2)
    with torch.no_grad():
        assert sqnr_db(module(x), result.module(x)) > 35  # biases are rounded, so a value may move by a step
        assert sqnr_db(prepared(x), result.module(x)) < 20  # it is another network than before
    (record,) = result.history
    assert (result.quantized, record.stage) == (True, "quantize")
    assert record.details["qat"]["loop"] == "the caller's"
    assert record.details["int8_macs_ratio"] == 1.0


def test_ranges_that_were_not_frozen_are_settled_by_the_conversion(prepared: QatModule) -> None:
    module, _ = trained(prepared, freeze=False)
    before = copy.deepcopy(module.state_dict())
    result, x = convert(module), images(16, 2)
    with torch.no_grad():
        assert sqnr_db(module(x), result.module(x)) > 25
    for name, value in module.state_dict().items():  # the training may go on
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)


def test_untrained_module_is_converted_to_the_program_that_quantize_gives(
    model: Model, samples: SampleSet, prepared: QatModule
) -> None:
    direct, x = quantize(model, CONFIG, samples, budget=BUDGET), images(16, 2)
    result = convert(prepared)
    with torch.no_grad():
        assert sqnr_db(direct.module(x), result.module(x)) > 35
    assert result.history[-1].config == direct.history[-1].config
    assert result.history[-1].skipped == direct.history[-1].skipped


def test_state_is_saved_and_loaded_with_the_ranges_that_were_learned(prepared: QatModule) -> None:
    module, _ = trained(prepared)
    other = copy.deepcopy(prepared)
    other.load_state_dict(module.state_dict())
    x = images(8, 3)
    with torch.no_grad():
        torch.testing.assert_close(other(x), module(x), rtol=0, atol=0)
        torch.testing.assert_close(convert(other).module(x), convert(module).module(x), rtol=0, atol=0)


def test_every_parameter_gets_a_gradient_and_modes_compute_the_same(prepared: QatModule) -> None:
    module, x = copy.deepcopy(prepared), images(8, 4)
    mse_loss(module.train()(x), torch.zeros(8, 4)).backward()
    assert [name for name, each in module.named_parameters() if each.grad is None] == []
    with torch.no_grad():
        torch.testing.assert_close(module.train()(x), module.eval()(x), rtol=0, atol=0)


def test_frozen_ranges_do_not_move(prepared: QatModule) -> None:
    module = copy.deepcopy(prepared)
    module.freeze_ranges()
    frozen = {name for name, each in module.named_parameters() if not each.requires_grad}
    assert frozen
    assert all("log_factor" in name for name in frozen)


def test_settings_of_our_own_loop_and_fixed_batches_are_refused(model: Model, samples: SampleSet) -> None:
    with pytest.raises(StageError, match="loop of its own"):
        prepare_qat(model, QuantizeConfig(qat=QatConfig()), samples, budget=BUDGET)

    class One(nn.Module):
        def forward(self, image: Tensor) -> Tensor:
            return image.view(1, 64).relu()

    one = from_dataset(images(4, 5), (IMAGE,))
    with pytest.raises(StageError, match="fixes its batch size"):
        prepare_qat(from_module(One(), [IMAGE], samples=one), CONFIG, one, budget=BUDGET)
