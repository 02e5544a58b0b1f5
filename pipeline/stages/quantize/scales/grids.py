"""Grids: the modules that PT2E inserts where a tensor becomes integers.

Unlike PT2E's own observers they observe nothing: their parameters come from statistics collected beforehand, so that
one calibration serves many programs. They can simulate rounding, without gradients.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torchao.quantization.pt2e.observer import FixedQParamsObserver, ObserverBase

from pipeline.stages.quantize.scales.numbers import QMIN, affine_parameters, channel_scales, fake_quantize, rounded


class ActivationGrid(ObserverBase):  # type: ignore[misc]  # torchao has no type information
    """One scale and zero point; several tensors may share it.

    Attributes:
        holds: Keys of the nodes whose values it is for.
    """

    def __init__(self, dtype: torch.dtype, quant_min: int, quant_max: int, qscheme: torch.qscheme, **_: Any) -> None:
        super().__init__(dtype)
        self.quant_min, self.quant_max, self.qscheme = quant_min, quant_max, qscheme
        self.scale, self.zero_point = 1.0, 0
        self.holds: list[str] = []
        self.simulate = False

    def set_range(self, low: float, high: float) -> None:
        """Cover ``[low, high]``."""
        self.scale, self.zero_point = affine_parameters(low, high)

    def widen(self, scale: float) -> None:
        """Take a larger scale; the lower end of the range stays where it is."""
        self.zero_point = round(QMIN - (QMIN - self.zero_point) * self.scale / scale)
        self.scale = scale

    def forward(self, values: Tensor) -> Tensor:
        return rounded(values, self.scale, self.zero_point) if self.simulate else values

    def calculate_qparams(self) -> tuple[Tensor, Tensor]:
        """Scale and zero point, each of shape ``(1,)``."""
        return torch.tensor([self.scale], dtype=torch.float32), torch.tensor([self.zero_point])


class FixedGrid(FixedQParamsObserver):  # type: ignore[misc]  # torchao has no type information
    """The scale and zero point that an integer kernel prescribes."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.simulate = False

    def forward(self, values: Tensor) -> Tensor:
        return rounded(values, float(self.scale), int(self.zero_point)) if self.simulate else values


class PerChannelWeightGrid(ObserverBase):  # type: ignore[misc]  # torchao has no type information
    """One symmetric scale per output channel: the weight's own unless `scales` are set."""

    def __init__(
        self, dtype: torch.dtype, quant_min: int, quant_max: int, qscheme: torch.qscheme, ch_axis: int, **_: Any
    ) -> None:
        super().__init__(dtype)
        self.quant_min, self.quant_max, self.qscheme, self.ch_axis = quant_min, quant_max, qscheme, ch_axis
        self.scales = torch.ones(1)
        self.simulate = False

    def set_weight(self, weight: Tensor) -> None:
        """Take the scales of a weight."""
        self.scales = channel_scales(weight, self.ch_axis)

    def forward(self, weight: Tensor) -> Tensor:
        return fake_quantize(weight, self.scales, self.ch_axis) if self.simulate else weight

    def calculate_qparams(self) -> tuple[Tensor, Tensor]:
        """Scales and zero points ``(C,)``."""
        return self.scales, torch.zeros(len(self.scales), dtype=torch.int64)


GRIDS = (ActivationGrid, FixedGrid, PerChannelWeightGrid)


def grids_of(prepared: nn.Module) -> set[nn.Module]:
    """All grids of a prepared graph."""
    return {module for module in prepared.modules() if isinstance(module, GRIDS)}


def simulate(prepared: nn.Module, active: set[nn.Module]) -> None:
    """Let these grids round, and no others."""
    for grid in grids_of(prepared):
        grid.simulate = grid in active  # type: ignore[assignment]  # a plain attribute of our own modules
