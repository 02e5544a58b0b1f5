"""The library on plain things: from a module and tensors to files, a report and records, without a recipe."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

import pipeline as ew
from pipeline.execution import library
from pipeline.stages import benchmark
from pipeline.tasks.comparison import sqnr_db
from targets.onnx import OnnxTarget
from tests.pipeline.execution.tiny import tiny_recipe
from tests.pipeline.stages.export.targets import Miswriting


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.back, self.head = nn.Conv2d(8, 8, 1), nn.Linear(8, 4)

    def forward(self, image: Tensor) -> Tensor:
        x = self.norm(self.stem(image)).relu()
        return self.head((x + self.back(x)).relu().mean((2, 3)))


def images(count: int, seed: int) -> Tensor:
    return torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def net() -> nn.Module:
    torch.manual_seed(0)
    return Network().eval()


@pytest.fixture(scope="module")
def labelled(net: nn.Module) -> TensorDataset:
    x = images(64, 1)
    with torch.no_grad():
        return TensorDataset(x, net(x).argmax(1))


@pytest.fixture(scope="module")
def int8(net: nn.Module, labelled: TensorDataset) -> ew.Model:
    return ew.quantize(net, calibration=DataLoader(labelled, batch_size=16, shuffle=True))


def run_onnx(path: Path, x: Tensor) -> Tensor:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (name,) = [each.name for each in session.get_inputs()]
    return torch.from_numpy(session.run(None, {name: x.numpy()})[0])


def test_plain_module_becomes_a_file_that_gives_what_its_program_gives(int8: ew.Model, tmp_path: Path) -> None:
    artifact = int8.export("onnx", tmp_path / "model.onnx")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["model.onnx"]
    assert (artifact.path, artifact.size_bytes) == (tmp_path / "model.onnx", (tmp_path / "model.onnx").stat().st_size)
    assert (artifact.samples, list(artifact.outputs_db)) == (8, ["output"])
    assert artifact.sqnr_db is not None
    assert artifact.sqnr_db > 40
    x = images(16, 2)
    with torch.no_grad():
        assert sqnr_db(int8.module(x), run_onnx(artifact.path, x)) > 40
        assert sqnr_db(int8.reference(x), run_onnx(artifact.path, x)) > 20
    assert "dB SQNR against the model on 8 samples" in str(artifact) or "equal to" in str(artifact)


def test_model_says_what_it_is(int8: ew.Model) -> None:
    first, second = repr(int8).splitlines()
    assert first == "Model: Network, INT8: image [N, 1, 8, 8] float32 -> output"
    assert second.startswith("  quantize: 188 parameters, ")
    assert "dB SQNR on held-out samples" in second


def test_file_of_another_name_replaces_an_older_one_only_when_it_is_right(tmp_path: Path) -> None:
    path = tmp_path / "app model.v2.onnx"
    path.write_bytes(b"an older one")
    wrong = Miswriting({torch.ops.aten.tanh.default: torch.ops.aten.neg.default})
    model = ew.from_module(nn.Sequential(nn.Flatten(), nn.Tanh()), samples=images(8, 3))
    with pytest.raises(ew.TargetError, match="has an SQNR of"):
        library.export_file(model, wrong, path)
    assert path.read_bytes() == b"an older one"
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    model.export("onnx", str(path), ew.OnnxConfig(cpu="arm"))
    with torch.no_grad():
        torch.testing.assert_close(run_onnx(path, images(4, 4)), model.module(images(4, 4)), rtol=1e-4, atol=1e-5)


EXPORTS: dict[str, tuple[tuple[Any, ...], str]] = {
    "no such target": (("onxx", "model.onnx"), "no target 'onxx'"),
    "another suffix": (("onnx", "model.tflite"), "is not the name of a file of onnx"),
    "no suffix": (("onnx", "model"), "is not the name of a file of onnx"),
    "no folder": (("onnx", "missing/model.onnx"), "cannot be written"),
    "options of another target": (("onnx", "model.onnx", ew.TfliteConfig()), "OnnxConfig|TfliteConfig"),
}


@pytest.mark.parametrize(("arguments", "problem"), EXPORTS.values(), ids=EXPORTS)
def test_export_refuses_what_cannot_be_written(
    int8: ew.Model, tmp_path: Path, arguments: tuple[Any, ...], problem: str
) -> None:
    target, name, *config = arguments
    with pytest.raises(ew.EdgewrightError, match=problem) as error:
        int8.export(target, tmp_path / name, *config)
    assert error.value.fix
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def report(int8: ew.Model, labelled: TensorDataset, tmp_path_factory: pytest.TempPathFactory) -> ew.Report:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(benchmark, "SECONDS_PER_CANDIDATE", 0.01)
        return ew.benchmark(int8, "onnx", labelled, root=tmp_path_factory.mktemp("out"))


def test_benchmark_gives_a_report_with_a_verdict_that_can_be_written(report: ew.Report, tmp_path: Path) -> None:
    assert report.original.metrics["top1"] == 1.0
    (record,) = report.targets
    assert (record.target, record.status) == ("onnx", "ok")
    assert record.metrics is not None
    assert record.metrics["top1"] > 0.9
    assert [stage.stage for stage in report.stages] == ["quantize"]
    assert report.data["evaluation"].samples == 64
    assert report.verdict is not None
    assert report.run.recipe["targets"] == ["onnx"]
    json_path, html_path = ew.write_report(report, str(tmp_path))
    assert ew.read_report(json_path).model_dump_json() == report.model_dump_json()
    assert "Network" in html_path.read_text()


def test_report_is_a_table_in_a_notebook(report: ew.Report) -> None:
    shown = report._repr_html_()
    assert "<table>" in shown
    assert "onnx <small>INT8" in shown


@pytest.mark.slow
def test_benchmark_takes_files_that_are_there(
    int8: ew.Model, labelled: TensorDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(benchmark, "SECONDS_PER_CANDIDATE", 0.01)
    files = ew.export(int8, [OnnxTarget()], str(tmp_path))
    found = ew.benchmark(int8, files, labelled, root=tmp_path, budgets=ew.Budget(metric="top1", max_drop=0.5))
    assert found.targets[0].artifact is not None
    assert found.targets[0].artifact.path == "onnx/model.onnx"
    assert found.budgets[0].verdict == {"onnx": "met"}


@pytest.mark.slow
def test_unlabelled_samples_are_benchmarked_by_fidelity(
    int8: ew.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(benchmark, "SECONDS_PER_CANDIDATE", 0.01)
    found = ew.benchmark(int8, ["onnx"], images(16, 5), root=tmp_path)
    assert found.task is not None
    assert found.task.name == "fidelity"
    assert found.task.note


def test_stages_take_plain_modules_and_follow_each_other(net: nn.Module, labelled: TensorDataset) -> None:
    small = ew.prune(net, ew.PruneConfig(parameters_ratio=0.7, round_to=1), labelled)
    assert sum(each.numel() for each in small.module.parameters()) <= 0.8 * 188
    better = ew.distill(small, ew.DistillConfig(epochs=2, batch_size=16), labelled, held_out=images(8, 6))
    program = ew.quantize(better, calibration=images(32, 7), budget=ew.Budget(max_drop=1.0))
    assert [record.stage for record in program.history] == ["prune", "distill", "quantize"]
    assert [record.stage for record in ew.distill(net, train=labelled).history] == ["distill"]


def test_task_is_taken_by_name(net: nn.Module, labelled: TensorDataset) -> None:
    named = ew.quantize(net, calibration=labelled, task="classification")
    assert named.history[-1].details["held_out"]["metric"] == "top1"
    with pytest.raises(ew.RecipeError, match="there is no task 'clasification'"):
        ew.quantize(net, calibration=labelled, task="clasification")


@pytest.mark.parametrize(
    ("call", "where"),
    [
        (lambda net: ew.quantize(net), "calibration"),
        (lambda net: ew.distill(net), "train"),
        (lambda net: ew.prune(net, ew.PruneConfig(macs_ratio=0.5)), "model"),
        (lambda net: ew.quantize(net, calibration=images(4, 0), held_out="x"), "held_out: x"),
        (lambda net: ew.quantize(net, calibration=images(8, 0), train=5), "train"),
        (lambda net: ew.convert(net), "prepared"),
        (lambda net: ew.run(net, "out"), "recipe"),
        (lambda net: ew.quantize(net, calibration=images(8, 0), task=5), "task"),
    ],
)
def test_missing_and_wrong_arguments_are_refused_naming_them(net: nn.Module, call: Any, where: str) -> None:
    with pytest.raises(ew.EdgewrightError) as error:
        call(net)
    assert error.value.where == where
    assert error.value.fix


def test_own_training_loop_on_a_plain_module_lowers_the_loss_and_is_exported(net: nn.Module, tmp_path: Path) -> None:
    prepared = ew.prepare_qat(net, calibration=images(32, 8))
    x = images(64, 9)
    labels = (x.mean((1, 2, 3)) > 0).long()
    optimizer, losses = torch.optim.Adam(prepared.parameters(), lr=0.02), []
    for step in range(20):
        if step == 10:
            prepared.freeze_ranges()
        optimizer.zero_grad()
        loss = cross_entropy(prepared(x), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
    result = ew.convert(prepared)
    artifact = result.export("onnx", tmp_path / "trained.onnx")
    with torch.no_grad():
        assert sqnr_db(prepared(x), run_onnx(artifact.path, x)) > 30


@pytest.mark.parametrize("form", ["recipe", "mapping", "path"])
def test_run_takes_a_recipe_a_mapping_or_a_path(form: str, tiny: Path, tmp_path: Path) -> None:
    recipe = tiny_recipe(stages=["quantize"])
    written = recipe.model_dump(mode="json", exclude_none=True)
    if form == "path":
        import yaml

        path = tiny / "recipe.yaml"
        path.write_text(yaml.safe_dump(written))
        found = ew.run(str(path), tmp_path / "out", store=tmp_path / "store")
    else:
        given: Any = recipe if form == "recipe" else written
        found = ew.run(given, str(tmp_path / "out"), root=tiny, store=str(tmp_path / "store"))
    assert [stage.stage for stage in found.stages] == ["quantize"]
    assert (tmp_path / "out" / "report.html").is_file()


def test_every_configuration_of_a_recipe_is_a_public_name() -> None:
    from pipeline import recipe
    from pipeline.core import Setting

    own = {
        name
        for name, each in vars(recipe).items()
        if isinstance(each, type) and issubclass(each, Setting) and each.__module__ == recipe.__name__
    }
    assert own - set(ew.__all__) == {"OneOf"}


def test_every_public_name_says_what_it_is() -> None:
    for name in set(ew.__all__) - {"Samples"}:  # a type
        each = getattr(ew, name)
        assert (getattr(each, "__doc__", "") or "").strip(), name
    assert math.isinf(ew.Artifact(target="onnx", path=Path("a"), size_bytes=1, outputs_db={"y": None}).sqnr_db or 0)
