"""Batch norms' statistics against hand-computed ones, and after surgery on a trained network."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from calibration_data.fashion_mnist.train import IMAGE, committed_samples, load_trained
from pipeline import from_module
from pipeline.core import TensorSpec
from pipeline.data.open import from_dataset
from pipeline.recipe import Budget, QuantizeConfig
from pipeline.stages.quantize import quantize
from pipeline.stages.quantize.improve.batch_norms import reestimated
from pipeline.tasks.evaluation import evaluate

SPEC = (TensorSpec(name="x", shape=(2,)),)


class Rows(torch.utils.data.Dataset[torch.Tensor]):
    rows = torch.tensor([[1.0, 0.0], [2.0, 4.0], [3.0, 0.0], [6.0, 4.0]])

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.rows[index]


@pytest.mark.parametrize("batch_size", [4, 2])
def test_statistics_are_those_of_all_samples_whatever_the_batches(batch_size: int) -> None:
    module = nn.Sequential(nn.BatchNorm1d(2), nn.Dropout(0.5)).eval()
    result = reestimated(module, from_dataset(Rows(), SPEC), batch_size=batch_size)
    norm = result[0]  # type: ignore[index]
    torch.testing.assert_close(norm.running_mean, torch.tensor([3.0, 2.0]))
    torch.testing.assert_close(norm.running_var, torch.tensor([14 / 3, 16 / 3]))  # (4 + 1 + 0 + 9) / 3, 4 * 4 / 3
    assert not any(part.training for part in result.modules())
    assert module[0].running_mean.eq(0).all()  # type: ignore[union-attr, operator]


def test_module_without_batch_norms_is_left_alone() -> None:
    module = nn.Linear(2, 2)
    result = reestimated(module, from_dataset(Rows(), SPEC), batch_size=2)
    torch.testing.assert_close(result.state_dict(), module.state_dict())


def damaged() -> nn.Module:
    """The trained network after a third of the channels of the first block's convolutions were set to zero."""
    network = copy.deepcopy(load_trained())
    with torch.no_grad():
        for layer in [part for part in network.modules() if isinstance(part, nn.Conv2d)][1:4]:
            layer.weight[::3] *= 2.0
            layer.weight[1::3] = 0.0
    return network


@pytest.mark.slow
def test_accuracy_comes_back_when_statistics_are_stale() -> None:
    train, test = committed_samples("train").take(512), committed_samples("test").take(1000)
    model = from_module(damaged(), inputs=[IMAGE])
    before = evaluate(model.module, test)["top1"]
    after = evaluate(reestimated(model.module, train, batch_size=128), test)["top1"]
    assert after > before + 0.1
    config = QuantizeConfig(batch_norm=True, observers=("minmax",), mixed_precision=False)
    result = quantize(model, config, train.take(128), budget=Budget(), held_out=train)
    assert result.history[-1].details["batch_norm"]["kept"]
    assert evaluate(result.module, test)["top1"] > before + 0.1
