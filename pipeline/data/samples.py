"""Sample sets: some samples of a source, preprocessed and streamed in batches."""

from __future__ import annotations

import hashlib
import logging
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from pipeline.core import DataError, Model, Preprocessing, TensorSpec
from pipeline.core.arrays import Array
from pipeline.data.labels import ANY, LabelForm, Labels, tensors_in
from pipeline.data.places import Kind, Places, as_corners
from pipeline.data.preprocessing import frames, prepare, sizes
from pipeline.data.sound import read_sound
from pipeline.data.source import BoxFormat

logger = logging.getLogger(__name__)


EXAMPLES = 8
"""Real samples that a model carries along, on which each step is checked."""


class Batch(NamedTuple):
    """Model inputs ``(N, …)``, one per input, and labels in their task's form, or None."""

    inputs: tuple[Tensor, ...]
    labels: Labels | None


class Source(ABC):
    """Stored samples, before preprocessing.

    Attributes:
        where: The file or folder, for messages.
        labelled: Whether `read` gives labels.
        labels_where: The file and the field of the labels, for messages.
        classes: What the labels' numbers stand for, where the source names its classes.
        kind: What the labels say about places, where that is known without a task.
        box_format: What the four numbers of a box are.
        upright: Whether images are turned as their EXIF orientation says.
        sampling_rate: That sound files must have, in Hz; when absent, that of the first one.
        notes: What a reader of the report has to know, such as entries that were passed over.
        one_by_one: Whether a sample takes so much memory before preprocessing that one is read at a time.
    """

    where: str
    labelled: bool
    labels_where: str
    classes: tuple[str, ...] = ()
    kind: Kind = "unknown"
    one_by_one: bool = False
    box_format: BoxFormat = "xyxy"
    upright: bool = True
    sampling_rate: int | None = None
    notes: tuple[str, ...] = ()

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def read(self, indices: Sequence[int]) -> tuple[tuple[Array, ...], Any]:
        """Arrays ``(N, …)``, one per model input, and labels: an array ``(N, …)``, an entry per sample, or None."""

    def input_place(self, _index: int) -> str:
        """The file, or the place in it, of one sample's inputs, for messages."""
        return self.where

    def sound(self, file: Path | bytes, spec: TensorSpec, where: str) -> Array:
        """A recording, which has the sampling rate of those before it."""
        samples, self.sampling_rate = read_sound(file, spec, where, self.sampling_rate)
        return samples

    def place_of(self, _index: int) -> str:
        """The file and the field of one sample's label, for messages."""
        return self.labels_where


@dataclass(frozen=True)
class SampleSet:
    """A view of some samples of a source, ready for a model.

    Attributes:
        name: How reports call it.
        indices: Which samples of the source it shows, in order.
        form: The form of the labels that its task expects; None where it expects none.
    """

    name: str
    source: Source
    inputs: tuple[TensorSpec, ...]
    preprocessing: Preprocessing
    indices: tuple[int, ...]
    form: LabelForm | None = ANY

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def labelled(self) -> bool:
        """Whether batches carry labels."""
        return self.source.labelled and self.form is not None

    def __getitems__(self, positions: Sequence[int]) -> Batch:
        """The samples at these positions as one preprocessed batch (torch's batched fetch)."""
        chosen = [self.indices[position] for position in positions]
        if not self.source.one_by_one or len(chosen) == 1:
            return self._batch(chosen)
        return _joined([self._batch([index]) for index in chosen])

    def _batch(self, chosen: list[int]) -> Batch:
        arrays, labels = self.source.read(chosen)
        inputs = tuple(self._tensor(array, spec, chosen) for array, spec in zip(arrays, self.inputs, strict=True))
        if labels is None or self.form is None or not self.source.labelled:
            return Batch(inputs, None)
        if self.source.box_format != "xyxy":
            labels = self._with_corners(arrays[0], labels, chosen)
        moved = frames(arrays[0], self.inputs[0], self.preprocessing)
        form = (
            self.form
            if self.form.places.kind != "unknown"
            else replace(self.form, places=Places(kind=self.source.kind))
        )
        source = self.source
        read = form.read(
            labels, source.labels_where, chosen, frames=moved, place_of=source.place_of, names=source.classes
        )
        return Batch(inputs, read)

    def _with_corners(self, images: Array, labels: Any, chosen: Sequence[int]) -> list[Any]:
        """Labels whose boxes are corners in pixels of the stored images."""
        found = []
        for label, size, index in zip(labels, sizes(images, self.inputs[0], self.preprocessing), chosen, strict=True):
            try:
                found.append(as_corners(label, self.source.box_format, size))
            except ValueError as error:
                where, fix = f"{self.source.place_of(index)}.boxes", "correct it, or box_format"
                raise DataError(f"sample {index} {error}", where=where, fix=fix) from None
        return found

    def batches(self, batch_size: int) -> Iterator[Batch]:
        """All samples in order; the last batch may be smaller."""
        return iter(self.loader(batch_size))

    def loader(self, batch_size: int, *, shuffle_seed: int | None = None, drop_last: bool = False) -> DataLoader[Batch]:
        """A torch loader of `Batch`es, shuffled again in every epoch where a seed is given."""
        generator = None if shuffle_seed is None else torch.Generator().manual_seed(shuffle_seed)
        return DataLoader(
            self,  # type: ignore[arg-type]  # torch accepts any class with __getitems__ and __len__
            batch_size=batch_size,
            shuffle=generator is not None,
            generator=generator,
            drop_last=drop_last and len(self) >= batch_size,
            collate_fn=_identity,
        )

    def stand_ins(self, count: int) -> tuple[Tensor, ...]:
        """Inputs ``(count, …)`` of the right shapes and types without reading: ones, valid as lengths and ids, too."""
        return tuple(
            torch.full((count, *spec.shape), spec.range[0] if spec.range else 1, dtype=getattr(torch, spec.dtype))
            for spec in self.inputs
        )

    def take(self, count: int) -> SampleSet:
        """At most ``count`` samples, evenly spaced, so that a set sorted by class keeps all its classes."""
        if count >= len(self):
            return self
        positions = np.linspace(0, len(self) - 1, count).round().astype(int)
        return replace(self, indices=tuple(self.indices[position] for position in positions))

    def split(self, held_out: int, seed: int) -> tuple[SampleSet, SampleSet]:
        """A random part for fitting, and ``held_out`` other samples (at most half) to choose by."""
        order = np.random.default_rng(seed).permutation(len(self))
        cut = len(self) - min(held_out, len(self) // 2)
        logger.debug("split %s: %d kept, %d held out, seed %d", self.name, cut, len(self) - cut, seed)
        kept, held = ([self.indices[position] for position in sorted(part)] for part in (order[:cut], order[cut:]))
        return replace(self, indices=tuple(kept)), replace(self, name=f"{self.name} (held out)", indices=tuple(held))

    @cached_property
    def sha256(self) -> str:
        """Hash of the preprocessed samples and labels, which also reads, and so checks, every one of them."""
        digest = hashlib.sha256()
        for batch in self.batches(256):
            for tensor in (*batch.inputs, *tensors_in(batch.labels)):
                digest.update(repr((tuple(tensor.shape[1:]), tensor.dtype)).encode())
                digest.update(tensor.numpy().tobytes())
        logger.debug("read and hashed %d samples of %s (%s)", len(self), self.name, self.source.where)
        return digest.hexdigest()

    def _tensor(self, array: Array, spec: TensorSpec, indices: Sequence[int]) -> Tensor:
        if array.dtype == object and len(indices) > 1:  # sizes differ until they are resized
            self._require_one_size(array, spec, indices)
            return torch.cat([self._tensor(array[i : i + 1], spec, [index]) for i, index in enumerate(indices)])
        where = self.source.input_place(indices[0]) if len(indices) == 1 else self.source.where
        if array.dtype.kind not in ("biufO" if spec.dtype.startswith("float") else "biuf"):
            raise DataError(
                f"samples of {spec.name!r} are {array.dtype}, not numbers of one size each",
                where=where,
                fix="store them as one array of numbers (N, …)",
            )
        tensor = prepare(array, spec, self.preprocessing)
        if not tensor.is_floating_point() and not np.array_equal(tensor.numpy(), array):
            raise DataError(
                f"samples of {spec.name!r} are {array.dtype}, and not all of them are {spec.dtype} values",
                where=where,
                fix=f"store them as {spec.dtype}, or name the input's true dtype in model.inputs",
            )
        if spec.range is not None and tensor.numel():
            _require_range(tensor, spec, indices, self.source)
        if tensor.is_floating_point() and not (finite := torch.isfinite(tensor).reshape(len(tensor), -1).all(1)).all():
            bad = indices[int((~finite).nonzero()[0, 0])]
            raise DataError(
                f"sample {bad} of {spec.name!r} holds NaN or infinity",
                where=self.source.input_place(bad),
                fix="remove or repair the sample",
            )
        if tuple(tensor.shape[1:]) != spec.shape:
            raise DataError(
                f"samples of {spec.name!r} have shape {list(tensor.shape[1:])} after preprocessing, "
                f"but the model takes {list(spec.shape)}",
                where=where,
                fix="set data.preprocessing (layout, resize, crop), or model.inputs",
            )
        return tensor.contiguous()

    def _require_one_size(self, samples: Array, spec: TensorSpec, indices: Sequence[int]) -> None:
        """Refuse samples of different sizes where nothing brings them to one."""
        shapes = [np.shape(sample) for sample in samples]
        odd = next((i for i, shape in enumerate(shapes) if shape != shapes[0]), None)
        if odd is not None and self.preprocessing.resize is None and self.preprocessing.crop is None:
            problem = f"sample {indices[odd]} of {spec.name!r} has shape {list(shapes[odd])}, and an earlier one"
            raise DataError(
                f"gives samples of different sizes: {problem} {list(shapes[0])}",
                where=self.source.where,
                fix="bring them to one size, or let data.preprocessing (resize, letterbox) do it",
            )


def _require_range(tensor: Tensor, spec: TensorSpec, indices: Sequence[int], source: Source) -> None:
    """Refuse a sample with a value that its input does not take."""
    assert spec.range is not None  # the caller has checked it
    least, most = spec.range
    outside = (tensor < least) | (tensor > most)
    if outside.any():
        position = int(outside.reshape(len(tensor), -1).any(1).nonzero()[0, 0])
        value = tensor[position][outside[position]].flatten()[0].item()
        raise DataError(
            f"sample {indices[position]} of {spec.name!r} holds {value}, and its range is [{least}, {most}]",
            where=source.input_place(indices[position]),
            fix="correct the sample, or the range in model.inputs",
        )


def _joined(batches: list[Batch]) -> Batch:
    """Batches of one sample as one batch."""
    inputs = tuple(torch.cat(tensors) for tensors in zip(*(batch.inputs for batch in batches), strict=True))
    labels: list[Any] = [batch.labels for batch in batches if batch.labels is not None]
    if not labels:
        return Batch(inputs, None)
    if all(isinstance(label, Tensor) and label.shape[1:] == labels[0].shape[1:] for label in labels):
        return Batch(inputs, torch.cat(labels))
    return Batch(inputs, [entry for label in labels for entry in label])


def with_examples(model: Model, samples: SampleSet) -> Model:
    """The model with a few of these samples to be tried on, unless it has some already."""
    return model if model.examples else replace(model, examples=examples_of(samples))


def examples_of(samples: SampleSet) -> tuple[Tensor, ...]:
    """A few of the samples, evenly spaced: one tensor ``(N, …)`` per input."""
    return next(samples.take(EXAMPLES).batches(EXAMPLES)).inputs


def _identity(batch: Any) -> Any:
    return batch
