"""A task: what a model is for, as data. Everything that depends on it asks the task, and nothing else.

Each file of `pipeline.tasks.builtin` makes one; `pipeline.tasks.lookup` finds them, and makes the user's own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

from torch import Tensor
from torchmetrics import Metric

from pipeline.core import MetricInfo, RecipeError
from pipeline.data.labels import LabelForm
from pipeline.tasks.pictures import Show

Tensors = tuple[Tensor, ...]
"""All inputs, or all outputs, of a batch: each ``(N, …)``."""
Predictions = Any
"""What metrics compare with labels: a tensor ``(N, …)``, a tuple of such, or one entry per sample."""


Update = Callable[[Metric, Predictions, Any], None]
"""Gives a metric a batch: predictions, and labels or the original's predictions."""


def only_or_all(outputs: Tensors, _inputs: Tensors) -> Predictions:
    """The outputs as they are: a tensor where there is one, else the tuple."""
    return outputs[0] if len(outputs) == 1 else outputs


def compare(metric: Metric, predictions: Predictions, labels: Any) -> None:
    """Most metrics take both as they are."""
    metric.update(predictions, labels)


def itself(result: Any) -> float:
    """Most metrics compute one number."""
    return float(result)


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricSpec:
    """One number that says how well a model does its task.

    Attributes:
        info: Its name, unit and direction, as recipes and reports have them.
        make: A new torchmetrics object. Metrics of one object share ``make``, and it is computed once.
        update: Gives it a batch: predictions, and labels or the original's predictions.
        pick: The number among what the object computes.
        right: For a share of samples: which samples count, ``(N,) bool``, from predictions and labels.
    """

    info: MetricInfo
    make: Callable[[], Metric]
    update: Update = compare
    pick: Callable[[Any], float] = itself
    right: Callable[[Predictions, Any], Tensor] | None = None

    @property
    def name(self) -> str:
        """As budgets and reports call it."""
        return self.info.name

    @property
    def needs_labels(self) -> bool:
        """Whether it compares with labels, and not with the original."""
        return self.info.original_value is None


Terms = Callable[[Tensors, Tensors, float], list[Tensor]]
"""The student's outputs, the teacher's, and a temperature: one scalar per output, each of a size near one or below."""
LabelLoss = Callable[[Tensors, Any], Tensor]
"""Outputs and labels of a batch: the mean loss, a scalar."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What a model is for.

    Attributes:
        labels: The form of its labels; None where it has none.
        metrics: The first is the budget's default.
        predict: Turns outputs into predictions, in float, the same way for every target.
        terms: The distillation loss, output by output.
        label_loss: The loss against labels, which takes part in the first term; None where there is none.
        class_axis: The axis of the first output with one score per class; None where it holds no class scores.
        note: What a reader of the report has to know of it.
        show: What a report shows of a sample's prediction or label, on top of its image; None where it shows nothing.
    """

    name: str
    labels: LabelForm | None
    metrics: tuple[MetricSpec, ...]
    predict: Callable[[Tensors, Tensors], Predictions] = only_or_all
    terms: Terms
    label_loss: LabelLoss | None = None
    class_axis: int | None = None
    show: Show | None = None
    note: str | None = None

    def metric(self, name: str) -> MetricSpec:
        """The metric of this name; `KeyError` where there is none."""
        return {spec.name: spec for spec in self.metrics}[name]

    def usable(self, *, labelled: bool) -> tuple[MetricSpec, ...]:
        """The metrics that samples with or without labels allow."""
        return tuple(spec for spec in self.metrics if labelled or not spec.needs_labels)


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """What a task is made for: a few real samples, and what the original answers.

    Attributes:
        alphabet: The characters of symbols 1, 2, …, for tasks that read text; may be empty.
        swap: Pairs of keypoints that change places in a mirrored image; None where it is not known.
        classes: How many classes the recipe names; None where it names none.
        data_range: The largest value of images; None where it is not known.
    """

    inputs: Tensors
    outputs: Tensors
    alphabet: str = ""
    swap: tuple[tuple[int, int], ...] | None = None
    classes: int | None = None
    data_range: float | None = None

    @property
    def first(self) -> Tensor:
        """The first output."""
        return self.outputs[0]

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the first input.

        Raises:
            RecipeError: It is no image.
        """
        if self.inputs[0].ndim != 4:
            raise misfit("needs images (N, C, H, W) as the first input", self.inputs[0])
        height, width = self.inputs[0].shape[2:]
        return int(height), int(width)


def misfit(needs: str, found: Tensor) -> RecipeError:
    """The refusal of a model whose tensors do not suit the task."""
    shape = ["N", *found.shape[1:]]
    return RecipeError(
        f"{needs}, and the model's is {shape} {str(found.dtype).removeprefix('torch.')}", where="task", fix=FIX
    )


FIX = "name another task, or give metrics and a postprocess of your own (task.metrics, task.postprocess)"


@dataclass(frozen=True, slots=True)
class BinaryScores:
    """Independent yes-or-no scores: probabilities where the original's lie in [0, 1], else logits."""

    are_probabilities: bool

    @classmethod
    def like(cls, scores: Tensor) -> Self:
        """The reading of an original's scores of a few real samples."""
        return cls(bool(((scores >= 0) & (scores <= 1)).all()))

    def probabilities(self, scores: Tensor) -> Tensor:
        """Between 0 and 1."""
        return scores.float().clamp(0, 1) if self.are_probabilities else scores.float().sigmoid()

    def logits(self, scores: Tensor) -> Tensor:
        """Any real number, up to about 14 for a probability of one."""
        return scores.logit(1e-6) if self.are_probabilities else scores


@dataclass(frozen=True, slots=True)
class ClassScores:
    """Scores of classes that exclude each other: probabilities where the original's end in a softmax, else logits.

    Attributes:
        axis: Where the classes are.
    """

    axis: int
    are_probabilities: bool

    @classmethod
    def like(cls, scores: Tensor, axis: int = 1) -> Self:
        """The reading of an original's scores of a few real samples.

        >>> import torch
        >>> ClassScores.like(torch.tensor([[0.25, 0.75]])).are_probabilities
        True
        """
        add_up = (scores.float().sum(axis) - 1).abs().max() < 1e-3
        return cls(axis, bool(add_up and (scores >= 0).all()))

    def logits(self, scores: Tensor) -> Tensor:
        """Numbers of which a softmax gives the probabilities; down to about -14 for a probability of zero."""
        return scores.clamp_min(1e-6).log() if self.are_probabilities else scores
