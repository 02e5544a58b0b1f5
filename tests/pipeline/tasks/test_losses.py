"""Distillation losses of tasks, by hand: which output counts how much, and where."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from pipeline.data.samples import Batch
from pipeline.tasks.task import Task
from pipeline.training.losses import distillation_loss
from tests.tasks import task

IMAGE = torch.zeros(1, 3, 20, 30)
HALF_TO_QUARTER = 0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25)
"""The divergence of (3/4, 1/4) from (1/2, 1/2)."""


class Gives(nn.Module):
    """A network with these outputs."""

    def __init__(self, *outputs: Tensor) -> None:
        super().__init__()
        self.outputs = outputs

    def forward(self, _: Tensor) -> tuple[Tensor, ...]:
        return self.outputs


def terms(made: Task, student: tuple[Tensor, ...], teacher: tuple[Tensor, ...]) -> list[float]:
    return [float(term) for term in made.terms(student, teacher, 1.0)]


def logits(*shares: float) -> Tensor:
    return torch.tensor(shares).log()


def test_detection_has_a_term_for_scores_and_one_for_boxes() -> None:
    """The sure anchor is off by 2 in one of four numbers, the other far off where the teacher sees nothing."""
    teacher = torch.tensor([[[0.0, 0, 10, 10], [0, 0, 5, 5]]]), torch.tensor([[[0.8], [0.0]]])
    student = torch.tensor([[[0.0, 0, 10, 12], [9, 9, 9, 9]]]), torch.tensor([[[0.6], [0.0]]])
    scores, boxes = terms(task("detection", *teacher, inputs=(IMAGE,)), student, teacher)
    assert scores == pytest.approx(0.2**2 / 0.8**2)
    assert boxes == pytest.approx(1.5 / 4 / (0.05 * 30))  # Huber, in units of a twentieth of the image


def test_detection_reads_one_output_as_it_reads_two() -> None:
    torch.manual_seed(0)
    teacher, student = (torch.rand(2, 6, 9) for _ in range(2))
    together = task("detection", teacher, inputs=(IMAGE,))
    apart = task("detection", teacher[:, :4].mT, teacher[:, 4:].mT, inputs=(IMAGE,))
    halves = [(each[:, :4].mT, each[:, 4:].mT) for each in (student, teacher)]
    assert terms(together, (student,), (teacher,)) == pytest.approx(terms(apart, *halves))


def test_detection_scores_of_a_teacher_with_logits_are_compared_by_their_divergence() -> None:
    boxes = torch.zeros(1, 1, 4)
    teacher, student = torch.tensor([[[0.0, -5.0]]]), torch.tensor([[[math.log(3), -5.0]]])
    scores, _ = terms(task("detection", boxes, teacher, inputs=(IMAGE,)), (boxes, student), (boxes, teacher))
    assert scores == pytest.approx(HALF_TO_QUARTER / 2, rel=1e-5)


@pytest.mark.parametrize(
    ("name", "output", "known", "unknown"),
    [
        ("segmentation", torch.randn(2, 3, 4, 4), torch.zeros(2, 4, 4, dtype=torch.long), 255),
        ("tokens", torch.randn(2, 4, 3), torch.zeros(2, 4, dtype=torch.long), -100),
        ("depth", torch.rand(2, 4, 4), torch.ones(2, 4, 4), 0),
    ],
)
def test_loss_on_labels_is_zero_with_zero_gradient_when_no_label_counts(
    name: str, output: Tensor, known: Tensor, unknown: int
) -> None:
    loss = task(name, output).label_loss
    assert loss is not None
    given = output.clone().requires_grad_(True)
    value = loss((given,), torch.full_like(known, unknown))
    value.backward()
    assert value == 0
    assert given.grad is not None
    assert given.grad.abs().max() == 0
    half = known.clone()
    half[1] = unknown
    torch.testing.assert_close(loss((output,), half), loss((output[:1],), known[:1]))


def test_segmentation_averages_the_divergence_over_places() -> None:
    teacher = torch.zeros(1, 2, 2, 2)
    student = teacher.clone()
    student[0, :, 0, 1] = logits(0.75, 0.25)
    (term,) = terms(task("segmentation", teacher), (student,), (teacher,))
    assert term == pytest.approx(HALF_TO_QUARTER / 4)


@pytest.mark.parametrize("name", ["ctc", "tokens"])
def test_sequences_average_the_divergence_over_frames(name: str) -> None:
    teacher = logits(0.5, 0.5).expand(1, 3, 2)
    student = teacher.clone()
    student[0, 2] = logits(0.75, 0.25)
    (term,) = terms(task(name, teacher), (student,), (teacher,))
    assert term == pytest.approx(HALF_TO_QUARTER / 3)


@pytest.mark.parametrize("name", ["classification", "segmentation", "tokens", "ctc", "fidelity"])
@pytest.mark.parametrize("form", ["logits", "probabilities"])
def test_classes_are_compared_alike_when_a_network_ends_in_a_softmax(name: str, form: str) -> None:
    """By hand: the second of two places goes from one half each to three and one quarters."""
    shares = torch.tensor([[[0.9, 0.1], [0.5, 0.5]], [[0.9, 0.1], [0.75, 0.25]]])  # teacher, student
    axis = 2 if name in ("tokens", "ctc") else 1
    teacher, student = (each[None] if axis == 2 else each for each in shares)
    if name == "segmentation":
        teacher, student = (each.T[None, :, None] for each in (teacher, student))
    if form == "logits":
        teacher, student = teacher.log(), student.log()
    made = task(name, teacher, inputs=(IMAGE,))
    assert terms(made, (student,), (teacher,)) == [pytest.approx(HALF_TO_QUARTER / 2, rel=1e-5)]


def test_labels_are_compared_with_probabilities_as_they_are() -> None:
    """The cross-entropy of a class that has a share of one quarter is the logarithm of four."""
    shares = torch.tensor([[0.75, 0.25]])
    made = task("classification", shares)
    assert made.label_loss is not None
    assert float(made.label_loss((shares,), torch.tensor([1]))) == pytest.approx(math.log(4))


def test_embeddings_are_compared_by_their_angle_whatever_their_length() -> None:
    teacher = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    student = torch.tensor([[5.0, 0.0], [3.0, 3.0]])
    (term,) = terms(task("embedding", teacher), (student,), (teacher,))
    assert term == pytest.approx((0 + 1 - math.sqrt(0.5)) / 2, rel=1e-5)


@pytest.mark.parametrize("name", ["binary", "multilabel"])
@pytest.mark.parametrize("form", ["logits", "probabilities"])
def test_answers_that_are_independent_have_a_divergence_each(name: str, form: str) -> None:
    teacher, student = torch.tensor([[0.5, 0.9]]), torch.tensor([[0.75, 0.9]])
    if form == "logits":
        teacher, student = teacher.logit(), student.logit()
        teacher = torch.cat([teacher, torch.tensor([[-3.0]])], 1)  # below 0: no probability
        student = torch.cat([student, torch.tensor([[-3.0]])], 1)
    (term,) = terms(task(name, teacher), (student,), (teacher,))
    assert term == pytest.approx(HALF_TO_QUARTER / teacher.shape[1], rel=1e-4)


@pytest.mark.parametrize("name", ["regression", "image", "depth", "keypoints"])
def test_values_are_compared_relative_to_the_teachers_power(name: str) -> None:
    shape = {"regression": (2, 3), "image": (2, 1, 16, 16), "depth": (2, 1, 4, 4), "keypoints": (2, 5, 2)}[name]
    teacher = torch.full(shape, 2.0)
    made = task(name, teacher, inputs=(IMAGE,))
    assert terms(made, (teacher + 1,), (teacher,)) == [pytest.approx(1 / 4)]


def test_labels_take_their_share_of_the_first_term_alone() -> None:
    teacher, student = torch.full((2, 1), 2.0), torch.full((2, 1), 3.0)
    further = torch.ones(2, 4)
    made = task("regression", teacher, further)
    loss = distillation_loss(Gives(teacher, further), made, temperature=4.0, alpha=0.75)
    labels = torch.tensor([4.0, 4.0])
    inputs = (torch.zeros(2, 1),)
    expected = 0.75 * 1 / 4 + 0.25 * 1 / 16 + 0.5**2
    assert float(loss(Gives(student, further * 1.5), Batch(inputs, labels))) == pytest.approx(expected)
    unlabelled = float(loss(Gives(student, further * 1.5), Batch(inputs, None)))
    assert unlabelled == pytest.approx(1 / 4 + 0.5**2)
