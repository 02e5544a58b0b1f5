import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.core import StageError
from pipeline.data.samples import Batch
from pipeline.models.capture import example_inputs
from pipeline.models.load import from_module
from pipeline.recipe import Features, PruneConfig
from pipeline.stages.prune import prune
from pipeline.tasks.builtin import classification
from pipeline.tasks.task import Example
from pipeline.training.features import FeatureLoss, attention_error, hint_error, matching_layers
from pipeline.training.losses import distillation_loss
from tests.networks.structures import IMAGE, build

INPUTS = example_inputs((IMAGE,), 4)


def zero(teacher: nn.Module) -> Callable[[nn.Module, Batch], Tensor]:
    """A loss of nothing, which still runs both networks."""

    def loss(student: nn.Module, batch: Batch) -> Tensor:
        teacher(*batch.inputs)
        return student(*batch.inputs).sum() * 0

    return loss


def feature_loss(student: nn.Module, teacher: nn.Module, **config: object) -> FeatureLoss:
    torch.manual_seed(0)
    return FeatureLoss(zero(teacher), student, teacher, Features.model_validate(config), INPUTS)


def test_attention_error_equals_the_hand_computed_value_when_maps_have_two_channels() -> None:
    student = torch.tensor([[[1.0, 0.0], [2.0, 0.0]]])  # energies 5, 0: direction (1, 0)
    teacher = torch.tensor([[[2.0, 0.0], [0.0, 2.0]]])  # energies 4, 4: direction (1, 1) / sqrt 2
    expected = (1 - math.sqrt(0.5)) ** 2 + 0.5
    assert math.isclose(attention_error(student, teacher).item(), expected, rel_tol=1e-6)
    assert attention_error(3 * teacher, teacher).item() < 1e-12


def test_hint_error_is_relative_to_the_teachers_mean_square() -> None:
    assert hint_error(torch.full((2, 3, 4), 1.0), torch.full((2, 3, 4), -2.0)).item() == 9 / 4


@pytest.mark.parametrize(
    ("name", "layers"),
    [("residual", ("layers.0", "layers")), ("mobile", ("blocks",)), ("transformer", ("fc2",))],
)
def test_matching_layers_are_the_last_at_each_resolution_when_a_network_is_pruned(
    name: str, layers: tuple[str, ...]
) -> None:
    model = from_module(build(name), (IMAGE,))
    student = prune(model, PruneConfig(macs_ratio=0.8)).module
    assert matching_layers(student, model.reference, INPUTS) == layers


@pytest.mark.parametrize("kind", ["attention", "hint"])
def test_feature_loss_equals_its_formula_on_the_layers_outputs_when_computed_by_hand(kind: str) -> None:
    teacher, student = build("residual"), build("residual", seed=1)
    loss = feature_loss(student, teacher, kind=kind, weight=3.0, layers={"stem": "layers.0"})
    with torch.no_grad():
        own, taught = student.stem(*INPUTS), teacher.layers[0](teacher.stem(*INPUTS))
    if kind == "attention":
        q_s, q_t = (functional.normalize(x.pow(2).sum(1).flatten(1)) for x in (own, taught))
        expected = (q_s - q_t).pow(2).sum(1).mean()
    else:
        (projection,) = loss.projections
        projected = functional.conv2d(own, projection.weight[..., None], projection.bias)
        expected = (projected - taught).pow(2).mean() / taught.pow(2).mean()
    torch.testing.assert_close(loss(student, Batch(INPUTS, None)), 3 * expected)


def test_feature_loss_asks_the_teacher_itself_when_its_base_only_asks_the_labels() -> None:
    config = Features()
    batch = Batch(INPUTS, torch.tensor([0, 1, 2, 3]))
    student, teacher = build("residual"), build("residual")
    for parameter in student.parameters():
        parameter.data *= 1.5
    task = classification.task(Example(inputs=INPUTS, outputs=(student(*INPUTS),)))
    labels_alone = distillation_loss(teacher, task, temperature=4.0, alpha=0.0)
    loss = FeatureLoss(labels_alone, student, teacher, config, INPUTS)
    expected = labels_alone(student, batch) + FeatureLoss(zero(teacher), student, teacher, config, INPUTS)(
        student, batch
    )
    torch.testing.assert_close(loss(student, batch), expected)


def test_feature_loss_is_zero_in_attention_when_the_student_is_the_teacher() -> None:
    teacher = build("residual")
    assert feature_loss(teacher, teacher)(teacher, Batch(INPUTS, None)).item() == 0


def test_feature_loss_owns_the_projections_alone_and_leaves_no_hooks() -> None:
    teacher, student = build("residual"), build("residual", seed=1)
    loss = feature_loss(student, teacher, kind="hint")
    loss(student, Batch(INPUTS, None))
    own = {id(parameter) for parameter in loss.parameters()}
    assert own == {id(p) for projection in loss.projections for p in projection.parameters()}
    assert [(p.in_channels, p.out_channels) for p in loss.projections] == [(16, 16), (32, 32)]
    assert not any(part._forward_hooks for module in (student, teacher) for part in module.modules())
    assert not list(feature_loss(student, teacher, kind="attention").parameters())


def test_feature_loss_trains_student_and_projection_when_stepped_down() -> None:
    teacher, student = build("residual"), build("residual", seed=1)
    loss = feature_loss(student, teacher, kind="hint")
    optimizer = torch.optim.Adam([*student.parameters(), *loss.parameters()], 0.01)
    values = []
    for _ in range(8):
        optimizer.zero_grad()
        value = loss(student, Batch(INPUTS, None))
        value.backward()
        optimizer.step()
        values.append(value.item())
    assert values[-1] < 0.7 * values[0]
    assert all(parameter.grad is not None for parameter in loss.parameters())


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        ({"layers": ("layres.0",)}, r"no layer 'layres.0'; did you mean 'layers.0'"),
        ({"layers": {"stem": "layers.9.conv1"}}, "the teacher has no layer"),
        ({"layers": {"stem": "layers"}}, "'stem' has 144 positions, the teacher's 'layers' has 36"),
        ({"layers": ("classifier",)}, "no attention map"),
    ],
)
def test_feature_loss_refuses_when_layers_cannot_be_compared(config: dict[str, object], problem: str) -> None:
    with pytest.raises(StageError, match=problem):
        feature_loss(build("residual"), build("residual"), **config)


def test_feature_loss_asks_for_names_when_the_networks_share_none() -> None:
    other = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10))
    with pytest.raises(StageError, match="no layers of the same name") as caught:
        feature_loss(other, build("residual"))
    assert "student's layer" in (caught.value.fix or "")
    assert feature_loss(other, build("residual"), kind="hint", layers={"0": "stem", "2": "pool"}).layers
