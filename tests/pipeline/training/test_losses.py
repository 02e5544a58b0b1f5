import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pipeline.data.samples import Batch
from pipeline.recipe import Relations
from pipeline.tasks.task import Task
from pipeline.training.losses import angle_error, distance_error, distillation_loss
from tests.tasks import follows, task


def classes(count: int) -> Task:
    return task("classification", torch.zeros(1, count))


def numpy_log_softmax(logits: np.ndarray) -> np.ndarray:
    return logits - np.log(np.exp(logits).sum(1, keepdims=True))


def test_distillation_loss_equals_the_formula_in_numpy_when_labels_are_mixed_in() -> None:
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(2, 5, 3))
    x, labels = rng.normal(size=(4, 3)), np.array([0, 3, 4, 1])
    layers = []
    for weight in weights:
        layer = nn.Linear(3, 5, bias=False).double()
        layer.weight.data = torch.from_numpy(weight)
        layers.append(layer)
    student, teacher = layers
    s, t = x @ weights[0].T, x @ weights[1].T
    log_s, log_t = numpy_log_softmax(s / 3), numpy_log_softmax(t / 3)
    soft = 9 * (np.exp(log_t) * (log_t - log_s)).sum(1).mean()
    hard = -numpy_log_softmax(s)[np.arange(4), labels].mean()
    batch = Batch((torch.from_numpy(x),), torch.from_numpy(labels))
    loss = distillation_loss(teacher, classes(5), temperature=3.0, alpha=0.7)
    assert math.isclose(loss(student, batch).item(), 0.7 * soft + 0.3 * hard, rel_tol=1e-12)
    unlabelled = Batch(batch.inputs, None)
    assert math.isclose(loss(student, unlabelled).item(), soft, rel_tol=1e-12)


def test_distillation_loss_leaves_the_teacher_alone_when_only_labels_count() -> None:
    class Untouchable(nn.Module):
        def forward(self, _: Tensor) -> Tensor:
            raise AssertionError("the teacher was run")

    torch.manual_seed(0)
    student = nn.Linear(3, 5)
    batch = Batch((torch.randn(4, 3),), torch.tensor([0, 3, 4, 1]))
    loss = distillation_loss(Untouchable(), classes(5), temperature=4.0, alpha=0.0)
    expected = -numpy_log_softmax(student(*batch.inputs).detach().numpy())[np.arange(4), [0, 3, 4, 1]].mean()
    assert math.isclose(loss(student, batch).item(), expected, rel_tol=1e-6)
    for asking in (
        lambda: loss(student, Batch(batch.inputs, None)),
        lambda: distillation_loss(Untouchable(), classes(5), temperature=4.0, alpha=0.1)(student, batch),
        lambda: distillation_loss(Untouchable(), classes(5), temperature=4.0, alpha=0.0, relations=Relations())(
            student, batch
        ),
    ):
        with pytest.raises(AssertionError, match="teacher was run"):
            asking()


def test_distillation_loss_is_the_relative_squared_error_when_outputs_are_no_logits() -> None:
    class Constant(nn.Module):
        def __init__(self, *values: float) -> None:
            super().__init__()
            self.values = values

        def forward(self, x: Tensor) -> tuple[Tensor, ...]:
            return tuple(torch.full((len(x), 1, 2), value) for value in self.values)

    loss = distillation_loss(Constant(2.0, 100.0), follows(torch.zeros(1, 1, 2)), temperature=4.0, alpha=0.5)
    batch = Batch((torch.zeros(3, 1),), None)
    assert math.isclose(loss(Constant(1.0, 90.0), batch).item(), 1 / 4 + 100 / 10_000, rel_tol=1e-6)


def test_distillation_loss_asks_the_teacher_for_what_has_no_labels_when_only_labels_count() -> None:
    class Heads(nn.Module):
        def __init__(self, distance: float) -> None:
            super().__init__()
            self.distance = distance

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x, torch.full((len(x), 1), self.distance)

    batch = Batch((torch.zeros(3, 4),), torch.tensor([0, 1, 2]))
    loss = distillation_loss(Heads(2.0), classes(4), temperature=4.0, alpha=0.0)
    assert math.isclose(loss(Heads(1.0), batch).item(), math.log(4) + 1 / 4, rel_tol=1e-6)
    silent = distillation_loss(Heads(0.0), classes(4), temperature=4.0, alpha=0.0)  # relative to nothing at all
    assert math.isclose(silent(Heads(0.0), batch).item(), math.log(4), rel_tol=1e-6)


def test_distillation_loss_adds_the_relations_of_the_first_output_when_asked() -> None:
    torch.manual_seed(0)
    student, teacher = nn.Linear(3, 5), nn.Linear(3, 5)
    batch = Batch((torch.randn(6, 3),), None)
    plain = distillation_loss(teacher, classes(5), temperature=2.0, alpha=0.5)(student, batch)
    loss = distillation_loss(
        teacher, classes(5), temperature=2.0, alpha=0.5, relations=Relations(distance=3.0, angle=5.0)
    )
    s, t = student(*batch.inputs), teacher(*batch.inputs)
    torch.testing.assert_close(loss(student, batch), plain + 3 * distance_error(s, t) + 5 * angle_error(s, t))


def test_distance_error_equals_the_hand_computed_value_when_three_points_lie_on_a_line() -> None:
    # Distances 1, 3, 2 and 2, 3, 1, both of mean 2: in its units they differ by 1/2, 0 and 1/2.
    student, teacher = torch.tensor([[0.0], [1.0], [3.0]]), torch.tensor([[0.0], [2.0], [3.0]])
    assert math.isclose(distance_error(student, teacher).item(), (0.5**2 / 2 + 0 + 0.5**2 / 2) / 3, rel_tol=1e-6)


def test_angle_error_equals_the_hand_computed_value_when_triangles_differ() -> None:
    equilateral = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.5, math.sqrt(3) / 2]])  # cosines 1/2, 1/2, 1/2
    right = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])  # cosines 0, sqrt(1/2), sqrt(1/2)
    expected = (0.5**2 / 2 + 2 * (math.sqrt(0.5) - 0.5) ** 2 / 2) / 3
    assert math.isclose(angle_error(equilateral, right).item(), expected, rel_tol=1e-5)


@pytest.mark.parametrize("error", [distance_error, angle_error])
def test_relation_errors_are_zero_when_the_student_is_turned_moved_and_scaled(error) -> None:  # type: ignore[no-untyped-def]
    points = torch.randn(7, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    turned, _ = torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64))
    assert error(3 * points @ turned + 5, points).item() < 1e-10
    assert error(points**2, points).item() > 1e-3


@pytest.mark.parametrize("count", [1, 2])
def test_relation_errors_are_finite_with_gradients_when_the_batch_is_tiny_or_its_samples_equal(count: int) -> None:
    student = torch.ones(count, 3, requires_grad=True)
    (distance_error(student, torch.randn(count, 3)) + angle_error(student, torch.randn(count, 3))).backward()
    assert student.grad is not None
    assert torch.isfinite(student.grad).all()
