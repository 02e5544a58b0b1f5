import csv
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.core import StageError, TensorSpec
from pipeline.data.open import from_dataset
from pipeline.data.samples import Batch, SampleSet
from pipeline.recipe import Augmentation, TrainingConfig
from pipeline.training.loop import EpochLog, best_epoch, fit

IMAGE = TensorSpec(name="image", shape=(1, 6, 6))


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.2), nn.Flatten(), nn.Linear(8 * 16, 3)
    )


def samples(count: int = 96) -> SampleSet:
    generator = torch.Generator().manual_seed(1)
    images, labels = torch.randn(count, 1, 6, 6, generator=generator), torch.arange(count) % 3
    images[:, 0, 0] += labels[:, None]
    return from_dataset(list(zip(images, labels.tolist(), strict=True)), (IMAGE,))


def cross_entropy(module: nn.Module, batch: Batch) -> Tensor:
    assert batch.labels is not None
    return functional.cross_entropy(module(*batch.inputs), batch.labels)


def weights(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


SGD = TrainingConfig(epochs=3, batch_size=16, learning_rate=0.05, augment=Augmentation(horizontal_flip=True, shift=1))


@pytest.mark.parametrize("momentum", [0.9, 0.5])
def test_fit_equals_a_plain_loop_when_nothing_is_random(momentum: float) -> None:
    module = nn.Linear(2, 2, bias=False)
    twin = nn.Linear(2, 2, bias=False)
    twin.load_state_dict(module.state_dict())
    vector = TensorSpec(name="x", shape=(2,))
    points = [(torch.tensor([1.0, 2.0]), 0)] * 8
    config = TrainingConfig(epochs=2, batch_size=4, momentum=momentum, max_grad_norm=0.1)  # which every step exceeds
    fit(module, cross_entropy, from_dataset(points, (vector,)), config, seed=0)

    optimizer = torch.optim.SGD(twin.parameters(), 0.05, momentum, weight_decay=5e-4, nesterov=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 0.05, total_steps=4, pct_start=0.5, base_momentum=momentum - 0.05, max_momentum=momentum + 0.05
    )
    for _ in range(4):
        optimizer.zero_grad()
        functional.cross_entropy(twin(torch.tensor([[1.0, 2.0]] * 4)), torch.zeros(4, dtype=torch.long)).backward()
        assert nn.utils.clip_grad_norm_(twin.parameters(), 0.1) > 0.1
        optimizer.step()
        schedule.step()
    assert torch.equal(module.weight, twin.weight)


def test_fit_gives_the_loss_augmented_images_when_a_change_is_asked_for() -> None:
    image = torch.arange(36.0).view(1, 6, 6)
    seen: list[bool] = []

    def look(module: nn.Module, batch: Batch) -> Tensor:
        for found in batch.inputs[0]:
            assert torch.equal(found, image) or torch.equal(found, image.flip(2))
            seen.append(torch.equal(found, image))
        return cross_entropy(module, batch)

    config = TrainingConfig(epochs=1, batch_size=16, augment=Augmentation(horizontal_flip=True))
    fit(network(), look, from_dataset([(image, 0)] * 64, (IMAGE,)), config, seed=0)
    assert len(seen) == 64
    assert 16 < sum(seen) < 48  # half of them, more or less


class KilledError(Exception):
    """Stands for kill -9: nothing after it runs."""


@pytest.mark.parametrize(
    "config",
    [
        SGD,
        SGD.model_copy(update={"optimizer": "adamw", "learning_rate": 0.01, "ema": 0.9}),
        SGD.model_copy(update={"early_stop": 2}),
    ],
    ids=["sgd", "adamw with moving average", "early stop"],
)
@pytest.mark.parametrize("killed_at", [2, 6, 9, 17])
def test_fit_ends_in_the_same_bits_when_it_is_killed_and_resumed(
    config: TrainingConfig, killed_at: int, tmp_path: Path
) -> None:
    config = config.model_copy(update={"checkpoint_minutes": 0.0})
    validate = lambda module: float(module[-1].weight.sum().sigmoid())  # noqa: E731  any metric will do
    whole = network()
    logs = fit(whole, cross_entropy, samples(), config, seed=3, validate=validate, log=tmp_path / "whole.csv")

    steps = 0

    def deadly(module: nn.Module, batch: Batch) -> Tensor:
        nonlocal steps
        steps += 1
        if steps > killed_at:
            raise KilledError
        return cross_entropy(module, batch)

    path, log = tmp_path / "training.pt", tmp_path / "resumed.csv"
    with pytest.raises(KilledError):
        fit(network(), deadly, samples(), config, seed=3, validate=validate, checkpoint=path, log=log)
    assert path.exists()
    with log.open("a") as file:
        file.write("written after the last checkpoint\n")
    torch.manual_seed(999)
    torch.randn(7)  # another process has another random state
    resumed = network()
    steps = -100
    assert fit(resumed, deadly, samples(), config, seed=3, validate=validate, checkpoint=path, log=log) == logs
    assert same(weights(resumed), weights(whole))
    assert steps == -100 + 18 - killed_at  # only what was missing was computed
    assert log.read_bytes() == (tmp_path / "whole.csv").read_bytes()
    assert not path.exists()


class Scaled(nn.Module):
    """A loss with a parameter of its own."""

    def __init__(self, dies_at: int | None = None) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.steps, self.dies_at = 0, dies_at

    def forward(self, module: nn.Module, batch: Batch) -> Tensor:
        self.steps += 1
        if self.steps == self.dies_at:
            raise KilledError
        return cross_entropy(module, batch) * self.scale.exp()


def test_fit_trains_and_resumes_the_parameters_of_the_loss_when_it_has_some(tmp_path: Path) -> None:
    config = SGD.model_copy(update={"checkpoint_minutes": 0.0})
    whole, loss = network(), Scaled()
    fit(whole, loss, samples(), config, seed=3)
    assert loss.scale.item() < 0.9  # less scale, less loss
    path = tmp_path / "training.pt"
    with pytest.raises(KilledError):
        fit(network(), Scaled(dies_at=8), samples(), config, seed=3, checkpoint=path)
    resumed, resumed_loss = network(), Scaled()
    fit(resumed, resumed_loss, samples(), config, seed=3, checkpoint=path)
    assert torch.equal(resumed_loss.scale, loss.scale)
    assert same(weights(resumed), weights(whole))


def test_fit_logs_every_step_and_epoch_when_it_has_a_log(tmp_path: Path) -> None:
    path = tmp_path / "training.csv"
    logs = fit(network(), cross_entropy, samples(), SGD, seed=0, validate=lambda _: 0.5, log=path)
    rows = list(csv.DictReader(path.open()))
    steps, epochs = ([row for row in rows if bool(row["step"]) is kind] for kind in (True, False))
    assert [(row["epoch"], row["step"]) for row in steps] == [(e, s) for e in "123" for s in "123456"]
    rates = [float(row["learning_rate"]) for row in steps]
    assert rates[0] == pytest.approx(0.05 / 25)  # where one-cycle begins
    assert rates[0] < rates[1] < rates[2] < 0.05
    assert rates[3:] == sorted(rates[3:], reverse=True)
    for epoch, log in zip(epochs, logs, strict=True):
        own = [float(row["loss"]) for row in steps if row["epoch"] == epoch["epoch"]]
        assert [float(epoch["loss"]), sum(own) / 6] == pytest.approx([log.loss] * 2, rel=1e-5)
        assert epoch["metric"] == "0.5"


@pytest.mark.parametrize("count", [1, 2, 3])
def test_fit_takes_every_step_when_there_are_only(count: int) -> None:
    module = nn.Linear(2, 2)
    before = weights(module)
    points = from_dataset([(torch.tensor([1.0, 2.0]), 0)] * count, (TensorSpec(name="x", shape=(2,)),))
    fit(module, cross_entropy, points, TrainingConfig(epochs=1, batch_size=1, learning_rate=0.1), seed=0)
    assert not same(before, weights(module))


def test_fit_refuses_when_the_checkpoint_is_of_another_training(tmp_path: Path) -> None:
    path = tmp_path / "training.pt"
    config = SGD.model_copy(update={"checkpoint_minutes": 0.0})

    def deadly(module: nn.Module, batch: Batch) -> Tensor:
        if path.exists():
            raise KilledError
        return cross_entropy(module, batch)

    with pytest.raises(KilledError):
        fit(network(), deadly, samples(), config, seed=3, checkpoint=path)
    with pytest.raises(StageError, match="the checkpoint of another training"):
        fit(network(), cross_entropy, samples(), config, seed=4, checkpoint=path)


def test_fit_tells_the_share_of_steps_done_before_each_of_them_when_asked() -> None:
    told: list[float] = []
    fit(network(), cross_entropy, samples(), SGD, seed=0, before_step=told.append)
    assert told == [step / 18 for step in range(18)]  # 3 epochs of 96 / 16 steps


def test_fit_keeps_the_best_epoch_and_stops_when_the_metric_stalls() -> None:
    metrics = iter([0.5, 0.9, 0.7, 0.9, 0.99])
    seen = []

    def validate(module: nn.Module) -> float:
        assert not module.training
        seen.append(weights(module))
        return next(metrics)

    module = network()
    config = SGD.model_copy(update={"epochs": 5, "early_stop": 2})
    logs = fit(module, cross_entropy, samples(), config, seed=0, validate=validate)
    assert [log.metric for log in logs] == [0.5, 0.9, 0.7, 0.9]  # the second 0.9 is not better
    assert same(weights(module), seen[1])


def test_fit_keeps_the_last_epoch_when_early_stop_is_off() -> None:
    metrics, seen = iter([0.9, 0.1, 0.5]), []

    def validate(module: nn.Module) -> float:
        seen.append(weights(module))
        return next(metrics)

    module = network()
    fit(module, cross_entropy, samples(), SGD, seed=0, validate=validate)
    assert same(weights(module), seen[-1])


def test_fit_leaves_the_moving_average_when_ema_is_set() -> None:
    trail: list[Tensor] = []

    def loss(module: nn.Module, batch: Batch) -> Tensor:
        trail.append(module.weight.detach().clone())
        return cross_entropy(module, batch)

    torch.manual_seed(0)
    module = nn.Linear(2, 2, bias=False)
    vector = TensorSpec(name="x", shape=(2,))
    data = from_dataset([(torch.randn(2), index % 2) for index in range(12)], (vector,))
    config = TrainingConfig(epochs=1, batch_size=4, ema=0.75)
    fit(module, loss, data, config, seed=0)
    plain = nn.Linear(2, 2, bias=False)
    plain.weight.data = trail[0].clone()
    fit(plain, cross_entropy, data, config.model_copy(update={"ema": None}), seed=0)
    after = [*trail[1:], plain.weight.detach()]  # the weights after each of the three steps
    expected = after[0]
    for weight in after[1:]:
        expected = 0.75 * expected + 0.25 * weight
    torch.testing.assert_close(module.weight.detach(), expected)


def test_fit_trains_as_well_when_precision_is_bf16() -> None:
    losses = [
        fit(network(), cross_entropy, samples(), SGD.model_copy(update={"precision": p}), seed=0)
        for p in ("fp32", "bf16")
    ]
    assert abs(losses[0][-1].loss - losses[1][-1].loss) < 0.05
    assert losses[0] != losses[1]


def test_fit_stops_with_advice_when_the_loss_is_not_finite() -> None:
    with pytest.raises(StageError, match="not finite") as caught:
        fit(network(), lambda module, batch: cross_entropy(module, batch) * float("nan"), samples(), SGD, seed=0)
    assert caught.value.fix == "lower learning_rate"


def test_best_epoch_is_the_last_when_there_is_no_metric() -> None:
    assert best_epoch([EpochLog(1, 0.1, None), EpochLog(2, 0.2, None)]) == 2
