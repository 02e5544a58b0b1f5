"""Open sizes: the samples give a run its sizes, and files keep open what the network and the target can."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from pipeline.core import DataError, RecipeError, TensorSpec
from pipeline.execution.apply import run
from pipeline.execution.prepare import check
from pipeline.execution.sizes import with_open_axes
from pipeline.models.load import from_module
from pipeline.recipe import parse_recipe
from pipeline.stages.export.stage import _fixed_sizes
from tests.pipeline.conftest import Project


def spec(shape: list[Any], **more: Any) -> TensorSpec:
    return TensorSpec.model_validate({"name": "x", "shape": shape, **more})


def test_a_shape_names_its_open_sizes() -> None:
    found = spec([3, "H", "seq <= 128"])
    assert found.shape == (3, 0, 128)
    assert [(each.axis, each.name, each.most) for each in found.open_sizes] == [(1, "H", None), (2, "seq", 128)]
    assert found.written == [3, "H", "seq"]
    assert TensorSpec.model_validate_json(found.model_dump_json()) == found


def test_onnx_files_take_other_sizes_and_follow_the_network(project: Project) -> None:
    project.recipe["model"]["inputs"][0]["shape"] = [1, "H", "W"]
    project.recipe |= {"stages": [{"quantize": {"observers": ["minmax"]}}], "targets": ["onnx"]}
    recipe = parse_recipe(project.recipe)
    network = check(recipe, project.folder).model.module
    report = run(recipe, project.folder / "out", root=project.folder)
    assert report.targets[0].status == "ok"
    stored = np.load(project.folder / "test.npz")["images"][:16, None].astype("f4") / 255
    images = np.tile(stored, (1, 1, 2, 2))[:, :, :12]
    for name, least_db in (("original", 80.0), ("model", 20.0)):
        path = project.folder / f"out/onnx/{name}.onnx"
        sizes = onnx.load(path).graph.input[0].type.tensor_type.shape.dim
        assert [size.dim_param or size.dim_value for size in sizes] == ["batch", 1, "H", "W"]
        (found,) = onnxruntime.InferenceSession(path).run(None, {"image": images})
        expected = network(torch.from_numpy(images)).detach().numpy()
        assert 10 * np.log10((expected**2).sum() / ((expected - found) ** 2).sum()) > least_db


class Flattened(nn.Module):
    """A linear layer over all pixels fixes the image's size."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(48, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x.flatten(1))  # type: ignore[no-any-return]


def test_a_size_that_the_network_fixes_is_noted(capsys: pytest.CaptureFixture[str]) -> None:
    model = from_module(Flattened(), (spec([3, 4, 4]),))
    opened = model.inputs[0].model_copy(update={"open_sizes": spec([3, "H", "W"]).open_sizes})
    fixed = with_open_axes(replace(model, inputs=(opened,)))
    assert dict(fixed.dynamic) == {}
    assert fixed.notes == tuple(f"input 'x': {name} is fixed at 4, by the model's own code" for name in ("H", "W"))
    assert "H is fixed at 4" in capsys.readouterr().err


def test_one_of_two_sizes_may_stay_open() -> None:
    model = from_module(nn.Conv1d(4, 3, 3), (spec([4, 6]),))
    opened = model.inputs[0].model_copy(update={"open_sizes": spec(["C", "T<=8"]).open_sizes})
    found = with_open_axes(replace(model, inputs=(opened,)))
    assert dict(found.dynamic) == {"x": (2,)}
    assert found.notes == ("input 'x': C is fixed at 4, by the model's own code",)


class FixedFile:
    capabilities = SimpleNamespace(open_sizes=False)


def test_a_target_that_holds_one_size_says_so() -> None:
    model = from_module(nn.ReLU(), (spec([3, 4, 4]),))
    opened = model.inputs[0].model_copy(update={"open_sizes": spec([3, "H", "W"]).open_sizes})
    (note,) = _fixed_sizes(replace(model, inputs=(opened,)), FixedFile())  # type: ignore[arg-type]
    assert note == "input 'x', open as [3, 'H', 'W'], has the samples' size in this file: [3, 4, 4]"


@pytest.mark.parametrize(
    ("shape", "problem"),
    [
        ([1, "H<=4", "W"], r"have H = 8; the model takes 4 at most"),
        (["C", 1, "H", "W"], r"have shape \[8, 8\] after preprocessing; the model takes \['C', 1, 'H', 'W'\]"),
        ([3, "H", "W"], r"have shape \[8, 8\] after preprocessing; the model takes \[3, 'H', 'W'\]"),
    ],
)
def test_samples_that_do_not_fit_open_sizes_are_refused(project: Project, shape: list[Any], problem: str) -> None:
    project.recipe["model"]["inputs"][0]["shape"] = shape
    with pytest.raises(DataError, match=problem):
        check(parse_recipe(project.recipe), project.folder)


@pytest.mark.parametrize("shape", [["batch", 1, 8, 8], [1, "H<8", 8], [1, "8", 8], [1, "H<=0", 8], [1, "", 8]])
def test_other_words_are_no_sizes(project: Project, shape: list[Any]) -> None:
    project.recipe["model"]["inputs"][0]["shape"] = shape
    with pytest.raises(RecipeError, match=r"model\.inputs\[0\]\.shape.*integer"):
        parse_recipe(project.recipe)


def test_the_samples_give_open_sizes_their_size(project: Project) -> None:
    project.recipe["model"]["inputs"][0]["shape"] = [1, "H", "W"]
    prepared = check(parse_recipe(project.recipe), project.folder)
    assert prepared.model.inputs[0].shape == (1, 8, 8)
    assert dict(prepared.model.dynamic) == {"image": (2, 3)}
