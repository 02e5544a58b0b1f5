"""Classification: the first output holds one logit per class, and a label is the number of a class."""

from __future__ import annotations

from torch import Tensor
from torchmetrics.classification import MulticlassAccuracy


def classifies(outputs: tuple[Tensor, ...]) -> bool:
    """Whether the first output is logits: real numbers ``(N, classes)`` of at least two classes."""
    return outputs[0].ndim == 2 and outputs[0].shape[1] > 1 and outputs[0].is_floating_point()


class Top1:
    """The share of samples whose largest logit is that of the expected class.

    Where several processes share a run, each sees all samples, so nothing is summed over processes.

    >>> import torch
    >>> top1 = Top1()
    >>> top1.update(torch.tensor([[0.1, 0.9], [0.8, 0.2], [0.3, 0.7]]), torch.tensor([1, 0, 0]))
    >>> round(top1.share, 3)
    0.667
    """

    def __init__(self) -> None:
        self._samples = 0
        self._accuracy: MulticlassAccuracy | None = None

    def update(self, logits: Tensor, expected: Tensor) -> None:
        """Add a batch: logits ``(N, classes)`` and classes ``(N,) int64``."""
        if self._accuracy is None:
            self._accuracy = MulticlassAccuracy(num_classes=logits.shape[1], average="micro", sync_on_compute=False)
        self._accuracy.update(logits, expected)
        self._samples += len(logits)

    @property
    def share(self) -> float | None:
        """A ratio; None before the first batch."""
        if self._accuracy is None:
            return None
        return round(float(self._accuracy.compute()) * self._samples) / self._samples  # float32 to the exact ratio
