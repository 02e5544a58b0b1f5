"""Train the detection demo's checkpoint in FP32 on composed scenes.

Run ``python -m calibration_data.detection.train``; about 10 minutes on one core. Writes ``model.safetensors`` and
prints the mean average precision on the test scenes, which nothing else uses.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

from calibration_data.detection.network import LIMITS, STRIDES, detector, grid
from calibration_data.scenes.compose import CLASSES, SIZE, compose_all
from calibration_data.scenes.pack import IMAGE, PREPROCESSING, SCENES
from calibration_data.training import in_memory, scores, stored, train, trained
from pipeline.data.labels import boxes
from pipeline.data.samples import Batch, SampleSet
from pipeline.recipe import TrainingConfig

HERE = Path(__file__).parent
WEIGHTS = HERE / "model.safetensors"
TRAINING_SCENES = 8000
LABELS = {"boxes": "boxes", "labels": "classes", "offsets": "offsets"}
FORM = boxes(len(CLASSES), SIZE, SIZE)
TRAINING = TrainingConfig(
    epochs=12, batch_size=64, optimizer="adamw", learning_rate=0.004, weight_decay=0.01, ema=0.995, warmup_ratio=0.1
)
REACH = 1.5
"""A place answers for a box whose centre is nearer than this, in strides, along both axes."""


def assigned(labels: list[dict[str, Tensor]]) -> tuple[Tensor, Tensor]:
    """For each anchor, the box that it answers for and its class.

    A box belongs to the scale of its size, there to the places around its centre; a place between two boxes takes the
    smaller one.

    Returns:
        Boxes ``(N, anchors, 4)`` as corners, and classes ``(N, anchors)``, -1 where there is none.
    """
    corners = pad_sequence([label["boxes"] for label in labels], batch_first=True)  # (N, M, 4)
    kinds = pad_sequence([label["labels"] for label in labels], batch_first=True, padding_value=-1)
    centres, _ = grid(SIZE)
    counts = [(SIZE // stride) ** 2 for stride in STRIDES]
    stride = torch.tensor(STRIDES, dtype=torch.float32).repeat_interleave(torch.tensor(counts))
    scale = torch.arange(len(STRIDES)).repeat_interleave(torch.tensor(counts))
    size = corners[..., 2:] - corners[..., :2]
    middle = (corners[..., 2:] + corners[..., :2]) / 2
    near = ((centres.T[:, None] - middle[:, None]).abs() < REACH * stride[:, None, None]).all(-1)  # (N, anchors, M)
    own = torch.bucketize(size.amax(-1), torch.tensor(LIMITS))[:, None] == scale[:, None]
    area = size.prod(-1)[:, None].masked_fill(~(near & own) | (kinds < 0)[:, None], torch.inf)
    smallest, which = area.min(-1)
    chosen = corners.gather(1, which[..., None].expand(-1, -1, 4))
    return chosen, kinds.gather(1, which).masked_fill(smallest.isinf(), -1)


def overlaps(found: Tensor, expected: Tensor) -> tuple[Tensor, Tensor]:
    """Intersection over union of pairs of boxes ``(P, 4)``, and its generalised form (arXiv 1902.09630): ``(P,)``."""

    def area(low: Tensor, high: Tensor) -> Tensor:
        return (high - low).clamp_min(0).prod(-1)

    both = area(torch.maximum(found[:, :2], expected[:, :2]), torch.minimum(found[:, 2:], expected[:, 2:]))
    around = area(torch.minimum(found[:, :2], expected[:, :2]), torch.maximum(found[:, 2:], expected[:, 2:]))
    either = area(found[:, :2], found[:, 2:]) + area(expected[:, :2], expected[:, 2:]) - both
    overlap = both / either.clamp_min(1e-6)
    return overlap, overlap - (around - either) / around.clamp_min(1e-6)


def detection_loss(module: nn.Module, batch: Batch) -> Tensor:
    """Generalised IoU of the boxes, and the quality focal loss of the scores (https://arxiv.org/abs/2006.04388)."""
    assert batch.labels is not None
    corners, kinds = assigned(batch.labels)
    answers = module(*batch.inputs).transpose(1, 2)
    places, logits = answers[..., :4], answers[..., 4:]
    real = kinds >= 0
    found, expected = places[real], corners[real]
    half = found[:, 2:].clamp_min(1) / 2
    overlap, generalised = overlaps(torch.cat([found[:, :2] - half, found[:, :2] + half], 1), expected)
    exact = torch.cat([(expected[:, :2] + expected[:, 2:]) / 2, expected[:, 2:] - expected[:, :2]], 1)
    distance = functional.smooth_l1_loss(found, exact, beta=2.0)
    quality = torch.zeros_like(logits)
    quality[real] = functional.one_hot(kinds[real], logits.shape[-1]) * overlap.detach().clamp_min(0)[:, None]
    focus = (quality - logits.sigmoid()).square()
    cross = functional.binary_cross_entropy_with_logits(logits, quality, focus.detach(), reduction="sum")
    return 2 * (1 - generalised).mean() + 0.1 * distance + cross / len(found)


def committed_samples(name: str) -> SampleSet:
    """The scenes that are kept: ``train`` or ``test``."""
    return stored(SCENES / f"{name}.npz", IMAGE, PREPROCESSING, FORM, labels=LABELS)


def load_trained() -> nn.Module:
    """The trained network, in eval mode."""
    return trained(detector, WEIGHTS)


def main() -> None:
    """Train, save, and report the accuracy."""
    scenes = compose_all("train", range(TRAINING_SCENES)).arrays()
    train(detector, detection_loss, in_memory(scenes, IMAGE, PREPROCESSING, FORM, labels=LABELS), TRAINING, WEIGHTS)
    found = scores(load_trained(), committed_samples("test"), "detection")
    print(f"{len(CLASSES)} classes:", found)


if __name__ == "__main__":
    main()
