"""Residual blocks removed entirely (depth): which can be, how much each changes the outputs, and their removal.

A block that computes ``x + f(x)`` can be left out and the network still fits together. Such a block is recognised by
what it does: with all its weights at zero it returns its input.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.core import Model, SkippedLayer, StageError
from pipeline.core.outputs import output_tuple
from pipeline.data.samples import SampleSet
from pipeline.models.capture import Examples, example_inputs
from pipeline.models.duplicate import copy_module
from pipeline.models.layers import is_within
from pipeline.recipe import PruneConfig
from pipeline.stages.prune.coupling import PRUNABLE
from pipeline.stages.prune.sensitivity import movement
from pipeline.tasks.task import Task

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Shortened:
    """A module without some of its residual blocks.

    Attributes:
        blocks: Every block that could be removed, how far the outputs move without it alone, and whether it was.
        skipped: Blocks without which the model does not run.
    """

    module: nn.Module
    blocks: list[dict[str, Any]]
    skipped: tuple[SkippedLayer, ...]


def remove_blocks(model: Model, config: PruneConfig, data: SampleSet | None, task: Task | None) -> Shortened:
    """Remove ``blocks_ratio`` of the residual blocks: those that move the outputs least.

    Raises:
        StageError: There are no samples to judge by, or no residual block.
    """
    if config.blocks_ratio is None:
        return Shortened(model.module, [], ())
    if data is None or task is None:
        raise StageError("blocks_ratio needs samples", where="prune", fix="name data.calibration")
    found, skipped = removable_blocks(model.module, model.examples or model.inputs)
    found = tuple(name for name in found if not is_within(name, config.skip))
    if not found:
        raise StageError("the model has no residual block to remove", where="prune", fix="leave blocks_ratio out")
    damages = block_damages(model.module, found, data, task)
    removed = list(damages)[: round(config.blocks_ratio * len(found))]
    blocks = [{"block": name, "divergence": moved, "removed": name in removed} for name, moved in damages.items()]
    logger.debug("%d of %d residual blocks removed: %s", len(removed), len(found), ", ".join(removed))
    return Shortened(without_blocks(model.module, removed), blocks, skipped)


def removable_blocks(module: nn.Module, inputs: Examples) -> tuple[tuple[str, ...], tuple[SkippedLayer, ...]]:
    """The innermost modules with an identity shortcut, and those whose caller cannot do without them."""
    shortcuts = {name for name, x in _single_inputs(module, inputs).items() if _returns_its_input(module, name, x)}
    innermost = [name for name in shortcuts if not any(other.startswith(f"{name}.") for other in shortcuts)]
    ordered = [name for name, _ in module.named_modules() if name in innermost]
    found, needed = [], []
    for name in ordered:
        if _still_runs(module, name, inputs):
            found.append(name)
        else:
            needed.append(SkippedLayer(layer=name, reason="without this block the model does not run"))
    return tuple(found), tuple(needed)


def _still_runs(module: nn.Module, block: str, inputs: Examples) -> bool:
    """Whether the module runs without a block, and gives outputs of the same shapes."""
    examples = example_inputs(inputs)
    try:
        with torch.no_grad():
            before, after = (output_tuple(part(*examples)) for part in (module, without_blocks(module, [block])))
    except Exception:  # a forward of the user's, which may ask anything of the block
        return False
    return [tensor.shape for tensor in before] == [tensor.shape for tensor in after]


def block_damages(module: nn.Module, blocks: Sequence[str], data: SampleSet, task: Task) -> dict[str, float]:
    """How far the outputs move without one block alone (see `sensitivity.Curve`), smallest first."""
    moved = movement(module, data, task)
    return dict(sorted(((name, moved(without_blocks(module, [name]))) for name in blocks), key=lambda pair: pair[1]))


def without_blocks(module: nn.Module, blocks: Sequence[str]) -> nn.Module:
    """A copy of ``module`` in which these blocks are `nn.Identity`."""
    module = copy_module(module)
    for name in blocks:
        module.set_submodule(name, nn.Identity())
    return module


def _single_inputs(module: nn.Module, inputs: Examples) -> dict[str, Tensor]:
    """The input of every submodule with layers inside that maps one tensor to one of the same shape, once per pass."""
    calls: dict[str, list[Tensor | None]] = {}

    def recorder(name: str) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any], Any], None]:
        def record(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            tensors = [value for value in (*args, *kwargs.values(), output) if isinstance(value, Tensor)]
            plain = len(args) == 1 and not kwargs and len(tensors) == 2 and args[0].shape == output.shape
            calls.setdefault(name, []).append(args[0] if plain else None)

        return record

    handles = [
        part.register_forward_hook(recorder(name), with_kwargs=True)
        for name, part in module.named_modules()
        if name and not isinstance(part, PRUNABLE) and any(isinstance(inner, PRUNABLE) for inner in part.modules())
    ]
    with torch.no_grad():
        module(*example_inputs(inputs))
    for handle in handles:
        handle.remove()
    return {name: seen[0] for name, seen in calls.items() if len(seen) == 1 and seen[0] is not None}


@torch.no_grad()
def _returns_its_input(module: nn.Module, name: str, x: Tensor) -> bool:
    block = copy_module(module.get_submodule(name))
    for parameter in block.parameters():
        parameter.zero_()
    return torch.equal(block(x), x)
