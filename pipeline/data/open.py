"""Opening samples: the one place that knows every format."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline.core import DataError, Preprocessing, TensorSpec
from pipeline.core.callables import call, import_callable
from pipeline.data.coco import CocoSource
from pipeline.data.dataset import DatasetSource
from pipeline.data.folder import FolderSource
from pipeline.data.frame import FrameSource, is_frame
from pipeline.data.huggingface import HuggingFaceSource
from pipeline.data.masks import MaskSource
from pipeline.data.npz import NpzSource
from pipeline.data.rows import Tokenize
from pipeline.data.samples import SampleSet, Source
from pipeline.data.sound import is_sound_input
from pipeline.data.source import COCO_LABELS, CocoLabels, DataSource, Part
from pipeline.data.table import TableSource
from pipeline.data.yolo import YoloSource

MAX_SAMPLES = 10**9

logger = logging.getLogger(__name__)


def open_samples(
    source: DataSource,
    inputs: tuple[TensorSpec, ...],
    preprocessing: Preprocessing,
    *,
    name: str,
    root: Path = Path(),
    classes: Sequence[str] = (),
    tokenize: Tokenize | None = None,
) -> SampleSet:
    """Open the samples that a recipe names.

    Args:
        root: What relative paths start from.
        classes: The names of the model's classes, in order, where they are known: folders, texts and numbered names
            of a data set become their numbers.
        tokenize: What makes the model's inputs of texts in rows.

    Raises:
        DataError: The source is missing, unreadable, empty, or has the wrong arrays.
    """
    opened: Source
    preprocessing = source.preprocessing or preprocessing
    if source.npz is not None:
        opened = NpzSource(root / source.npz, source.inputs, source.labels)
    elif source.folder is not None:
        opened = _folder(source, source.folder, inputs, classes, root)
    elif source.table is not None:
        opened = TableSource(root / source.table, inputs, source.inputs, source.labels, classes, tokenize)
    elif source.huggingface is not None:
        path = root / source.huggingface
        opened = HuggingFaceSource(path, source.split, inputs, source.inputs, source.labels, classes, tokenize)
    else:
        assert source.factory is not None  # the recipe has checked that one of them is there
        dataset = call(source.factory, source.kwargs, root, field=f"data.{name}.kwargs", refusal=DataError)
        opened = dataset if isinstance(dataset, Source) else _dataset(dataset, source, inputs, classes, root)
    if source.box_format != "xyxy":
        opened.box_format = source.box_format
    if source.labels is None:
        opened.labelled = False
    opened.upright, opened.sampling_rate = preprocessing.exif, preprocessing.sampling_rate
    opened.classes = opened.classes or tuple(classes)
    samples = from_source(opened, inputs, preprocessing, name=name)
    samples = samples if source.part is None else _part(samples, source.part)
    samples = samples if source.limit is None else samples.take(source.limit)
    logger.debug("opened %s: %d of %d samples of %s", name, len(samples), len(opened), opened.where)
    return samples


def _part(samples: SampleSet, part: Part) -> SampleSet:
    if len(samples) < 2:
        raise DataError("holds a single sample, which has no parts", where=samples.source.where, fix="remove part")
    rest, held_out = samples.split(max(1, round(len(samples) * part.share)), part.seed)
    return replace(held_out if part.held_out else rest, name=samples.name)


def _dataset(
    dataset: Any, source: DataSource, inputs: tuple[TensorSpec, ...], classes: Sequence[str], root: Path
) -> Source:
    """What a factory has returned, with the names that the recipe gives."""
    assert source.factory is not None
    keys = source.inputs if "inputs" in source.model_fields_set else ()
    labels = source.labels if "labels" in source.model_fields_set else None
    collate = None if source.collate is None else import_callable(source.collate, root)
    found = of_object(
        dataset, source.factory, inputs, collate=collate, keys=keys, labels=labels, classes=classes, root=root
    )
    if source.labels is None:
        found.notes = ()  # of a label that is missing: none is wanted
    return found


def of_object(
    dataset: Any,
    where: str,
    inputs: tuple[TensorSpec, ...],
    *,
    collate: Callable[[list[Any]], Any] | None = None,
    keys: Sequence[str] = (),
    labels: str | Mapping[str, str] | None = None,
    classes: Sequence[str] = (),
    root: Path = Path(),
) -> Source:
    """A user's object as a source: a DataFrame, or a Dataset, a DataLoader or a list of items.

    Raises:
        DataError: It is nothing of these, or its inputs or labels are not where they are said to be.
    """
    if is_frame(dataset):
        return FrameSource(dataset, where, inputs, keys, labels, classes, root)
    if isinstance(labels, Mapping):
        fix = "name one key that holds all parts of a label, or return (inputs, {part: …})"
        raise DataError("labels of several parts are for tables and arrays", where=where, fix=fix)
    return DatasetSource(dataset, where, inputs, collate, keys=keys, label=labels, classes=classes)


def _folder(
    source: DataSource, folder: Path, inputs: tuple[TensorSpec, ...], classes: Sequence[str], root: Path
) -> Source:
    """Images with masks or with boxes; images or recordings in one subfolder per class."""
    if is_sound_input(inputs[0]) and source.masks is source.coco is source.yolo is None:
        return FolderSource(root / folder, inputs[0], classes, labelled=source.labels is not None)
    if len(inputs[0].shape) != 3 or not inputs[0].dtype.startswith("float"):
        problem = (
            f"images are for inputs [channels, height, width] of floats, and {inputs[0].name!r} is {inputs[0].dtype}"
        )
        raise DataError(f"{problem} {list(inputs[0].shape)}", where=str(root / folder), fix="name another source")
    channels = inputs[0].shape[0]
    if source.masks is not None:
        return MaskSource(root / folder, root / source.masks, channels, source.ignore)
    if source.coco is not None:
        of: CocoLabels = next((kind for kind in COCO_LABELS if kind == source.labels), "boxes")
        return CocoSource(root / source.coco, root / folder, channels, classes, of)
    if source.yolo is not None:
        return YoloSource(root / folder, root / source.yolo, channels, classes)
    return FolderSource(root / folder, inputs[0], classes, labelled=source.labels is not None)


def from_source(
    source: Source, inputs: tuple[TensorSpec, ...], preprocessing: Preprocessing | None = None, *, name: str = "samples"
) -> SampleSet:
    """All samples of a source.

    Raises:
        DataError: There are none, or not one array per model input.
    """
    if len(source) == 0:
        raise DataError("holds no samples", where=source.where, fix="add samples, or name another source")
    if len(source) > MAX_SAMPLES:
        problem = f"says that it holds {len(source)} samples, and {MAX_SAMPLES} is the limit"
        raise DataError(problem, where=source.where, fix="return the number of samples from __len__")
    arrays, _ = source.read([0])
    if len(arrays) != len(inputs):
        raise DataError(
            f"gives {len(arrays)} arrays per sample, but the model takes {len(inputs)} inputs",
            where=source.where,
            fix="list one array per model input in the recipe: inputs: [...]",
        )
    return SampleSet(name, source, inputs, preprocessing or Preprocessing(), tuple(range(len(source))))


def from_dataset(
    dataset: Any,
    inputs: tuple[TensorSpec, ...],
    *,
    name: str = "samples",
    collate: Callable[[list[Any]], Any] | None = None,
    keys: Sequence[str] = (),
    labels: str | Mapping[str, str] | None = None,
    classes: Sequence[str] = (),
    preprocessing: Preprocessing | None = None,
) -> SampleSet:
    """A `SampleSet` of a torch Dataset or DataLoader, a Hugging Face data set, or a DataFrame, for use as a library.

    Args:
        dataset: Its items are ``inputs``, ``(inputs, label)``, or mappings.
        collate: Makes a batch ``(inputs, labels)`` of items; by default they are stacked.
        keys: Under which names mappings, or a frame, have each input.
        labels: Under which name they have the label.
        classes: The names of the model's classes, which labels may have in place of numbers.
        preprocessing: By default items are the model's inputs already.
    """
    where = type(dataset).__name__
    source = of_object(dataset, where, inputs, collate=collate, keys=keys, labels=labels, classes=classes)
    return from_source(source, inputs, preprocessing, name=name)
