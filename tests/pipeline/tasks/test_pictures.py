"""What a report shows of predictions, on values that are worked out by hand."""

from __future__ import annotations

import torch

from pipeline.tasks.pictures import COLOURS, OPACITY, coloured, pixels
from tests.tasks import task


def test_mask_is_transparent_where_there_is_ground_or_nothing_counts() -> None:
    found = coloured(torch.tensor([[0, 1], [255, 2]]))
    assert found[..., 3].tolist() == [[0, OPACITY], [0, OPACITY]]
    assert found[0, 1, :3].tolist() == COLOURS[0].tolist()
    assert found[1, 1, :3].tolist() == COLOURS[1].tolist()


def test_pixels_are_clipped_and_rounded_when_values_leave_the_range() -> None:
    found = pixels(torch.tensor([[[-0.5, 0.5], [1.0, 2.0]]]), 1.0)
    assert found.tolist() == [[0, 128], [255, 255]]
    assert pixels(torch.zeros(3, 2, 5), 255.0).shape == (2, 5, 3)


def test_detection_shows_sure_boxes_and_all_labels() -> None:
    head = torch.zeros(1, 6, 8)
    show = task("detection", head, inputs=(torch.zeros(1, 3, 20, 30),)).show
    assert show is not None
    corners, kinds = torch.tensor([[1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0]]), torch.tensor([1, 0])
    sure = show({"boxes": corners, "labels": kinds, "scores": torch.tensor([0.9, 0.1])}).boxes
    assert [(box.corners, box.kind, round(box.score or 0, 3)) for box in sure] == [((1, 2, 3, 4), 1, 0.9)]
    assert [box.score for box in show({"boxes": corners, "labels": kinds}).boxes] == [None, None]
