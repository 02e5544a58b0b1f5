"""What ``preprocessor_config.json`` of transformers says: sizes of inputs, and how images are prepared."""

from __future__ import annotations

import math
from typing import Any

from pipeline.core import Preprocessing, TensorSpec

SECOND = 16_000
"""Samples of sound in a second, where nothing else is said."""

_CROPPED_BELOW = 384
"""The size from which ConvNeXt's images are not cropped (``ConvNextImageProcessor``)."""


def image_input(config: Any, processor: dict[str, Any]) -> tuple[TensorSpec, ...]:
    """The image that a network takes; nothing where neither file says its size.

    Images of detectors have no fixed size: they get the square of the shorter side that they are resized to.
    """
    crop = processor.get("crop_size") if processor.get("do_center_crop") else None
    size = crop or processor.get("size")
    if isinstance(size, dict) and "longest_edge" in size:
        size = getattr(config, "image_size", None) or size.get("shortest_edge") or size["longest_edge"]
    sides = _sides(size) or _sides(getattr(config, "image_size", None))
    if sides is None:
        return ()
    return (TensorSpec(name="pixel_values", shape=(getattr(config, "num_channels", None) or 3, *sides)),)


def audio_inputs(name: str, config: Any, processor: dict[str, Any]) -> tuple[TensorSpec, ...]:
    """One second of sound, or the spectrogram that the configuration describes; nothing for other inputs."""
    bins = getattr(config, "num_mel_bins", None)
    shape: tuple[int, ...] = ()
    if name == "input_values" and bins and getattr(config, "max_length", None):
        shape = (config.max_length, bins)
    elif name == "input_values":
        shape = (processor.get("sampling_rate", SECOND),)
    elif name == "input_features" and bins and getattr(config, "max_source_positions", None):
        shape = (bins, 2 * config.max_source_positions)
    return (TensorSpec(name=name, shape=shape),) if shape else ()


def preprocessing_of(processor: dict[str, Any], image: TensorSpec) -> Preprocessing:
    """How stored images become the input of a network.

    Args:
        image: The input; its size may be the recipe's, and then the resizing in front of a crop grows with it. Of an
            open size (0), nothing is known.

    >>> stated = {"size": {"shortest_edge": 256}, "do_center_crop": True, "crop_size": 224, "rescale_factor": 0.5}
    >>> preprocessing_of(stated, TensorSpec(name="x", shape=(3, 112, 112))).model_dump(exclude_defaults=True)
    {'resize': (128, 128), 'cover': True, 'crop': (112, 112), 'scale': 0.5}
    """
    if not processor or len(image.shape) != 3 or 0 in image.shape:
        return Preprocessing()
    size, crop = processor.get("size"), processor.get("crop_size") if processor.get("do_center_crop") else None
    height, width = image.shape[1:]
    resize, cover = (height, width), False
    stated, cut = _sides(size), _sides(crop)
    if share := processor.get("crop_pct"):
        cut = stated if stated and stated[0] < _CROPPED_BELOW else None
        stated = stated and (int(stated[0] / share),) * 2
    if stated and cut:
        resize = math.ceil(stated[0] * height / cut[0]), math.ceil(stated[1] * width / cut[1])
        cover = share is not None or (isinstance(size, dict) and "shortest_edge" in size)
    resized = processor.get("do_resize", True)
    values: dict[str, Any] = {}
    if resized:
        values = {"resize": resize, "cover": cover}
    if cut and (not resized or resize != (height, width)):
        values["crop"] = (height, width)
    if processor.get("do_rescale", True):
        values["scale"] = processor.get("rescale_factor", 1 / 255)
    return Preprocessing(**values, **_normalisation(processor))


def _normalisation(processor: dict[str, Any]) -> dict[str, Any]:
    """Mean and standard deviation of each channel."""
    mean, std = processor.get("image_mean"), processor.get("image_std")
    offset = 1.0 if processor.get("rescale_offset") else 0.0  # EfficientNet's, from [0, 2] to [-1, 1]
    if not processor.get("do_normalize", mean is not None) or mean is None or std is None:
        return {"mean": (offset,)} if offset else {}
    twice = 2 if processor.get("include_top") else 1  # EfficientNet's divides once more
    return {"mean": tuple(value + offset for value in _listed(mean)), "std": tuple(v**twice for v in _listed(std))}


def _listed(value: Any) -> list[float]:
    return list(value) if isinstance(value, list | tuple) else [value]


def _sides(size: Any) -> tuple[int, int] | None:
    """Height and width, in whichever of transformers' forms they are."""
    if isinstance(size, dict):
        if "height" in size and "width" in size:
            return size["height"], size["width"]
        size = size.get("shortest_edge")
    if isinstance(size, int):
        return size, size
    if isinstance(size, list | tuple) and len(size) == 2:
        return int(size[0]), int(size[1])
    return None
