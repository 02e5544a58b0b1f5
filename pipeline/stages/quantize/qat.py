"""Quantization-aware training: the network learns to reproduce its original's outputs while every tensor is rounded.

It starts from the best post-training program and trains the prepared graph itself, so the same quantization rules
apply. Gradients pass rounding straight through (Bengio et al. 2013, https://arxiv.org/abs/1308.3432).

- Activation ranges are learned (Esser et al. 2020, LSQ, https://arxiv.org/abs/1902.08153). After a share of the steps
  they are frozen at scales that every runtime stores, and with which all round alike. The weights then adapt to
  exactly the grids that are deployed.
- Weight scales follow the largest weight of each channel.
- Batch norms are folded before training, so their statistics are frozen from the first step. Nagel et al. 2021
  (https://arxiv.org/abs/2106.08295, section 5.2.1) find this as good as training them, and the network that is trained
  is then the one that is deployed.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.fx.experimental.symbolic_shapes import is_concrete_int

from pipeline.core import StageError
from pipeline.data.samples import SampleSet
from pipeline.recipe import QatConfig
from pipeline.stages.quantize.graph.nodes import tensor_of
from pipeline.stages.quantize.scales.grids import ActivationGrid, FixedGrid, PerChannelWeightGrid
from pipeline.stages.quantize.scales.numbers import QMAX, QMIN, WEIGHT_QMAX, channel_scales, representable
from pipeline.stages.quantize.scales.settle import settle_scales
from pipeline.tasks.task import Task
from pipeline.training.loop import EpochLog, fit
from pipeline.training.losses import distillation_loss


class LearnedGrid(nn.Module):
    """An activation's grid whose scale is trained, as a factor of its initial scale, until it is settled.

    The zero point changes only when the grid is settled.
    """

    def __init__(self, scale: float, zero_point: int) -> None:
        super().__init__()
        self.start: Tensor
        self.settled: Tensor
        self.zero_point: Tensor
        self.register_buffer("start", torch.tensor([scale]))
        self.register_buffer("settled", torch.zeros(1))
        self.register_buffer("zero_point", torch.tensor([float(zero_point - QMIN)]))
        self.log_factor = nn.Parameter(torch.zeros(1))

    @property
    def scale(self) -> Tensor:
        """``start * exp(log_factor)``, which stays positive, or the settled scale; of shape ``(1,)``."""
        return torch.where(self.settled > 0, self.settled, self.start * self.log_factor.exp())

    def settle(self, scale: float, zero_point: int) -> None:
        """Use these parameters from now on."""
        self.settled.fill_(scale)
        self.zero_point.fill_(zero_point - QMIN)

    def forward(self, values: Tensor) -> Tensor:
        gradient = 1 / math.sqrt(values[0].numel() * QMAX)  # LSQ's factor: steps as large as those of the weights
        # On 0 … 255, for the same real values: torch's backward pass rounds a negative zero point wrongly.
        return torch._fake_quantize_learnable_per_tensor_affine(
            values.float(), self.scale, self.zero_point, 0, QMAX - QMIN, gradient
        )


class PrescribedGrid(nn.Module):
    """The grid that an integer kernel prescribes."""

    def __init__(self, scale: float, zero_point: int) -> None:
        super().__init__()
        self._scale, self._zero_point = scale, zero_point

    def forward(self, values: Tensor) -> Tensor:
        return torch.fake_quantize_per_tensor_affine(values.float(), self._scale, self._zero_point, QMIN, QMAX)


class FollowingGrid(nn.Module):
    """A weight's grid: one symmetric scale per channel, always that of the current weight."""

    def __init__(self, axis: int) -> None:
        super().__init__()
        self._axis = axis

    def forward(self, weight: Tensor) -> Tensor:
        scales = channel_scales(weight, self._axis)
        zeros = torch.zeros(len(scales), dtype=torch.int32, device=scales.device)
        return torch.fake_quantize_per_channel_affine(weight, scales, zeros, self._axis, -WEIGHT_QMAX, WEIGHT_QMAX)


def train(
    prepared: GraphModule,
    teacher: nn.Module,
    data: SampleSet,
    task: Task,
    config: QatConfig,
    *,
    seed: int,
    validate: Callable[[nn.Module], float | None] | None = None,
    higher_is_better: bool = True,
    checkpoint: Path | None = None,
    log: Path | None = None,
) -> list[EpochLog]:
    """Train a prepared graph in place: its weights, its biases and the ranges of its grids.

    Args:
        teacher: The FP32 original.
        validate: Metric of a module on held-out samples.
        higher_is_better: Its direction.
        checkpoint: File for the training's state, so that an interrupted training resumes; removed at the end.
        log: CSV file of the loss, step by step.

    Raises:
        StageError: The loss diverges, or the graph's batch size is fixed.
    """
    _refuse_fixed_batch(prepared)
    student, grids = trainable(prepared)

    def freeze(share: float) -> None:
        moves = share < config.freeze_ratio
        if not moves and any(grid.log_factor.requires_grad for grid in grids.values()):
            settle(prepared, grids)
        for grid in grids.values():
            grid.log_factor.requires_grad_(moves)

    logs = fit(
        student,
        distillation_loss(
            copy.deepcopy(teacher).requires_grad_(False).eval(),
            task,
            temperature=config.temperature,
            alpha=config.alpha,
        ),
        data,
        config,
        seed=seed,
        validate=validate,
        higher_is_better=higher_is_better,
        label="qat",
        checkpoint=checkpoint,
        before_step=freeze,
        log=log,
    )
    _finish(prepared, grids)
    return logs


class Trainable(nn.Module):
    """A prepared graph as a module for any training loop: it rounds where, and as, the program does.

    Its parameters are weights, biases and, until they are frozen, a factor for each activation range. Batch norms are
    folded and dropout is left out, so ``train()`` and ``eval()`` compute the same.

    Attributes:
        network: The graph that is trained; all that training changes is in its state.

    Raises:
        StageError: The graph's batch size is fixed.
    """

    def __init__(self, prepared: GraphModule) -> None:
        super().__init__()
        _refuse_fixed_batch(prepared)
        self._template = [copy.deepcopy(prepared)]  # in a list, where torch sees no module: only `network` has state
        self.network, _ = trainable(copy.deepcopy(prepared))

    def forward(self, *inputs: Tensor) -> Any:
        """The outputs ``(N, …)`` for inputs ``(N, …)``, in the form that the original module returns them in."""
        return self.network(*inputs)

    def freeze_ranges(self) -> None:
        """Fix the activation ranges at scales with which every runtime rounds alike; the weights train on.

        From then on, the module gives what the converted program will give. Call it for the last part of a training.
        """
        graph, student, grids = self._current()
        settle(graph, grids)
        self.network.load_state_dict(student.state_dict())
        for module in self.network.modules():
            if isinstance(module, LearnedGrid):
                module.log_factor.requires_grad_(False)

    def finished(self) -> GraphModule:
        """The prepared graph with what was trained, its ranges settled; this module stays as it is."""
        graph, _, grids = self._current()
        _finish(graph, grids)
        return graph

    def _current(self) -> tuple[GraphModule, GraphModule, dict[ActivationGrid, LearnedGrid]]:
        """A copy of the prepared graph on the CPU with the trained values, its trainable view, and the view's grids."""
        graph = copy.deepcopy(self._template[0])
        student, grids = trainable(graph)
        student.load_state_dict(self.network.state_dict())
        return graph, student, grids


def _finish(prepared: GraphModule, grids: Mapping[ActivationGrid, LearnedGrid]) -> None:
    """Settle the ranges of a trained graph, and give each weight the scales of its trained values."""
    settle(prepared, grids)
    for node in prepared.graph.nodes:
        if node.op == "call_module" and isinstance(own := prepared.get_submodule(node.target), PerChannelWeightGrid):
            own.set_weight(tensor_of(prepared, node.args[0]))
    prepared.requires_grad_(False)


def trainable(prepared: GraphModule) -> tuple[GraphModule, dict[ActivationGrid, LearnedGrid]]:
    """A view of a prepared graph that rounds and can be trained; its parameters are the prepared graph's own.

    Returns:
        The view, and the learned grid that replaces each activation's grid. Tensors that shared a grid still do.
    """
    graph = copy.deepcopy(prepared.graph)
    for node in [each for each in graph.nodes if each.op == "get_attr" and not each.users]:
        graph.erase_node(node)  # a bias that an operator's own has replaced: no parameter to train
    student = GraphModule(prepared, graph)  # a prepared graph itself refuses train()
    learned: dict[ActivationGrid, LearnedGrid] = {}
    for name, module in list(prepared.named_modules(remove_duplicate=False)):
        replacement: nn.Module
        if isinstance(module, ActivationGrid):
            replacement = learned.setdefault(module, LearnedGrid(module.scale, module.zero_point))
        elif isinstance(module, PerChannelWeightGrid):
            replacement = FollowingGrid(module.ch_axis)
        elif isinstance(module, FixedGrid):
            replacement = PrescribedGrid(float(module.scale), int(module.zero_point))
        else:
            continue
        student.set_submodule(name, replacement)
    return student.requires_grad_(True), learned


def settle(prepared: GraphModule, grids: Mapping[ActivationGrid, LearnedGrid]) -> None:
    """Freeze learned ranges at scales with which every runtime rounds alike, and copy them to the prepared graph."""
    for grid, learned in grids.items():
        grid.scale, grid.zero_point = float(learned.scale.detach()), int(learned.zero_point) + QMIN
    if any(not learned.settled for learned in grids.values()):
        for grid in grids:
            grid.widen(float(representable(np.array(grid.scale))))
        settle_scales(prepared)
        for grid, learned in grids.items():
            learned.settle(grid.scale, grid.zero_point)


def _refuse_fixed_batch(prepared: GraphModule) -> None:
    first = next(node for node in prepared.graph.nodes if node.op == "placeholder")
    if is_concrete_int(first.meta["val"].shape[0]):
        raise StageError(
            "the model's own code fixes its batch size, so it cannot be trained in batches",
            where="quantize: qat",
            fix="take sizes from the input's shape in forward, or leave qat out",
        )
