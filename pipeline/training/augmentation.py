"""Random changes to training images, by kornia (https://kornia.readthedocs.io); all drawn from torch's generator.

What moves pixels moves labels with them, as `Places` says; what labels cannot follow is refused.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.core import EdgewrightError, Preprocessing, StageError
from pipeline.data.places import NOWHERE, Places
from pipeline.data.preprocessing import denormalise, normalise
from pipeline.data.samples import Batch
from pipeline.recipe import Augmentation
from pipeline.training.moved import Moved, ways_of

_MOVES = ("shift", "horizontal_flip", "rotation")
"""Changes after which pixels stand in other places."""


def augmentation(
    config: Augmentation, preprocessing: Preprocessing | None = None, places: Places = NOWHERE
) -> Callable[[Batch], Batch]:
    """The changes that a recipe asks for, on batches whose first input is images ``(N, C, H, W) float32``.

    A batch of mixed images (mixup https://arxiv.org/abs/1710.09412, CutMix https://arxiv.org/abs/1905.04899) has no
    labels: only the teacher can label a mixed image. Nor has a batch of which pixels were moved and whose labels are of
    a form that only the user's metrics know, unless they are one integer for each sample.

    Args:
        preprocessing: How the images were normalised, so that colours are changed in the range [0, 1].
        places: What the labels say about places in the image.
    """
    if config == Augmentation():
        return lambda batch: batch
    recolour = nn.Sequential(*_changes(config, preprocessing or Preprocessing()))
    moves = any(getattr(config, name) for name in _MOVES)

    @cache
    def movement(height: int, width: int, keys: tuple[str, ...]) -> Any:
        import kornia.augmentation as K

        return K.AugmentationSequential(*_movements(config, (height, width)), data_keys=["input", *keys])

    def augment(batch: Batch) -> Batch:
        images, *others = batch.inputs
        if images.ndim != 4:
            raise StageError(
                f"augment changes images (N, C, H, W), but the first input is {list(images.shape)}",
                where="augment",
                fix="remove augment",
            )
        labels = batch.labels
        if labels is not None:
            require_followed(config, places, where="augment")
        if moves:
            images, labels = _moved(images, labels, places, movement)
        images = recolour(images)
        mix = _drawn_mix(config)
        if mix is not None:
            if others:
                raise StageError("mixup and cutmix mix the first input only", where="augment", fix="remove them")
            images, labels = mix(images), None
        return Batch((images, *others), labels)

    return augment


def require_followed(
    config: Augmentation, places: Places, *, where: str, refusal: type[EdgewrightError] = StageError
) -> None:
    """Refuse changes that labels cannot follow.

    Raises:
        EdgewrightError: Of the class ``refusal``; says why.
    """
    asked = next((name for name in places.refused if getattr(config, name)), None)
    if asked is not None:
        raise refusal(
            places.refused[asked],
            where=f"{where}.{asked}",
            fix="remove it, or train without labels (data.train.labels: null): the teacher answers for moved images",
        )


def _moved(
    images: Tensor, labels: Any, places: Places, movement: Callable[[int, int, tuple[str, ...]], Any]
) -> tuple[Tensor, Any]:
    """Images with pixels in other places, and labels that have followed them."""
    height, width = images.shape[-2:]
    ways = None if labels is None else ways_of(places.kind)
    if ways is None:
        stays = places.kind == "nowhere" or _are_numbers_of_classes(labels)
        return movement(height, width, ())(images), labels if stays else None
    before = ways.given(labels, (height, width))
    sequence = movement(height, width, (ways.key,))
    images, after = sequence(images, before)
    mirrored = torch.linalg.det(sequence.transform_matrix[:, :2, :2]) < 0
    return images, ways.taken(labels, Moved(after, mirrored, (height, width), places.swap))


def _are_numbers_of_classes(labels: Any) -> bool:
    """Whether labels of an unknown form are one integer for each sample, which no movement changes."""
    return isinstance(labels, Tensor) and labels.ndim == 1 and not labels.is_floating_point()


def _movements(config: Augmentation, size: tuple[int, int]) -> list[nn.Module]:
    """The changes that move pixels; each maps images ``(N, C, H, W)`` to images of the same shape."""
    import kornia.augmentation as K

    changes: list[nn.Module] = []
    if config.shift:
        changes.append(K.RandomCrop(size, padding=config.shift))
    if config.horizontal_flip:
        changes.append(K.RandomHorizontalFlip(p=0.5))
    if config.rotation:
        changes.append(K.RandomRotation(config.rotation, p=1.0))
    return changes


def _changes(config: Augmentation, preprocessing: Preprocessing) -> list[nn.Module]:
    """The changes that leave pixels where they are."""
    import kornia.augmentation as K

    changes: list[nn.Module] = []
    if config.color_jitter:
        changes.append(_ColorJitter(config.color_jitter, preprocessing))
    if config.erasing:
        changes.append(K.RandomErasing(p=config.erasing))
    return changes


def _drawn_mix(config: Augmentation) -> Callable[[Tensor], Tensor] | None:
    """How this batch's images are mixed, if they are."""
    if not config.mixup + config.cutmix:
        return None
    import kornia.augmentation as K

    drawn = float(torch.rand(()))
    if drawn < config.mixup:
        return K.RandomMixUpV2(data_keys=["input"])  # type: ignore[no-any-return]  # kornia is untyped
    if drawn < config.mixup + config.cutmix:
        return K.RandomCutMixV2(data_keys=["input"], use_correct_lambda=True)  # type: ignore[no-any-return]  # kornia is untyped
    return None


class _ColorJitter(nn.Module):
    """Brightness, contrast and, where there is colour, saturation, each by a factor in ``1 ± strength``."""

    def __init__(self, strength: float, preprocessing: Preprocessing) -> None:
        super().__init__()
        self._strength = strength
        self._from_unit = preprocessing.model_copy(update={"scale": 1.0})  # jitter works on images in [0, 1]

    def forward(self, images: Tensor) -> Tensor:
        import kornia.augmentation as K

        saturation = self._strength if images.shape[1] == 3 else 0.0
        jitter = K.ColorJitter(self._strength, self._strength, saturation, p=1.0)
        return normalise(jitter(denormalise(images, self._from_unit)), self._from_unit)
