"""Every built-in task on values that are computed by hand, or by torchmetrics itself."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.core import DataError, RecipeError
from pipeline.tasks.lookup import built_in, names
from pipeline.tasks.scores import Scores
from pipeline.tasks.task import Example, Task
from tests.tasks import task

IMAGE = torch.zeros(1, 3, 20, 30)


def values(
    made: Task, outputs: tuple[Tensor, ...], labels: Any, inputs: tuple[Tensor, ...] = (IMAGE,)
) -> dict[str, float]:
    """The metrics of outputs against labels as a user stores them; the original's outputs are the same."""
    assert made.labels is not None
    inputs = tuple(value.expand(len(outputs[0]), *value.shape[1:]) for value in inputs)
    scores = Scores(made, labelled=True, compared=False)
    scores.update(inputs, outputs, outputs, made.labels.read(labels, "labels", range(len(outputs[0]))))
    return scores.values()


def test_classification_counts_the_largest_and_the_five_largest() -> None:
    scores = torch.eye(7)[[0, 1, 2, 3]] * 2 + torch.arange(7) / 10
    found = values(task("classification", scores), (scores,), np.array([0, 1, 6, 0]))
    assert (found["top1"], found["top5"]) == (0.5, 0.75)  # the third has class 6 second; the fourth has class 0 last


def test_multilabel_equals_the_hand_computed_average_precision() -> None:
    scores = torch.tensor([[0.9, 0.1], [0.8, 0.9], [0.1, 0.8]])
    found = values(task("multilabel", scores), (scores,), np.array([[1, 0], [0, 1], [1, 0]]))
    assert found["map"] == pytest.approx(((1 + 2 / 3) / 2 + 1) / 2)


def test_binary_reads_frames_and_ranks_them() -> None:
    scores = torch.tensor([[0.9, 0.2, 0.6], [0.4, 0.7, 0.1]])
    found = values(task("binary", scores), (scores,), np.array([[1, 0, 0], [1, 1, 0]]))
    assert found["auroc"] == pytest.approx(8 / 9)  # 0.4 is below 0.6: one of nine pairs is in the wrong order
    assert found["f1"] == pytest.approx(2 / 3)


def test_anomaly_scores_a_model_that_returns_its_input_by_its_error() -> None:
    inputs = torch.zeros(3, 4)
    outputs = torch.tensor([[0.1] * 4, [0.5] * 4, [0.3] * 4])
    made = task("anomaly", outputs, inputs=(inputs,))
    scores = Scores(made, labelled=True, compared=False)
    assert made.labels is not None
    scores.update((inputs,), (outputs,), (outputs,), made.labels.read(np.array([0, 1, 0]), "labels", range(3)))
    assert scores.values() == {"auroc": 1.0}


def test_segmentation_takes_masks_of_the_images_size_when_its_output_is_smaller() -> None:
    made = task("segmentation", torch.randn(2, 3, 10, 15), inputs=(IMAGE,))
    assert made.labels is not None
    small = torch.randint(0, 3, (2, 10, 15))
    large = made.labels.read(small.repeat_interleave(2, 1).repeat_interleave(2, 2).numpy(), "masks", range(2))
    assert large.shape == (2, 20, 30)
    logits = 20.0 * torch.nn.functional.one_hot(small, 3).permute(0, 3, 1, 2)
    for spec in made.metrics:
        metric = spec.make()
        spec.update(metric, made.predict((logits,), ()), large)
        assert spec.pick(metric.compute()) == pytest.approx(1.0)
    assert made.label_loss is not None
    assert made.label_loss((logits,), large) < made.label_loss((logits.roll(1, 1),), large)


def test_segmentation_leaves_out_pixels_that_count_for_nothing() -> None:
    logits = torch.zeros(1, 2, 2, 2)
    logits[0, 1, 0] = 1  # the first row is class 1, the second class 0
    labels = np.array([[[1, 0], [0, 255]]])
    found = values(task("segmentation", logits), (logits,), labels)
    assert found["miou"] == pytest.approx(0.5)  # of each class one pixel of two
    assert found["pixel_accuracy"] == pytest.approx(2 / 3)


def test_regression_equals_numpy() -> None:
    outputs, labels = torch.tensor([[1.0], [2.0], [4.0]]), np.array([1.0, 3.0, 2.0])
    found = values(task("regression", outputs), (outputs,), labels)
    assert found["mae"] == pytest.approx(1.0)
    assert found["rmse"] == pytest.approx(math.sqrt(5 / 3))
    assert found["r2"] == pytest.approx(1 - 5 / 2)


def test_regression_averages_r2_over_the_numbers_of_a_vector() -> None:
    outputs, labels = torch.tensor([[1.0, 10.0], [2.0, 20.0]]), np.array([[1.0, 0.0], [3.0, 20.0]])
    found = values(task("regression", outputs), (outputs,), labels)
    assert found["r2"] == pytest.approx(((1 - 1 / 2) + (1 - 100 / 200)) / 2)


def test_depth_leaves_out_pixels_without_a_measurement() -> None:
    outputs, labels = torch.tensor([[[[1.0, 2.0], [3.0, 9.0]]]]), np.array([[[1.0, 4.0], [2.5, 0.0]]])
    found = values(task("depth", outputs), (outputs,), labels)
    assert found["abs_rel"] == pytest.approx((0 + 0.5 + 0.2) / 3)
    assert found["delta1"] == pytest.approx(2 / 3)


def test_image_averages_decibels_over_images() -> None:
    outputs = torch.full((2, 1, 16, 16), 0.5)
    labels = np.stack([np.full((1, 16, 16), 0.6), np.full((1, 16, 16), 0.51)]).astype("f")
    found = values(task("image", outputs), (outputs,), labels)
    assert found["psnr"] == pytest.approx((20 + 40) / 2, abs=1e-3)
    exact = values(task("image", outputs), (outputs,), outputs.numpy())
    assert exact["psnr"] == 100.0


def test_embedding_finds_the_nearest_other_sample() -> None:
    vectors = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.6, 0.5]])
    found = values(task("embedding", vectors), (vectors,), np.array([0, 0, 1, 1]))
    assert found["recall1"] == 0.75  # the nearest of the fourth is the second, of another label
    assert found["auroc"] == pytest.approx(0.75)


def test_tokens_leave_out_those_without_a_label() -> None:
    logits = torch.eye(3)[torch.tensor([[0, 1, 2]])]
    found = values(task("tokens", logits), (logits,), np.array([[0, 2, -100]]))
    assert found["token_accuracy"] == 0.5


def test_ctc_counts_characters_and_words_of_the_greedy_decoding() -> None:
    frames = torch.eye(4)[torch.tensor([[1, 1, 0, 3, 2, 2]])]  # "a", a space, "b"
    made = task("ctc", frames, alphabet="ab ")
    assert values(made, (frames,), [[1, 3, 1]]) == {"cer": pytest.approx(1 / 3), "wer": pytest.approx(0.5)}


def test_keypoints_are_right_within_a_fifth_of_the_object() -> None:
    places = torch.tensor([[[0.0, 0.0], [10.0, 3.0], [5.0, 5.0]]])
    labels = np.array([[[0, 0, 1], [10, 0, 1], [0, 0, 0]]], dtype="f")
    found = values(task("keypoints", places), (places,), labels)
    assert found["pck"] == 0.5
    assert found["oks"] == pytest.approx((1 + math.exp(-9 / (2 * 10 * 0.16**2))) / 2, abs=1e-6)


@pytest.mark.parametrize(("largest", "data_range", "top"), [(0.9, None, 1), (200.0, None, 255), (0.9, 255.0, 255)])
def test_image_says_which_range_its_values_have(largest: float, data_range: float | None, top: int) -> None:
    outputs = torch.full((1, 1, 4, 4), largest)
    made = built_in("image", Example(inputs=(IMAGE,), outputs=(outputs,), data_range=data_range))
    step = 0.1 * top if largest + 0.1 * top <= top else -0.1 * top
    off = np.full((1, 1, 4, 4), largest + step)  # by a tenth of the range, which are 20 dB
    assert values(made, (outputs,), off)["psnr"] == pytest.approx(20, abs=1e-4)
    assert made.note is not None
    assert f"values from 0 to {top}" in made.note
    assert ("as the original's outputs" in made.note) == (data_range is None)


def test_image_refuses_labels_of_another_range() -> None:
    form = task("image", torch.rand(2, 1, 4, 4)).labels
    assert form is not None
    with pytest.raises(
        DataError, match="sample 1 has a value of 200 in its label, and the model's images have smaller"
    ):
        form.read(np.stack([np.zeros((1, 4, 4)), np.full((1, 4, 4), 200)]), "labels", (0, 1))


def test_keypoints_of_heat_maps_are_their_peaks_in_pixels_of_the_image() -> None:
    maps = torch.zeros(1, 1, 10, 15)
    maps[0, 0, 4, 7] = 1
    made = task("keypoints", maps, inputs=(IMAGE,))  # the image is twice as large
    assert made.predict((maps,), (IMAGE,)).tolist() == [[[14.5, 8.5]]]


def test_detection_equals_the_hand_computed_precision_of_one_box() -> None:
    heads = torch.zeros(1, 6, 9)
    heads[0, :4, 2] = torch.tensor([10.0, 10.0, 8.0, 8.0])  # centre and size
    heads[0, 4, 2] = 0.9
    labels = [{"boxes": np.array([[6.0, 6.0, 14.0, 14.0]]), "labels": np.array([0])}]
    made = task("detection", heads, inputs=(IMAGE,))
    assert values(made, (heads,), labels) == {"map": pytest.approx(1.0), "map50": pytest.approx(1.0)}
    labels[0]["boxes"] = np.array([[6.0, 6.0, 14.0, 19.0]])  # 64 of 104: an IoU of 0.615, above 0.5, 0.55 and 0.6
    assert values(made, (heads,), labels) == {"map": pytest.approx(0.3), "map50": pytest.approx(1.0)}


def test_detection_reads_logits_and_shares_as_detr_gives_them() -> None:
    logits = torch.tensor([[[9.0, 0, 0], [8.0, 0, 0], [0, 0, 9.0]]])  # two of class 0 in one place, and no object
    shares = torch.tensor([[[0.5, 0.5, 0.2, 0.4], [0.5, 0.5, 0.2, 0.4], [0.1, 0.1, 0.1, 0.1]]])
    image = torch.zeros(1, 3, 20, 30)
    (found,) = task("detection", logits, shares, inputs=(image,)).predict((logits, shares), (image,))
    sure = [0.9998, 0.9993]
    assert found["labels"].tolist() == [0, 0]
    assert found["boxes"].tolist() == [pytest.approx([12, 6, 18, 14], abs=1e-4)] * 2
    assert found["scores"].tolist() == pytest.approx(sure, abs=1e-4)


def test_detection_takes_scores_of_all_named_classes_one_by_one() -> None:
    logits, shares = torch.tensor([[[3.0, 4.0, -9.0]]]), torch.full((1, 1, 4), 0.5)
    image = torch.zeros(1, 3, 20, 30)
    made = built_in("detection", Example(inputs=(image,), outputs=(logits, shares), classes=3))
    (found,) = made.predict((logits, shares), (image,))
    assert found["labels"].tolist() == [1, 0]
    assert found["scores"].tolist() == pytest.approx([0.98201, 0.95257], abs=1e-4)


def test_detection_keeps_one_of_overlapping_boxes_and_both_classes() -> None:
    boxes = torch.tensor([[[0.0, 0, 10, 10], [1, 0, 11, 10], [0, 0, 10, 10]]])
    scores = torch.tensor([[[0.9, 0.0], [0.8, 0.0], [0.0, 0.7]]])
    (found,) = task("detection", boxes, scores, inputs=(IMAGE,)).predict((boxes, scores), (IMAGE,))
    assert found["labels"].tolist() == [0, 1]
    assert found["scores"].tolist() == pytest.approx([0.9, 0.7])


def test_fidelity_is_of_the_output_that_follows_least() -> None:
    one, two = torch.tensor([[3.0, 4.0]]), torch.tensor([[300.0, 400.0, 0.0]])
    made = task("fidelity", one[:, :1], two)
    scores = Scores(made, labelled=False)
    scores.update((IMAGE,), (one * 0.9, two), (one, two), None)
    assert scores.values() == {"signal": pytest.approx(0.99), "cosine": pytest.approx(1.0)}


OUTPUTS = {
    "anomaly": (torch.rand(2, 1),),
    "binary": (torch.rand(2, 6),),
    "classification": (torch.zeros(2, 3),),
    "ctc": (torch.randn(2, 6, 5),),
    "depth": (torch.rand(2, 1, 4, 4),),
    "detection": (torch.rand(2, 6, 9),),
    "embedding": (torch.randn(2, 8),),
    "fidelity": (torch.randn(2, 3, 4),),
    "image": (torch.rand(2, 3, 16, 16),),
    "keypoints": (torch.rand(2, 5, 2),),
    "multilabel": (torch.randn(2, 4),),
    "regression": (torch.randn(2, 2),),
    "segmentation": (torch.randn(2, 4, 6, 6),),
    "tokens": (torch.randn(2, 6, 5),),
}


@pytest.mark.parametrize("name", sorted(OUTPUTS))
def test_distillation_loss_is_zero_for_the_teacher_and_falls_towards_it(name: str) -> None:
    teacher = OUTPUTS[name]
    inputs = (torch.zeros(2, 3, 20, 30),)
    made = task(name, *teacher, inputs=inputs)
    far = tuple(output + torch.randn_like(output) * 0.3 for output in teacher)
    near = tuple(output + (other - output) * 0.2 for output, other in zip(teacher, far, strict=True))
    same, close, distant = (float(sum(made.terms(each, teacher, 2.0))) for each in (teacher, near, far))
    assert same == pytest.approx(0, abs=1e-5)
    assert same - 1e-5 <= close < distant


def test_every_built_in_task_is_tested_here() -> None:
    assert sorted(OUTPUTS) == names()


@pytest.mark.parametrize(
    ("name", "outputs", "said"),
    [
        ("segmentation", torch.zeros(1, 3), "needs logits (N, classes, H, W)"),
        ("classification", torch.zeros(1, 3, 4), "needs logits (N, classes)"),
        ("detection", torch.zeros(1, 9, 5), "needs one output (N, 4 + classes, anchors)"),
        ("segmentation", torch.zeros(1, 256, 2, 2), "255 classes at most"),
        ("depht", torch.zeros(1, 3), "did you mean 'depth'?"),
    ],
)
def test_task_is_refused_when_outputs_do_not_suit_it(name: str, outputs: Tensor, said: str) -> None:
    with pytest.raises(RecipeError) as refused:
        task(name, outputs, inputs=(IMAGE,))
    assert said in str(refused.value)


BOX = {"boxes": np.array([[1.0, 1, 5, 5]]), "labels": np.array([0])}
HALVES = np.array([[[0, 3, 3, 3, 3, 3], *[[2] * 6] * 5], [[1] * 6] * 6])


@pytest.mark.parametrize(
    ("name", "stored", "expected"),
    [
        ("classification", np.array([[2], [1]]), [2, 1]),
        ("classification", np.array([[2.0], [1.0]]), [2, 1]),
        ("classification", np.eye(3)[[2, 0]], [2, 0]),
        ("classification", np.eye(3, dtype=bool)[[2, 0]], [2, 0]),
        ("classification", [torch.eye(3)[1], torch.eye(3)[2]], [1, 2]),
        ("classification", [torch.tensor([1.0], dtype=torch.bfloat16), torch.tensor([0.0])], [1, 0]),
        ("classification", np.array(["dog", "cat"]), [2, 0]),
        ("classification", np.array(["1", "dog"]), [1, 2]),
        ("segmentation", np.eye(4)[HALVES], HALVES.tolist()),
        ("segmentation", np.eye(4, dtype=np.uint8)[HALVES].transpose(0, 3, 1, 2), HALVES.tolist()),
    ],
)
def test_label_is_converted_where_that_is_exact(name: str, stored: Any, expected: Any) -> None:
    form = task(name, *OUTPUTS[name], inputs=(IMAGE,)).labels
    assert form is not None
    found = form.read(stored, "labels", (0, 1), names=("cat", "cow", "dog"))
    assert found.tolist() == expected
    assert found.dtype == torch.int64


def test_name_that_is_the_number_of_another_class_is_refused() -> None:
    form = task("classification", torch.randn(2, 3)).labels
    assert form is not None
    assert form.read(np.array(["10", "2"]), "labels", (0, 1), names=("1", "10", "2")).tolist() == [1, 2]
    with pytest.raises(DataError, match="sample 1 has the label '1', which is the name of class 0, and the number of"):
        form.read(np.array(["10", "1"]), "labels", (0, 1), names=("1", "10", "2"))


@pytest.mark.parametrize(
    ("name", "labels", "said"),
    [
        ("classification", np.array([0, 3]), "labels: sample 1 has label 3, but the model has 3 classes"),
        ("classification", np.array([[0, 1], [1, 0]]), "not one number"),
        (
            "classification",
            np.array([[0, 1, 0], [1, 1, 0]]),
            "sample 1 has the label [1, 1, 0] of shape (3,), which is",
        ),
        ("classification", np.array([[0, 1, 0], [0.9, 0.1, 0]]), "sample 1 has the label [0.9, 0.1, 0.0]"),
        ("classification", np.array([[np.nan, 1, 0], [0, 1, 0]]), "sample 0 has the label [nan, 1.0, 0.0]"),
        ("segmentation", np.full((2, 6, 6, 4), 1), "sample 0 has the label of shape (6, 6, 4), which is no class"),
        ("segmentation", np.full((2, 6, 6), 7), "sample 0 has the value 7 in its mask"),
        ("segmentation", np.zeros((2, 5, 5), int), "has a label of shape (5, 5), but the task needs (6, 6)"),
        ("detection", [BOX, {**BOX, "boxes": np.array([[5.0, 1, 1, 5]])}], "labels.boxes: sample 1 has the box"),
        ("detection", [{**BOX, "boxes": np.array([[1.0, 1, 50, 5]])}, BOX], "outside the image of 30 x 20"),
        ("detection", [BOX, {**BOX, "labels": np.array([9])}], "labels.labels: sample 1 has label 9"),
        ("ctc", [[1, 2], []], "sample 1 has an empty text"),
        ("ctc", [[1, 2], [9]], "sample 1 has the symbol 9"),
        ("regression", np.array([[0, 1], [np.nan, 2]]), "sample 1 has a label that is NaN or infinite"),
        ("multilabel", np.array([[0, 1, 0, 0], [0, 2, 0, 1]]), "sample 1 has a value other than 0 and 1"),
    ],
)
def test_label_is_refused_with_its_sample_and_field_when_it_cannot_be_meant(name: str, labels: Any, said: str) -> None:
    form = task(name, *OUTPUTS[name], inputs=(IMAGE,)).labels
    assert form is not None
    with pytest.raises(DataError) as refused:
        form.read(labels, "set.npz: labels", range(2))
    assert said in str(refused.value)
