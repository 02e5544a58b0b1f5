"""Random changes to training images, by kornia (https://kornia.readthedocs.io); all drawn from torch's generator."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from pipeline.core import Preprocessing, StageError
from pipeline.data.preprocessing import denormalise, normalise
from pipeline.data.samples import Batch
from pipeline.recipe import Augmentation


def augmentation(config: Augmentation, preprocessing: Preprocessing | None = None) -> Callable[[Batch], Batch]:
    """The changes that a recipe asks for, on batches whose first input is images ``(N, C, H, W) float32``.

    A batch of mixed images (mixup https://arxiv.org/abs/1710.09412, CutMix https://arxiv.org/abs/1905.04899) has no
    labels: only the teacher can label a mixed image.

    Args:
        preprocessing: How the images were normalised, so that colours are changed in the range [0, 1].
    """
    if config == Augmentation():
        return lambda batch: batch
    change = nn.Sequential(*_changes(config, preprocessing or Preprocessing()))

    def augment(batch: Batch) -> Batch:
        images, *others = batch.inputs
        if images.ndim != 4:
            raise StageError(
                f"augment changes images (N, C, H, W), but the first input is {list(images.shape)}",
                where="augment",
                fix="remove augment",
            )
        images, labels = change(images), batch.labels
        mix = _drawn_mix(config)
        if mix is not None:
            if others:
                raise StageError("mixup and cutmix mix the first input only", where="augment", fix="remove them")
            images, labels = mix(images), None
        return Batch((images, *others), labels)

    return augment


def _changes(config: Augmentation, preprocessing: Preprocessing) -> list[nn.Module]:
    """One module per change; each maps images ``(N, C, H, W)`` to images of the same shape."""
    import kornia.augmentation as K

    changes: list[nn.Module] = []
    if config.shift:
        changes.append(_RandomShift(config.shift))
    if config.horizontal_flip:
        changes.append(K.RandomHorizontalFlip(p=0.5))
    if config.rotation:
        changes.append(K.RandomRotation(config.rotation, p=1.0))
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


class _RandomShift(nn.Module):
    """Pad by ``pixels`` zeros and crop back to the original size at random."""

    def __init__(self, pixels: int) -> None:
        super().__init__()
        self._pixels = pixels

    def forward(self, images: Tensor) -> Tensor:
        import kornia.augmentation as K

        return K.RandomCrop(images.shape[-2:], padding=self._pixels)(images)  # type: ignore[no-any-return]  # kornia is untyped


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
