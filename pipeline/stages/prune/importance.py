"""How important channels are: by their weights, by their estimated effect on the loss, or by their inputs.

Every kind gives each *weight* a saliency; a channel's importance is that of all weights removed with it, in every
layer coupled to it (https://arxiv.org/abs/2301.12900, section 3.3).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.core import StageError
from pipeline.core.outputs import output_tuple
from pipeline.data.samples import Batch, SampleSet
from pipeline.machine.memory import affordable_batch, footprint
from pipeline.recipe import Importance
from pipeline.stages.prune import recurrent
from pipeline.stages.prune.channels import Score
from pipeline.stages.prune.coupling import BatchNorm, Conv, Place, Together
from pipeline.tasks.task import Task

NEED_DATA = ("taylor", "activation")
_IMPORTANCE_SAMPLES = 512
_IMPORTANCE_BATCH = 64


def scorer(kind: Importance, module: nn.Module, data: SampleSet | None, task: Task | None) -> Score:
    """A judge of the groups of ``module``, whose parameters this replaces by their saliencies.

    * ``l1``, ``l2``: the weight's size (Li et al. 2017, https://arxiv.org/abs/1608.08710).
    * ``bn_scale``: the scale of the batch norm behind it (Liu et al. 2017, https://arxiv.org/abs/1708.06519).
    * ``taylor``: weight times gradient, the first-order change of the loss (https://arxiv.org/abs/1906.10771). The
      loss is the task's against labels; without labels, cross entropy with the model's own answers where it
      classifies, else the mean square of the outputs.
    * ``activation``: weight times the root mean square of its input (Wanda, https://arxiv.org/abs/2306.11695).

    Raises:
        StageError: ``taylor`` and ``activation`` need samples.
    """
    if kind in NEED_DATA:
        if data is None:
            raise StageError(f"importance {kind!r} needs samples", where="prune", fix="name data.calibration")
        samples = data.take(_IMPORTANCE_SAMPLES)
        if kind == "activation":
            _weigh_by_input(module, samples)
        else:
            assert task is not None  # there are samples
            _weigh_by_gradient(module, samples, task)
    power = 2 if kind == "l2" else 1
    tensors = {name: parameter.detach().abs().pow(power) for name, parameter in module.named_parameters()}
    norms = {name for name, part in module.named_modules() if isinstance(part, BatchNorm)}
    # A layer's values are divided by their mean, so that layers of different fan-in can be compared. A Taylor value
    # is an estimate of the loss itself, and is compared as it is.
    absolute = kind == "taylor"

    def score(members: Sequence[Together], widths: Sequence[int]) -> Tensor | None:
        places = [(name, axis) for name, axis in members[0].places if "weight" in name and name in tensors]
        scales = [(name, axis) for name, axis in places if name.rpartition(".")[0] in norms]
        if kind == "bn_scale" and scales:
            places = scales
        parts = _parts(module, places)
        found = [_over_places(tensors, members, widths, part, absolute) for part in parts if part]
        return torch.stack(found).mean(0) if found else None

    return score


def _parts(module: nn.Module, places: Sequence[Place]) -> tuple[list[Place], list[Place]]:
    """A recurrent layer's own gates, which judge its hidden units as much as everything else together; and the rest.

    What a gate reads of other units of its layer is not counted twice.
    """
    own = [
        (name, axis)
        for name, axis in places
        if isinstance(module.get_submodule(name.rpartition(".")[0]), recurrent.RECURRENT)
    ]
    gates = [(name, axis) for name, axis in own if axis == 0]
    return gates, [place for place in places if place not in own]


def _over_places(
    tensors: Mapping[str, Tensor],
    members: Sequence[Together],
    widths: Sequence[int],
    places: Sequence[Place],
    absolute: bool,
) -> Tensor:
    """Mean over places of what a unit's channels hold there, per channel: ``(units,)``."""
    total = torch.zeros(len(members))
    for name, axis in places:
        values = tensors[name].movedim(axis, 0).flatten(1).sum(1) if tensors[name].ndim > 1 else tensors[name]
        total += torch.stack([values[list(member.places[name, axis])].sum() for member in members])
    total /= len(places) * torch.tensor(widths)
    return total if absolute else total / total.mean()


@torch.no_grad()
def _weigh_by_gradient(module: nn.Module, samples: SampleSet, task: Task) -> None:
    module.zero_grad()
    with torch.enable_grad():
        needs = footprint(lambda count: _loss(module, Batch(samples.stand_ins(count), None), task))
    for batch in samples.batches(affordable_batch("prune: importance", needs, _IMPORTANCE_BATCH)):
        with torch.enable_grad():
            torch.autograd.backward(_loss(module, batch, task))
    for parameter in module.parameters():
        parameter.mul_(torch.zeros_like(parameter) if parameter.grad is None else parameter.grad)
        parameter.grad = None


def _loss(module: nn.Module, batch: Batch, task: Task) -> Tensor:
    """Summed over the samples of a batch."""
    outputs = output_tuple(module(*batch.inputs))
    if task.label_loss is not None and batch.labels is not None:
        return task.label_loss(outputs, batch.labels) * len(batch.inputs[0])
    if task.class_axis == 1 and outputs[0].ndim == 2:
        return functional.cross_entropy(outputs[0], outputs[0].argmax(1), reduction="sum")
    real = [output for output in outputs if output.is_floating_point()]
    return torch.stack([output.square().flatten(1).mean(1).sum() for output in real]).sum()


@torch.no_grad()
def _weigh_by_input(module: nn.Module, samples: SampleSet) -> None:
    squares: dict[nn.Module, Tensor] = {}
    counts: dict[nn.Module, int] = {}

    def observe(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        x = args[0] if args else kwargs["input"]
        axis = -len(layer.kernel_size) - 1 if isinstance(layer, Conv) else -1
        channels = x.movedim(axis, 0).flatten(1)  # (channels, everything else)
        squares[layer] = squares.get(layer, 0) + channels.square().sum(1)
        counts[layer] = counts.get(layer, 0) + channels.shape[1]

    layers = [layer for layer in module.modules() if isinstance(layer, Conv | nn.Linear)]
    handles = [layer.register_forward_pre_hook(observe, with_kwargs=True) for layer in layers]
    for batch in samples.batches(_IMPORTANCE_BATCH):
        module(*batch.inputs)
    for handle in handles:
        handle.remove()
    for layer, total in squares.items():
        layer.weight.mul_(_along_inputs(layer, (total / counts[layer]).sqrt()))  # type: ignore[operator]


def _along_inputs(layer: nn.Module, values: Tensor) -> Tensor:
    """One value per input channel, shaped to multiply the layer's weights."""
    if isinstance(layer, nn.Linear):
        return values
    assert isinstance(layer, Conv)
    trailing = (1,) * len(layer.kernel_size)
    if layer.transposed:  # (in, out / groups, ...)
        return values.view(-1, 1, *trailing)
    per_group = values.view(layer.groups, 1, -1).expand(-1, layer.out_channels // layer.groups, -1)
    return per_group.reshape(layer.out_channels, -1, *trailing)  # (out, in / groups, ...)
