"""``edgewright init``: a recipe that is right at once, for the checkpoints and samples that people have."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from pipeline.cli.changes import Changes, read_changed
from pipeline.core import CheckpointError
from pipeline.data.recognise import recognise
from pipeline.models.checkpoints.networks import network_for
from pipeline.report.model import read_report
from tests.pipeline.cli.conftest import edgewright

NET = """
from torch import nn

class ColourNet(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(8, num_classes)

    def forward(self, x):
        return self.head(self.body(x))
"""
CLASSES = ("blue", "green", "red")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A user's empty folder, from which the command is given; modules imported from it are forgotten afterwards."""
    path, modules = list(sys.path), set(sys.modules)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def photos(folder: Path, count: int, *, size: int = 12, seed: int = 0) -> None:
    """Noise with one strong channel, which is the class."""
    rng = np.random.default_rng(seed)
    for channel, name in ((2, "blue"), (1, "green"), (0, "red")):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            image = rng.integers(0, 150, (size, size, 3), dtype=np.uint8)
            image[..., channel] += 100
            Image.fromarray(image).save(folder / name / f"{number}.png")


def colour_net() -> nn.Module:
    """A network that tells the classes from inputs in ImageNet's normalisation, and not without."""
    namespace: dict[str, Any] = {}
    exec(NET, namespace)
    net: Any = namespace["ColourNet"](3)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.zero_()
        for index, channel in enumerate((2, 1, 0)):
            net.body[0].weight[index, channel, 1, 1] = 1.0
            net.body[0].bias[index] = 10.0
            net.head.weight[index, index] = 5.0
    return net.eval()


def state_dict_project(folder: Path) -> None:
    (folder / "colours.py").write_text(NET)
    torch.save({"epoch": 3, "state_dict": colour_net().state_dict()}, folder / "weights.pt")
    photos(folder / "photos", 40)


def test_photos_and_a_state_dict_run_with_nothing_edited(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    state_dict_project(folder)
    (folder / "train.py").write_text("from colours import ColourNet\nraise SystemExit('I train')\n")
    assert edgewright(monkeypatch, "init", "weights.pt", "--data", "photos") == 0
    printed = capsys.readouterr()
    assert "wrote recipe.yaml" in printed.err
    assert "Next: edgewright run recipe.yaml" in printed.out
    text = (folder / "recipe.yaml").read_text()
    written = yaml.safe_load(text)
    assert written["model"] == {
        "factory": "colours:ColourNet",
        "checkpoint": "weights.pt",
        "inputs": [{"name": "image", "shape": [3, 12, 12]}],
        "kwargs": {"num_classes": 3},
        "classes": list(CLASSES),
    }
    assert written["data"]["evaluation"] == {"folder": "photos", "part": {"held_out": True, "share": 0.2}}
    assert written["data"]["train"] == {"folder": "photos", "part": {"held_out": False}}
    assert "training samples" in text
    options = ("--targets", "onnx", "--out", "out", "--json")
    assert edgewright(monkeypatch, "run", "recipe.yaml", *options) == 0
    document = json.loads(capsys.readouterr().out)
    report = read_report(Path(document["report"]))
    assert report.original.metrics["top1"] == 1.0
    assert [target.status for target in report.targets] == ["ok"]


def test_file_that_is_there_stays_as_it_is(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    state_dict_project(folder)
    (folder / "recipe.yaml").write_text("mine")
    assert edgewright(monkeypatch, "init", "weights.pt", "--data", "photos") == 2
    assert "--force" in capsys.readouterr().err
    assert (folder / "recipe.yaml").read_text() == "mine"
    assert edgewright(monkeypatch, "init", "weights.pt", "--data", "photos", "--force") == 0
    assert (folder / "recipe.yaml").read_text() != "mine"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--data", "photos"], "give CHECKPOINT"),
        (["weights.pt"], "give --data"),
        (["absent.pt", "--data", "photos"], "absent.pt: no such file"),
        (["weights.pt", "--data", "nix"], "nix: no such file"),
        (["weights.pt", "--data", "photos", "--factory", "colours"], "must be module:callable"),
        (["weights.pt", "--data", "photos", "--factory", "absent_mod:net"], "there is no module 'absent_mod'"),
        (["weights.pt", "--data", "photos", "--out", "photos"], "is a folder"),
        (["weights.pt", "--data", "photos", "--out", "nix/recipe.yaml"], "its folder does not exist"),
        (["weights.pt", "--data", "photos", "--shape", "3,x"], "is no shape"),
        (["weights.pt", "--data", "empty"], "holds no samples that are known"),
    ],
)
def test_mistake_is_one_message_and_writes_nothing(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    expected: str,
) -> None:
    state_dict_project(folder)
    (folder / "empty").mkdir()
    monkeypatch.setattr("sys.stdin", open("/dev/null"))  # noqa: PTH123,SIM115  no terminal
    assert edgewright(monkeypatch, "init", *arguments) == 2
    printed = capsys.readouterr().err
    assert expected in printed
    assert "fix: " in printed
    assert not (folder / "recipe.yaml").exists()


def test_program_and_arrays_need_nothing_else(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net = colour_net()
    program = torch.export.export(net, (torch.zeros(2, 3, 8, 8),), dynamic_shapes=({0: torch.export.Dim("batch")},))
    torch.export.save(program, folder / "net.pt2")
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 64)
    images = rng.random((64, 3, 8, 8), dtype=np.float32)
    for image, label in zip(images, labels, strict=True):
        image[2 - label] += 2
    np.savez(folder / "all.npz", x_train=images[:32], y_train=labels[:32], x_test=images[32:], y_test=labels[32:])
    assert edgewright(monkeypatch, "init", "net.pt2", "--data", "all.npz", "--out", "r.yaml") == 0
    data = read_changed(folder / "r.yaml", Changes()).data
    assert data.train is not None
    assert (data.train.inputs, data.train.labels) == (("x_train",), "y_train")
    assert (data.evaluation.inputs, data.evaluation.labels) == (("x_test",), "y_test")


def networks(folder: Path, **files: str) -> None:
    for name, text in files.items():
        (folder / f"{name}.py").write_text(text)


def test_network_is_the_one_whose_weights_fit(folder: Path) -> None:
    save_file(colour_net().state_dict(), folder / "w.safetensors")
    other = NET.replace("ColourNet", "WideNet").replace("8", "16")
    builder = f"{NET}\ndef colour_net():\n    return ColourNet(num_classes=3)\n"
    networks(folder, nets=builder, wide=other, plain="x = 1\n", broken="def (")
    found = network_for(folder / "w.safetensors", None, [folder], folder)
    assert found.factory == "nets:ColourNet"  # the function builds the same
    assert found.kwargs == {"num_classes": 3}


def test_two_networks_that_fit_are_named(folder: Path) -> None:
    save_file(colour_net().state_dict(), folder / "w.safetensors")
    networks(folder, one=NET, two=NET.replace("ColourNet", "OtherNet").replace("nn.ReLU()", "nn.Tanh()"))
    with pytest.raises(CheckpointError, match=r"fits several networks: one:ColourNet, two:OtherNet") as refused:
        network_for(folder / "w.safetensors", None, [folder], folder)
    assert "--factory one:ColourNet" in str(refused.value)


@pytest.mark.parametrize(
    "script",
    [
        "{net}\nprint(open('ran', 'w'))",
        "{net}\nfor _ in range(1):\n    open('ran', 'w')",
        "{net}\nlog = open('ran', 'w')",
        "import train\n{net}",
        "if True:\n    open('ran', 'w')\n{net}",
    ],
)
def test_file_that_does_its_work_when_imported_is_never_imported(folder: Path, script: str) -> None:
    save_file(colour_net().state_dict(), folder / "w.safetensors")
    networks(folder, script=script.format(net=NET), train="open('ran', 'w')")
    with pytest.raises(CheckpointError, match=r"script.py would run code"):
        network_for(folder / "w.safetensors", None, [folder], folder)
    assert not (folder / "ran").exists()


def test_function_that_does_more_than_build_is_never_called(folder: Path) -> None:
    save_file(colour_net().state_dict(), folder / "w.safetensors")
    networks(folder, work=f"{NET}\ndef fetch():\n    open('ran', 'w')\n    return ColourNet(3)\n")
    assert network_for(folder / "w.safetensors", None, [folder], folder).factory == "work:ColourNet"
    assert not (folder / "ran").exists()


def test_no_network_that_fits_is_said_with_what_was_looked_at(folder: Path) -> None:
    save_file({"other.weight": torch.zeros(2, 2)}, folder / "w.safetensors")
    networks(folder, nets=NET)
    with pytest.raises(CheckpointError, match=r"no network in .* fits them; looked at nets:ColourNet"):
        network_for(folder / "w.safetensors", None, [folder], folder)


def test_samples_are_recognised_by_what_is_there(folder: Path) -> None:
    photos(folder / "split" / "train", 2)
    photos(folder / "split" / "val", 2)
    found = recognise(folder / "split")
    assert (found.classes, found.task) == (CLASSES, "classification")
    assert found.sets["evaluation"] == {"folder": folder / "split" / "val"}
    assert found.sets["calibration"] == {"folder": folder / "split" / "train", "limit": 500}

    loose = recognise(folder / "split" / "val" / "red")
    assert loose.evaluation == {"folder": folder / "split" / "val" / "red", "labels": None}

    coco = folder / "coco"
    (coco / "annotations").mkdir(parents=True)
    for part in ("train", "val"):
        (coco / f"{part}2017").mkdir()
        Image.new("RGB", (8, 8)).save(coco / f"{part}2017" / f"{part}.png")
        content = {"images": [{"id": 1, "file_name": f"{part}.png"}], "annotations": [], "categories": [
            {"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}]}  # fmt: skip
        (coco / "annotations" / f"instances_{part}2017.json").write_text(json.dumps(content))
    boxes = recognise(coco)
    assert (boxes.task, boxes.classes) == ("detection", ("cat", "dog"))
    assert boxes.train == {
        "folder": coco / "train2017",
        "coco": coco / "annotations" / "instances_train2017.json",
    }

    yolo = folder / "yolo"
    (yolo / "images").mkdir(parents=True)
    (yolo / "labels").mkdir()
    Image.new("RGB", (8, 8)).save(yolo / "images" / "a.png")
    (yolo / "labels" / "a.txt").write_text("0 .5 .5 1 1\n")
    assert recognise(yolo).evaluation == {"folder": yolo / "images", "yolo": yolo / "labels"}

    (folder / "t.csv").write_text("text,label\nhello,1\n")
    assert recognise(folder / "t.csv").evaluation == {"table": folder / "t.csv"}
