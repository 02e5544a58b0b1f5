"""Steps that a child process with little memory runs."""

import torch
from torch import nn

from pipeline.core import EdgewrightError, TensorSpec
from pipeline.data.open import from_dataset
from pipeline.machine.memory import Footprint, footprint, require_batch
from pipeline.recipe import TrainingConfig
from pipeline.training.loop import fit

BATCH = 32
VALUES = 2**20  # of 4 bytes, in a sample

torch.set_num_threads(1)


class Chain(nn.Module):
    """One weight, and then results of 4 MiB a sample, of which backpropagation needs each."""

    def __init__(self, length: int = 8) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.length = length

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x * self.weight
        for _ in range(self.length - 1):
            x = torch.tanh(x)
        return x


def needed() -> Footprint:
    """What the forward pass of a training step allocates, as it is measured."""
    chain = Chain()
    return footprint(lambda count: chain(torch.zeros(count, VALUES)))


def unguarded(batch_size: int) -> None:
    """One training step."""
    Chain()(torch.zeros(batch_size, VALUES)).sum().backward()


def guarded(batch_size: int) -> None:
    """The check of such a step."""
    require_batch("chain", needed(), batch_size, setting="chain.batch_size")


def train(batch_size: int) -> None:
    """The training loop, which checks its first step by itself."""
    samples = from_dataset([torch.zeros(VALUES)] * batch_size, (TensorSpec(name="x", shape=(VALUES,)),))
    config = TrainingConfig(epochs=1, batch_size=batch_size)
    fit(Chain(), lambda module, batch: module(*batch.inputs).sum(), samples, config, seed=0, label="distill")


def outcomes() -> dict[str, str]:
    """What becomes of each step with the whole batch, and with half of it."""
    found = {}
    for step in (guarded, train, unguarded):
        for size in (BATCH // 2, BATCH):
            try:
                step(size)
                found[f"{step.__name__} {size}"] = "ran"
            except (EdgewrightError, RuntimeError) as error:
                found[f"{step.__name__} {size}"] = str(error)
    return found
