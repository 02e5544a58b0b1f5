"""Every format of data through the door: a recipe is checked, and every sample of it read, as for a run."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from scipy.io import wavfile

from pipeline.core import DataError, RecipeError
from pipeline.execution.apply import run
from pipeline.execution.prepare import Prepared, check
from pipeline.recipe import parse_recipe

NETWORKS = """
import torch
from torch import nn


class Segmenter(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 3, 1))


class Detector(nn.Sequential):
    def __init__(self):  # 4 numbers of a box and 2 classes, at 16 anchors
        super().__init__(nn.Conv2d(1, 6, 3, stride=2, padding=1), nn.Flatten(2))


class Reader(nn.Sequential):
    def __init__(self):  # a blank and 2 letters, in 8 frames
        super().__init__(nn.Conv2d(1, 3, (8, 1)), nn.Flatten(2))

    def forward(self, x):
        return super().forward(x).transpose(1, 2)


class Classifier(nn.Sequential):
    def __init__(self, classes=2):
        super().__init__(nn.Flatten(), nn.Linear(64, classes))


class Poser(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Flatten(), nn.Linear(64, 8), nn.Unflatten(1, (4, 2)))


def boxes():
    label = {"boxes": torch.tensor([[0.0, 0, 4, 4]]), "labels": torch.tensor([1])}
    return [(torch.rand(1, 8, 8), label) for _ in range(4)]


def rows():
    return [{"photo": torch.rand(1, 8, 8), "mean": 3.0, "kind": index % 2} for index in range(4)]


def loader():
    return torch.utils.data.DataLoader([(torch.rand(1, 8, 8), index % 2) for index in range(4)], shuffle=True)


def frame():
    import pandas
    return pandas.DataFrame({"image": ["images/0.png", "images/1.png"], "label": ["dog", "cat"]})


def collate(items):
    labels = {name: [label[name] for _, label in items] for name in ("boxes", "labels")}
    return torch.stack([image for image, _ in items]), labels
"""
MODULE = "networks_of_tasks"


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("formats")
    (folder / f"{MODULE}.py").write_text(NETWORKS)
    namespace: dict[str, Any] = {}
    exec(NETWORKS, namespace)  # the file itself is imported by the check
    torch.manual_seed(0)
    for name in ("Segmenter", "Detector", "Reader", "Classifier", "Poser"):
        save_file(namespace[name]().state_dict(), folder / f"{name}.safetensors")
    (folder / "images").mkdir()
    (folder / "masks").mkdir()
    random = np.random.default_rng(0)
    for index in range(4):
        Image.fromarray(random.integers(0, 255, (12, 16), np.uint8)).save(folder / f"images/{index}.png")
        Image.fromarray(random.integers(0, 3, (12, 16), np.uint8)).save(folder / f"masks/{index}.png")
    return folder


def recipe(network: str, data: dict[str, Any], sets: Any = None, **keys: Any) -> Any:
    return parse_recipe(
        {
            "name": "formats",
            "model": {
                "factory": f"{MODULE}:{network}",
                "checkpoint": f"{network}.safetensors",
                "inputs": [{"name": "image", "shape": [1, 8, 8]}],
                **keys.pop("model", {}),
            },
            "data": {
                "preprocessing": keys.pop("preprocessing", {"scale": 1 / 255, "resize": [8, 8]}),
                "evaluation": data,
                **(sets or {}),
            },
            **keys,
        }
    )


def checked(project: Path, *arguments: Any, **keys: Any) -> Prepared:
    return check(recipe(*arguments, **keys), project)


def labels_of(prepared: Prepared, shape: tuple[int, ...] = (1, 8, 8)) -> Any:
    batch = next(prepared.evaluation.batches(8))
    assert batch.inputs[0].shape[1:] == shape
    return batch.labels


MASKS = {"folder": "images", "masks": "masks"}


def test_folders_of_images_and_masks(project: Path) -> None:
    prepared = checked(project, "Segmenter", MASKS, task="segmentation")
    assert labels_of(prepared).shape == (4, 8, 8)
    assert prepared.budgets[0].metric == "miou"


def test_masks_train_and_are_evaluated_with_their_images(project: Path, tmp_path: Path) -> None:
    augment = {"horizontal_flip": True, "shift": 1, "rotation": 10}
    stages = [{"distill": {"epochs": 1, "batch_size": 2, "augment": augment}}]
    with_train = recipe("Segmenter", MASKS, task="segmentation", stages=stages, sets={"train": MASKS})
    report = run(with_train, tmp_path / "out", root=project)
    assert set(report.original.metrics) >= {"miou", "pixel_accuracy"}


def test_coco_boxes(project: Path) -> None:
    content = {
        "images": [{"id": i, "file_name": f"{i}.png", "width": 16, "height": 12} for i in range(4)],
        "annotations": [{"id": 5, "image_id": 2, "category_id": 9, "bbox": [2, 3, 4, 6]}],
        "categories": [{"id": 9, "name": "cat"}],
    }
    (project / "boxes.json").write_text(json.dumps(content))
    data = {"folder": "images", "coco": "boxes.json"}
    model = {"classes": ["dog", "cat"]}
    found = labels_of(checked(project, "Detector", data, task="detection", model=model))
    assert [len(label["boxes"]) for label in found] == [0, 0, 1, 0]
    assert found[2]["boxes"].tolist() == [[1, 2, 3, 6]]  # 16 x 12 becomes 8 x 8
    assert found[2]["labels"].tolist() == [1]
    content["annotations"][0]["bbox"] = [2, 3, 40, 6]  # type: ignore[index]
    (project / "boxes.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"boxes.json: annotations\[0\] \(id 5\).bbox: .* beyond its image 2.png"):
        checked(project, "Detector", data, task="detection", model=model)


def test_yolo_boxes(project: Path) -> None:
    (project / "labels").mkdir()
    (project / "labels/2.txt").write_text("0 0.25 0.5 0.25 0.5\n")
    (project / "labels/classes.txt").write_text("cat\ndog\n")
    data = {"folder": "images", "yolo": "labels"}
    prepared = checked(project, "Detector", data, task="detection", model={"classes": ["dog", "cat"]})
    found = labels_of(prepared)
    assert [len(label["boxes"]) for label in found] == [0, 0, 1, 0]
    assert found[2]["boxes"].tolist() == [[1, 2, 3, 6]]  # 16 x 12 becomes 8 x 8
    assert found[2]["labels"].tolist() == [1]
    (project / "labels/2.txt").write_text("0 0.9 0.5 0.5 0.5\n")
    with pytest.raises(DataError, match=r"labels/2.txt: line 1: reaches beyond its image: 10.4, 3.0 to 18.4"):
        checked(project, "Detector", data, task="detection")


def test_coco_masks_and_keypoints(project: Path) -> None:
    outline, points = [[2, 3, 6, 3, 6, 9, 2, 9]], [4, 6, 2] * 4
    content = {
        "images": [{"id": i, "file_name": f"{i}.png", "width": 16, "height": 12} for i in range(4)],
        "annotations": [{"id": 5, "image_id": 2, "category_id": 9, "segmentation": outline, "keypoints": points}],
        "categories": [{"id": 9, "name": "cat"}],
    }
    (project / "outlines.json").write_text(json.dumps(content))
    data = {"folder": "images", "coco": "outlines.json", "labels": "masks"}
    model = {"classes": ["dog", "background", "cat"]}
    found = labels_of(checked(project, "Segmenter", data, task="segmentation", model=model))
    assert found[2, :, 1].tolist() == [1, 1, 2, 2, 2, 2, 1, 1]
    with pytest.raises(DataError, match=r"names 2 classes \(background, cat\), but the model has 3 classes"):
        checked(project, "Segmenter", data, task="segmentation")
    found = labels_of(checked(project, "Poser", {**data, "labels": "keypoints"}, task="keypoints"))
    assert found[2, 0].tolist() == pytest.approx([1.75, 3.833, 1], abs=1e-3)  # (4.5 / 2 - 0.5, 6.5 * 8 / 12 - 0.5)


def test_csv_of_texts(project: Path) -> None:
    (project / "texts.csv").write_text("path,text\nimages/0.png,ab\nimages/3.png,bba\n")
    data = {"table": "texts.csv", "inputs": ["path"], "labels": "text"}
    found = labels_of(checked(project, "Reader", data, task={"name": "ctc", "alphabet": "ab"}))
    assert [text.tolist() for text in found] == [[1, 2], [2, 2, 1]]


def test_csv_of_class_names_needs_no_task(project: Path) -> None:
    (project / "names.csv").write_text("path,label\nimages/0.png,dog\nimages/3.png,cat\n")
    data = {"table": "names.csv", "inputs": ["path"]}
    prepared = checked(project, "Classifier", data, model={"classes": ["cat", "dog"]})
    assert labels_of(prepared).tolist() == [1, 0]
    assert prepared.task.name == "classification"


def test_json_lines_of_values(project: Path) -> None:
    rows = [{"path": f"images/{i}.png", "size": [i, 0.5]} for i in range(3)]
    (project / "values.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data = {"table": "values.jsonl", "inputs": ["path"], "labels": "size"}
    assert labels_of(checked(project, "Classifier", data, task="regression")).tolist()[2] == [2, 0.5]


def test_saved_hugging_face_data_set(project: Path) -> None:
    import datasets

    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
    images = [str(project / f"images/{index}.png") for index in (0, 1)]
    rows = datasets.Dataset.from_dict({"image": images, "label": [1, 0]}, features=features)
    datasets.DatasetDict({"test": rows}).save_to_disk(project / "saved")
    data = {"huggingface": "saved", "split": "test", "inputs": ["image"], "labels": "label"}
    assert labels_of(checked(project, "Classifier", data)).tolist() == [1, 0]


@pytest.mark.parametrize("collate", [None, f"{MODULE}:collate"])
def test_own_dataset_with_boxes(project: Path, collate: str | None) -> None:
    data = {"factory": f"{MODULE}:boxes", "collate": collate}
    found = labels_of(checked(project, "Detector", data, task="detection"))
    assert [label["labels"].tolist() for label in found] == [[1]] * 4


def test_rows_loaders_and_frames_of_a_factory(project: Path) -> None:
    data = {"factory": f"{MODULE}:rows", "inputs": ["photo"], "labels": "kind"}
    assert labels_of(checked(project, "Classifier", data)).tolist() == [0, 1, 0, 1]
    unlabelled = checked(project, "Classifier", {**data, "labels": None}).evaluation
    assert not unlabelled.labelled
    assert unlabelled.source.notes == ()
    (note,) = checked(project, "Classifier", {"factory": f"{MODULE}:rows", "inputs": ["photo"]}).evaluation.source.notes
    assert note.startswith(f"{MODULE}:rows: no label is read of photo, mean, kind")
    assert labels_of(checked(project, "Classifier", {"factory": f"{MODULE}:loader"})).tolist() == [0, 1, 0, 1]
    model = {"classes": ["cat", "dog"]}
    found = checked(project, "Classifier", {"factory": f"{MODULE}:frame"}, model=model)
    assert labels_of(found).tolist() == [1, 0]


def test_recordings_of_two_sets_have_one_sampling_rate(project: Path) -> None:
    for rate in (8_000, 16_000):
        for name in ("no", "yes"):
            (project / f"{rate}/{name}").mkdir(parents=True)
            wavfile.write(project / f"{rate}/{name}/1.wav", rate, np.full(64, rate, np.int16))
    model = {"inputs": [{"name": "sound", "shape": [64]}]}
    keys = {"model": model, "preprocessing": {}}
    sets = {"train": {"folder": "8000"}}
    assert labels_of(checked(project, "Classifier", {"folder": "8000"}, sets=sets, **keys), (64,)).tolist() == [0, 1]
    with pytest.raises(DataError, match=r"16000: is sampled at 16000 Hz, and .*8000 at 8000 Hz"):
        checked(project, "Classifier", {"folder": "16000"}, sets=sets, **keys)


def test_class_names_are_as_many_as_the_task_finds(project: Path) -> None:
    with pytest.raises(RecipeError, match=r"model.classes: names 1 classes, and the task segmentation finds 3"):
        checked(project, "Segmenter", MASKS, task="segmentation", model={"classes": ["road"]})


def test_own_dataset_with_boxes_of_another_format(project: Path) -> None:
    data = {"factory": f"{MODULE}:boxes", "box_format": "cxcywh"}
    with pytest.raises(DataError, match=r"labels.boxes: sample 0 has the box \[-2.0, -2.0, 2.0, 2.0\]"):
        checked(project, "Detector", data, task="detection")
    with pytest.raises(RecipeError, match="box_format goes with npz or table or huggingface or factory"):
        recipe("Detector", {"folder": "images", "coco": "boxes.json", "box_format": "xyxy"})


def test_augmentation_that_labels_cannot_follow_is_refused_before_a_run(project: Path) -> None:
    rows = [{"path": f"images/{i}.png", "size": [i, 0.5]} for i in range(3)]
    (project / "sizes.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data = {"table": "sizes.jsonl", "inputs": ["path"], "labels": "size"}
    stages = [{"distill": {"augment": {"horizontal_flip": True}}}]
    with pytest.raises(RecipeError, match=r"stages\[0\].distill.augment.horizontal_flip: the labels may be positions"):
        checked(project, "Classifier", data, task="regression", stages=stages, sets={"train": data})
    unlabelled = {**data, "labels": None}
    checked(project, "Classifier", data, task="regression", stages=stages, sets={"train": unlabelled})


def test_pairs_of_keypoints_let_images_be_mirrored(project: Path) -> None:
    rows = [{"path": f"images/{i}.png", "points": [[i, 1], [3, i], [5, 5], [0, 0]]} for i in range(3)]
    (project / "points.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data = {"table": "points.jsonl", "inputs": ["path"], "labels": "points"}
    stages = [{"distill": {"augment": {"horizontal_flip": True}}}]
    keys = {"stages": stages, "sets": {"train": data}}
    with pytest.raises(RecipeError, match=r"augment.horizontal_flip: left and right keypoints would change places"):
        checked(project, "Poser", data, task="keypoints", **keys)
    found = labels_of(checked(project, "Poser", data, task={"name": "keypoints", "swap": [[0, 1]]}, **keys))
    assert found.shape == (3, 4, 3)
    with pytest.raises(RecipeError, match=r"task.swap: names a keypoint beyond the model's 4"):
        checked(project, "Poser", data, task={"name": "keypoints", "swap": [[0, 4]]}, **keys)
    with pytest.raises(RecipeError, match="a keypoint changes places with one other"):
        recipe("Poser", data, task={"name": "keypoints", "swap": [[0, 1], [1, 2]]})
    with pytest.raises(RecipeError, match="swap belongs to the task keypoints"):
        recipe("Poser", data, task={"name": "depth", "swap": []})


def images_of_classes(project: Path, *names: str) -> None:
    for name in names:
        (project / name).mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), len(name)).save(project / name / "1.png")


def test_folders_have_the_training_sets_classes_when_the_recipe_names_none(project: Path) -> None:
    images_of_classes(project, "all/cat", "all/dog", "some/dog")
    sets = {"train": {"folder": "all"}}
    assert labels_of(checked(project, "Classifier", {"folder": "some"}, sets=sets)).tolist() == [1]
    images_of_classes(project, "more/dog", "more/fox")
    with pytest.raises(DataError, match=r"more: class folder 'fox' is none of the model's classes; there are cat, dog"):
        checked(project, "Classifier", {"folder": "more"}, sets=sets)


def test_folders_have_the_classes_of_the_model_in_any_order(project: Path) -> None:
    images_of_classes(project, "all/cat", "all/dog")
    prepared = checked(project, "Classifier", {"folder": "all"}, model={"classes": ["dog", "cat"]})
    assert labels_of(prepared).tolist() == [1, 0]


def test_classes_are_as_many_as_the_model_has_when_only_folders_name_them(project: Path) -> None:
    images_of_classes(project, "some/dog")
    with pytest.raises(DataError, match=r"some: names 1 classes \(dog\), but the model has 2 classes"):
        checked(project, "Classifier", {"folder": "some"})


def test_report_and_console_say_what_was_passed_over(
    project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images_of_classes(project, "said/cat", "said/dog", "said/.trash")
    report = run(recipe("Classifier", {"folder": "said"}), tmp_path / "out", root=project)
    said = f"{project / 'said'}: passed over 1 hidden entries, such as .trash"
    assert report.data["evaluation"].notes == (said,)
    assert said in capsys.readouterr().err
    assert said in (tmp_path / "out/report.html").read_text()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            {"folder": "images", "npz": "x.npz"},
            "one of npz, folder, table, huggingface, factory and synthetic",
        ),
        ({"coco": "boxes.json"}, "name exactly one of"),
        ({"npz": "x.npz", "coco": "boxes.json"}, "coco goes with folder, and none is given: remove it"),
        ({"folder": "images", "masks": "m", "coco": "b.json"}, "a folder has one of masks, coco and yolo"),
        ({"folder": "images", "masks": "m", "yolo": "labels"}, "a folder has one of masks, coco and yolo"),
        ({"table": "x.csv", "yolo": "labels"}, "yolo goes with folder, and none is given: remove it"),
        ({"folder": "images", "ignore": [0]}, "ignore goes with masks"),
        ({"folder": "images", "labels": "x"}, "labels goes with npz or table or huggingface"),
        ({"table": "x.csv", "split": "test"}, "split goes with huggingface"),
        ({"table": "x.csv", "collate": "a:b"}, "collate goes with factory"),
    ],
)
def test_keys_that_do_not_go_together_are_refused(data: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        recipe("Classifier", data)
