"""Rounding noise: how far an integer program is from itself where its sums are added in another order.

A sum that lies almost half-way between two integers is rounded up or down by the last bit of float32. In a network
that amplifies small changes, one such value decides how close any other runtime can come.
"""

from __future__ import annotations

from torch import Tensor, nn

from pipeline.models.capture import plain_kernels
from pipeline.tasks.comparison import sqnr_db
from pipeline.tasks.prediction import outputs_of

MARGIN_DB = 6.0
"""Another runtime differs from each of two orders about as much as they do from each other."""


def rounding_noise_db(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[float, ...]:
    """SQNR in dB of each output of real numbers: the usual kernels against plain ones; infinite where they agree."""
    usual = outputs_of(module, inputs)
    with plain_kernels():
        plain = outputs_of(module, inputs)
    return tuple(
        sqnr_db(one, other) if one.is_floating_point() else float("inf")
        for one, other in zip(usual, plain, strict=True)
    )


def within_noise(found_db: float, noise_db: float) -> bool:
    """Whether an output is as close as the order of sums allows.

    >>> within_noise(33.0, noise_db=36.0), within_noise(26.0, noise_db=36.0)
    (True, False)
    """
    return found_db >= noise_db - MARGIN_DB
