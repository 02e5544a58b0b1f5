"""Widths before and after: output channels of every layer, heads of every attention module."""

from __future__ import annotations

from typing import Any

from torch import nn

from pipeline.stages.prune.channels import Step
from pipeline.stages.prune.coupling import PRUNABLE


def layer_widths(before: nn.Module, after: nn.Module) -> list[dict[str, Any]]:
    """Output channels of every layer that has some, before and after; 0 where its block is gone."""
    left = output_channels(after)
    return [
        {"layer": name, "before": width, "after": left.get(name, 0)} for name, width in output_channels(before).items()
    ]


def output_channels(module: nn.Module) -> dict[str, int]:
    """Output channels of every layer that has some."""
    return {name: _output_channels(part) for name, part in module.named_modules() if isinstance(part, PRUNABLE)}


def head_counts(before: nn.Module, after: nn.Module, steps: list[Step]) -> list[dict[str, Any]]:
    """Attention heads before and after, per attention module that lost some."""
    counts = dict.fromkeys(count for step in steps for count in step.group.counts)
    return [
        {
            "module": module,
            "before": getattr(before.get_submodule(module), attribute),
            "after": getattr(after.get_submodule(module), attribute),
        }
        for module, attribute in counts
    ]


def _output_channels(layer: nn.Module) -> int:
    for name in ("out_channels", "out_features", "hidden_size"):
        if hasattr(layer, name):
            return int(getattr(layer, name))
    raise TypeError(type(layer).__name__)
