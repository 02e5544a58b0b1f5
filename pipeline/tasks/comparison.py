"""Comparison: outputs against a reference's outputs."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

SMALL = 1e-6
"""An absolute error that does not matter beside a reference of zeros."""


def sqnr_db(reference: Tensor, tested: Tensor) -> float:
    """Signal to quantization-noise ratio ``10 log10(sum(r^2) / sum((r - t)^2))`` in dB; infinite where they are equal.

    Equal values, infinities among them, and NaNs at the same place are no difference; any other infinity or NaN gives
    minus infinity. Where the reference is zero everywhere, anything below a millionth counts as zero, too.

    >>> round(sqnr_db(torch.tensor([3.0, 4.0]), torch.tensor([3.0, 3.5])), 3)
    20.0
    """
    one, other = reference.double(), tested.double()
    differs = ~((one == other) | (one.isnan() & other.isnan()))
    errors = (one - other)[differs]
    if not differs.any():
        return float("inf")
    if not torch.isfinite(errors).all():
        return -float("inf")
    signal = one[torch.isfinite(one)].square().sum()
    if signal == 0:
        return float("inf") if errors.abs().max() < SMALL else -float("inf")
    return float(10 * torch.log10(signal / errors.square().sum()))


def cosines(tested: Tensor, reference: Tensor) -> Tensor:
    """The cosine between both outputs of each sample ``(N, …)``: ``(N,)``, 1 where they are equal.

    A single number per sample has no direction: there, its relative error takes the place of the angle.

    >>> cosines(torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([[1.0, 1.0], [0.0, 1.0]]))
    tensor([0.7071, 1.0000], dtype=torch.float64)
    """
    ours, theirs = (values.double().reshape(len(values), -1) for values in (tested, reference))
    if ours.shape[1] == 1:
        scale = theirs.square().mean().sqrt().clamp_min(SMALL)
        ours, theirs = (torch.cat([values / scale, torch.ones_like(values)], 1) for values in (ours, theirs))
    found = functional.cosine_similarity(ours, theirs, dim=1)
    return torch.where((ours == theirs).all(1), torch.ones_like(found), found)


class OutputComparison:
    """One output against a reference's, batch by batch, in constant memory."""

    def __init__(self) -> None:
        self.signal = self.noise = self.max_abs_error = 0.0
        self._cosines, self._samples = 0.0, 0

    def update(self, tested: Tensor, reference: Tensor) -> None:
        """Add a batch ``(N, …)`` of both."""
        ours, theirs = (values.double().reshape(len(values), -1) for values in (tested, reference))
        error = ours - theirs
        self.signal += float(theirs.square().sum())
        self.noise += float(error.square().sum())
        self.max_abs_error = max(self.max_abs_error, float(error.abs().max()))
        self._cosines += float(cosines(tested, reference).sum())
        self._samples += len(ours)

    @property
    def sqnr_db(self) -> float:
        """``10 log10(signal / noise)`` in dB; infinite where both are equal."""
        return _decibels(self.signal, self.noise)

    @property
    def cosine(self) -> float:
        """Between both outputs of a sample, averaged over samples; equal ones have 1."""
        return self._cosines / max(1, self._samples)


class Comparison:
    """Outputs against a reference's outputs, batch by batch, in constant memory.

    Args:
        class_axis: The axis of the first output that holds class scores; None where it holds none.

    >>> comparison = Comparison(class_axis=1)
    >>> logits = torch.tensor([[0.1, 0.9], [0.8, 0.2], [0.3, 0.7], [0.6, 0.4]])
    >>> comparison.update((logits,), (logits.flip(1),))
    >>> comparison.agreement
    0.0
    """

    def __init__(self, class_axis: int | None = None) -> None:
        self.outputs: list[OutputComparison] = []
        self._class_axis, self._agreeing, self._answers = class_axis, 0, 0

    def update(self, tested: tuple[Tensor, ...], reference: tuple[Tensor, ...]) -> None:
        """Add a batch: outputs ``(N, …)`` of both."""
        self.outputs = self.outputs or [OutputComparison() for _ in tested]
        for output, ours, theirs in zip(self.outputs, tested, reference, strict=True):
            output.update(ours, theirs)
        if self._class_axis is not None:
            same = tested[0].argmax(self._class_axis) == reference[0].argmax(self._class_axis)
            self._agreeing += int(same.sum())
            self._answers += same.numel()

    @property
    def sqnr_db(self) -> float:
        """``10 log10(signal / noise)`` over all outputs in dB; infinite where they are equal."""
        return _decibels(sum(output.signal for output in self.outputs), sum(output.noise for output in self.outputs))

    @property
    def max_abs_error(self) -> float:
        """Of any value of any output."""
        return max((output.max_abs_error for output in self.outputs), default=0.0)

    @property
    def agreement(self) -> float | None:
        """Share of answers with the same largest class score as the reference's."""
        return self._agreeing / self._answers if self._answers else None


def _decibels(signal: float, noise: float) -> float:
    if noise == 0:
        return float("inf")
    return float(10 * torch.log10(torch.tensor(signal / noise, dtype=torch.float64)))
