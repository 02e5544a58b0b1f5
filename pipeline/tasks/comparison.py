"""Comparison: outputs against a reference's outputs, and against labels where the model classifies."""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.tasks.classification import Top1, classifies

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


class Comparison:
    """Outputs against a reference's outputs and against labels, batch by batch, in constant memory.

    >>> comparison = Comparison()
    >>> logits = torch.tensor([[0.1, 0.9], [0.8, 0.2], [0.3, 0.7], [0.6, 0.4]])
    >>> comparison.update((logits,), (logits,), labels=torch.tensor([1, 0, 0, 0]))
    >>> comparison.top1, comparison.agreement, comparison.sqnr_db
    (0.75, 1.0, inf)
    """

    def __init__(self) -> None:
        self._correct, self._same = Top1(), Top1()
        self._signal = self._noise = 0.0
        self.max_abs_error = 0.0

    def update(self, tested: tuple[Tensor, ...], reference: tuple[Tensor, ...], labels: Tensor | None = None) -> None:
        """Add a batch: outputs ``(N, …)`` of both, and labels ``(N,) int64`` where there are any."""
        for ours, theirs in zip(tested, reference, strict=True):
            error = ours.double() - theirs.double()
            self._signal += float(theirs.double().square().sum())
            self._noise += float(error.square().sum())
            self.max_abs_error = max(self.max_abs_error, float(error.abs().max()))
        if classifies(tested):
            self._same.update(tested[0], reference[0].argmax(1))
            if labels is not None:
                self._correct.update(tested[0], labels)

    @property
    def sqnr_db(self) -> float:
        """``10 log10(signal / noise)`` over all outputs in dB; infinite where they are equal."""
        if self._noise == 0:
            return float("inf")
        return float(10 * torch.log10(torch.tensor(self._signal / self._noise, dtype=torch.float64)))

    @property
    def top1(self) -> float | None:
        """Share of samples whose largest logit is the label's."""
        return self._correct.share

    @property
    def agreement(self) -> float | None:
        """Share of samples with the same largest logit as the reference."""
        return self._same.share

    def metrics(self) -> dict[str, float]:
        """What there is of top-1 and agreement."""
        found = {"top1": self.top1, "agreement": self.agreement}
        return {name: value for name, value in found.items() if value is not None}
