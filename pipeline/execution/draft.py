"""A first recipe for a checkpoint and samples: what the two say, and what is tried to find out the rest."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn

import targets
from pipeline.core import CheckpointError, EdgewrightError, Preprocessing, RecipeError, TensorSpec
from pipeline.core.outputs import output_tuple
from pipeline.data.open import open_samples
from pipeline.data.recognise import Recognised
from pipeline.data.source import PATHS, DataSource
from pipeline.models.checkpoints import huggingface
from pipeline.models.checkpoints.kinds import kind_of, require_known
from pipeline.models.checkpoints.networks import network_for
from pipeline.models.checkpoints.processors import preprocessing_of
from pipeline.models.load import open_module
from pipeline.recipe import ModelSource

SIZES = (28, 32, 48, 64, 84, 96, 112, 128, 160, 192, 224, 240, 256, 288, 299, 320, 384, 416, 448, 480, 512, 640)
"""Sides of images that networks are made for."""
USUAL = 224
TRIED_ON = 256
"""Training samples on which preprocessings are compared."""
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
SCALE = 1 / 255
Ask = Callable[[str, str], str]
"""Gets an answer to a question, or refuses with the option that answers it."""

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Draft:
    """A recipe in the making.

    Attributes:
        notes: Per key, where its value comes from, for the comments.
    """

    recipe: dict[str, Any]
    notes: dict[str, str] = field(default_factory=dict)


def draft(
    checkpoint: Path,
    data: Recognised,
    *,
    out: Path,
    factory: str | None = None,
    shapes: Sequence[tuple[int, ...]] = (),
    task: str | None = None,
    ask: Ask,
) -> Draft:
    """A recipe that runs.

    Args:
        out: The recipe's file, from whose folder its paths start.
        shapes: Of the inputs, without the batch, where the user has given them.
        ask: For what nothing tells.

    Raises:
        EdgewrightError: The checkpoint is of no known kind, or no network is found that fits it.
    """
    root = out.parent
    found = Draft({"name": _name(checkpoint), "model": {}, "data": {}})
    if checkpoint.is_dir() and kind_of(checkpoint) == "transformers":
        module = _describe_folder(found, checkpoint, root)
    elif kind_of(checkpoint) in ("torchscript", "keras", "program") or checkpoint.suffix == ".pt2":
        module = _describe_program(found, checkpoint, data, shapes, root, ask)
    else:
        require_known(checkpoint)
        module = _describe_weights(found, checkpoint, factory, data, shapes, root, ask)
    _describe_data(found, module, data, root)
    if task or data.task not in (None, "classification"):
        found.recipe["task"] = task or data.task
        found.notes["task"] = "as asked for" if task else "by the labels"
    found.recipe["stages"] = [{"quantize": {}}]
    found.recipe["targets"] = [name for name in targets.TARGETS if targets.get(name).missing_package() is None] or [
        "onnx"
    ]
    found.recipe["budget"] = {"max_drop": 0.01}
    return found


def _name(checkpoint: Path) -> str:
    """A name for the run.

    >>> _name(Path("runs/best model.v2.pt"))
    'best_model.v2'
    """
    stem = checkpoint.name if checkpoint.is_dir() else checkpoint.stem
    return re.sub(r"^\W+", "", re.sub(r"[^\w.-]+", "_", stem, flags=re.ASCII))[:100] or "model"


def relative(path: Path, root: Path) -> str:
    """A path as a recipe in this folder has it."""
    return Path(os.path.relpath(path.absolute(), root.absolute())).as_posix()


def _describe_folder(found: Draft, folder: Path, root: Path) -> nn.Module:
    described = huggingface.describe(folder)
    found.recipe["model"] = {"huggingface": relative(folder, root)}
    found.notes["model"] = "inputs, classes, task and preprocessing are those of the folder"
    return huggingface.load(described)


def _describe_program(
    found: Draft,
    checkpoint: Path,
    data: Recognised,
    shapes: Sequence[tuple[int, ...]],
    root: Path,
    ask: Ask,
) -> nn.Module:
    """A file that holds its own network: most know their inputs."""
    source = {"checkpoint": relative(checkpoint, root)}
    inputs: list[dict[str, Any]] = []
    try:
        if shapes:
            raise CheckpointError("its inputs are given")
        opened = open_module(ModelSource.model_validate(source), root)
        if any(spec.open_sizes for spec in opened.inputs):
            raise CheckpointError("its inputs have open sizes")
    except CheckpointError as error:
        if not shapes and kind_of(checkpoint) not in ("torchscript", "keras"):
            raise
        logger.debug("the inputs are not the file's own: %s", error)
        inputs = _given(shapes) or _of_arrays(data) or [_image_of_unknown(data, ask)]
        opened = open_module(ModelSource.model_validate({**source, "inputs": inputs}), root)
    found.recipe["model"] = {**source, **({"inputs": inputs} if inputs else {})}
    found.notes["model"] = "the file holds the network and its weights"
    found.recipe["_inputs"] = [
        spec.model_dump(mode="json", include={"name", "shape", "dtype"}) for spec in opened.inputs
    ]
    return opened.module


def _image_of_unknown(data: Recognised, ask: Ask) -> dict[str, Any]:
    """The input of a network that does not say what it takes: an image of the samples' size."""
    size, channels = _size_of(data.images), 1 if _grey(data.images) else 3
    if size is not None:
        return {"name": "image", "shape": [channels, *size]}
    return _asked(ask)


def _describe_weights(
    found: Draft,
    checkpoint: Path,
    factory: str | None,
    data: Recognised,
    shapes: Sequence[tuple[int, ...]],
    root: Path,
    ask: Ask,
) -> nn.Module:
    folders = [checkpoint.absolute().parent, Path.cwd(), root.absolute()]
    network = network_for(checkpoint, factory, folders, root)
    names = _parameters(network.module)
    inputs = _given(shapes, names) or _of_arrays(data, names) or [_image(network.module, data, ask)]
    model: dict[str, Any] = {"factory": network.factory, "checkpoint": relative(checkpoint, root), "inputs": inputs}
    if network.kwargs:
        model["kwargs"] = network.kwargs
    found.recipe["model"] = model
    found.notes["model"] = "the network whose names and shapes are those of the weights"
    found.notes["inputs"] = "as given" if shapes else _why_inputs(data, inputs)
    found.recipe["_inputs"] = inputs
    return network.module


def _why_inputs(data: Recognised, inputs: Sequence[Mapping[str, Any]]) -> str:
    if data.arrays:
        return "as the arrays"
    size = _size_of(data.images)
    same = size is not None and list(size) == inputs[0]["shape"][1:]
    return "channels of the first layer, size of the images" if same else "channels of the first layer; check the size"


def _parameters(module: nn.Module) -> list[str]:
    code = getattr(module.forward, "__code__", None)
    return [] if code is None else list(code.co_varnames[1 : code.co_argcount])


def _asked(ask: Ask) -> dict[str, Any]:
    """An input of which nothing tells the shape."""
    return _given([shape_of(ask("Shape of the input without the batch", "--shape, such as --shape 3,224,224"))])[0]


def _given(shapes: Sequence[tuple[int, ...]], names: Sequence[str] = ()) -> list[dict[str, Any]]:
    if len(shapes) == 1:
        return [{"name": "image" if len(shapes[0]) == 3 else "input", "shape": list(shapes[0])}]
    named = [*names, *(f"input_{number}" for number in range(len(names), len(shapes)))]
    return [{"name": name, "shape": list(shape)} for name, shape in zip(named, shapes, strict=False)]


def shape_of(text: str) -> tuple[int, ...]:
    """The sizes in a text such as ``3,224,224``.

    Raises:
        RecipeError: It is something else.

    >>> shape_of("3,224,224")
    (3, 224, 224)
    """
    parts = [part for part in re.split(r"[\s,]+", text.strip("[]() ")) if part]
    if not parts or not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise RecipeError(f"{text!r} is no shape", where="--shape", fix="give sizes without the batch: 3,224,224")
    return tuple(map(int, parts))


def _of_arrays(data: Recognised, names: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Inputs with the shapes and types of the arrays of an npz; images (H, W, C) and (H, W) become (C, H, W)."""
    inputs = []
    for place, (name, shape, dtype) in enumerate(data.arrays):
        stored_as_image = dtype == "uint8" or dtype.startswith("float")
        if len(shape) == 2 and stored_as_image:
            shape = (1, *shape)
        elif len(shape) == 3 and shape[-1] in (1, 3) and shape[0] not in (1, 3):
            shape = (shape[-1], *shape[:-1])
        if len(data.arrays) > 1 and place < len(names):
            name = names[place]
        elif len(shape) == 3:
            name = "image"
        spec: dict[str, Any] = {"name": name, "shape": list(shape)}
        if dtype.startswith("int") and len(shape) < 3:
            spec["dtype"] = "int64"
        inputs.append(spec)
    return inputs


def _image(module: nn.Module, data: Recognised, ask: Ask) -> dict[str, Any]:
    """An image of the first layer's channels, and of the size that the samples have or the network takes."""
    first = next((layer for layer in module.modules() if isinstance(layer, nn.Conv2d)), None)
    if first is None or not data.images:
        return _asked(ask)
    size = _size_of(data.images)
    if size is None or not _takes(module, first.in_channels, size):
        taken = [side for side in SIZES if _takes(module, first.in_channels, (side, side))]
        if not taken:
            return _asked(ask)
        side = USUAL if USUAL in taken else taken[0]
        size = (side, side)
    return {"name": "image", "shape": [first.in_channels, *size]}


@torch.no_grad()
def _takes(module: nn.Module, channels: int, size: tuple[int, int]) -> bool:
    try:
        module(torch.zeros(1, channels, *size))
    except Exception:  # of the user's network, for a size that is not its own
        return False
    return True


def _size_of(images: Sequence[Path]) -> tuple[int, int] | None:
    """Height and width, where all of some images have one size."""
    sizes = set()
    for path in images:
        try:
            with Image.open(path) as image:
                sizes.add((image.height, image.width))
        except OSError:
            continue
    return next(iter(sizes)) if len(sizes) == 1 else None


def _grey(images: Sequence[Path]) -> bool:
    try:
        with Image.open(images[0]) as image:
            return image.mode in ("L", "1", "I;16")
    except (OSError, IndexError):
        return False


def _describe_data(found: Draft, module: nn.Module, data: Recognised, root: Path) -> None:
    """The sets, the classes, and the preprocessing, for a network that does not say them itself."""
    recipe = found.recipe
    inputs = [TensorSpec.model_validate(spec) for spec in recipe.pop("_inputs", [])]
    sets = {
        role: {key: relative(value, root) if key in PATHS else value for key, value in source.items()}
        for role, source in data.sets.items()
    }
    recipe["data"] = sets
    found.notes["data"] = data.what
    if not inputs:
        return
    if data.classes and _outputs(module, inputs) == len(data.classes):
        recipe["model"]["classes"] = list(data.classes)
        found.notes["classes"] = "names of the folders, in sorted order: check that training numbered them so"
    image = inputs[0]
    if len(image.shape) != 3 or not image.dtype.startswith("float"):
        return
    stated = _stated(Path(root / recipe["model"].get("checkpoint", ".")).parent)
    if stated is not None:
        preprocessing = preprocessing_of(stated, image)
        found.notes["preprocessing"] = "as the model's config.json says"
    else:
        preprocessing, found.notes["preprocessing"] = _preprocessing(module, inputs, data, sets["train"], root)
    recipe["data"] = {"preprocessing": preprocessing.model_dump(mode="json", exclude_defaults=True), **sets}


@torch.no_grad()
def _outputs(module: nn.Module, inputs: Sequence[TensorSpec]) -> int | None:
    """How many numbers the first output has for each sample, where it is a vector."""
    try:
        first = output_tuple(module(*(torch.zeros(1, *spec.shape) for spec in inputs)))[0]
    except Exception:  # the check of the recipe tells
        return None
    return int(first.shape[1]) if first.ndim == 2 else None


def _stated(folder: Path) -> dict[str, Any] | None:
    """What timm's ``config.json`` beside a checkpoint says of the preprocessing, in transformers' words."""
    try:
        config = json.loads((folder / "config.json").read_bytes())
        stated = config["pretrained_cfg"]
        side = int(stated["input_size"][-1])
        size = int(side / float(stated.get("crop_pct") or 1))
        return {
            "size": {"shortest_edge": size},
            "do_center_crop": True,
            "crop_size": side,
            "rescale_factor": SCALE,
            "image_mean": list(stated["mean"]),
            "image_std": list(stated["std"]),
        }
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        return None


def _preprocessing(
    module: nn.Module, inputs: Sequence[TensorSpec], data: Recognised, train: dict[str, Any], root: Path
) -> tuple[Preprocessing, str]:
    """The preprocessing with which the network does best on training samples; without labels, the usual one."""
    channels, *sides = inputs[0].shape
    shape: dict[str, Any] = {} if _size_of(data.images) == tuple(sides) or data.arrays else {"resize": tuple(sides)}
    usual = Preprocessing(**shape, scale=SCALE)
    tried: dict[str, tuple[Preprocessing, float]] = {}
    if data.task in (None, "classification"):
        for name, values in _normalisations(channels, data, train, shape, inputs, root):
            candidate = Preprocessing(**shape, **values)
            accuracy = _accuracy(module, inputs, candidate, train, data, root)
            if accuracy is not None:
                tried[name] = candidate, accuracy
    if not tried:
        return usual, "values from 0 to 1: check that training used the same (mean and std are often subtracted, too)"
    best = max(tried, key=lambda name: tried[name][1])
    shown = ", ".join(f"{name} {accuracy:.0%}" for name, (_, accuracy) in tried.items())
    return tried[best][0], f"the best on {TRIED_ON} training samples at most: {shown}; check it"


def _normalisations(
    channels: int,
    data: Recognised,
    train: dict[str, Any],
    shape: dict[str, Any],
    inputs: Sequence[TensorSpec],
    root: Path,
) -> Iterator[tuple[str, dict[str, Any]]]:
    """How training scripts usually prepare images."""
    stored_as_bytes = not data.arrays or data.arrays[0][2] == "uint8"
    scale = {"scale": SCALE} if stored_as_bytes else {}
    yield "0 to 1", scale
    yield "-1 to 1", {**scale, "mean": (0.5,), "std": (0.5,)}
    if channels == 3:
        yield "ImageNet's mean and std", {**scale, "mean": IMAGENET[0], "std": IMAGENET[1]}
    own = _statistics(inputs, Preprocessing(**shape, **scale), train, data, root)
    if own is not None:
        yield "the samples' mean and std", {**scale, "mean": own[0], "std": own[1]}
    if stored_as_bytes:
        yield "0 to 255", {}


def _samples(
    inputs: Sequence[TensorSpec], preprocessing: Preprocessing, train: dict[str, Any], data: Recognised, root: Path
) -> tuple[torch.Tensor, Any]:
    """Some training samples and their labels."""
    source = DataSource.model_validate({**train, "limit": TRIED_ON})
    samples = open_samples(source, tuple(inputs), preprocessing, name="train", root=root, classes=data.classes)
    batch = next(samples.batches(TRIED_ON))
    return batch.inputs[0], batch.labels


def _statistics(
    inputs: Sequence[TensorSpec], preprocessing: Preprocessing, train: dict[str, Any], data: Recognised, root: Path
) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Mean and standard deviation of each channel."""
    try:
        values, _ = _samples(inputs, preprocessing, train, data, root)
    except EdgewrightError:
        return None
    mean, std = values.mean((0, 2, 3)), values.std((0, 2, 3))
    if bool((std <= 0).any()):
        return None
    return tuple(round(float(each), 4) for each in mean), tuple(round(float(each), 4) for each in std)


@torch.no_grad()
def _accuracy(
    module: nn.Module,
    inputs: Sequence[TensorSpec],
    preprocessing: Preprocessing,
    train: dict[str, Any],
    data: Recognised,
    root: Path,
) -> float | None:
    """The share of training samples whose class is right; None where they have none, or the model gives none."""
    if len(inputs) != 1:
        return None
    try:
        values, labels = _samples(inputs, preprocessing, train, data, root)
        right = [output_tuple(module(part))[0].argmax(1) for part in torch.split(values, 32)]
        numbers = torch.as_tensor(labels).reshape(-1)
    except Exception:  # the check of the recipe tells what is wrong with the samples or the network
        logger.debug("a preprocessing could not be tried", exc_info=True)
        return None
    found = torch.cat(right)
    if found.ndim != 1 or found.shape != numbers.shape:
        return None
    return float((found == numbers).double().mean())
