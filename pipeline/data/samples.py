"""Samples: read from an npz, an image folder or a user's Dataset; preprocessed and streamed in batches."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader

from pipeline.core import DataError, Preprocessing, TensorSpec
from pipeline.core.callables import import_callable
from pipeline.recipe import DataSource

Array = np.ndarray[Any, np.dtype[Any]]


class Batch(NamedTuple):
    """Model inputs ``(N, …)``, one per input, and labels ``(N,) int64`` or None."""

    inputs: tuple[Tensor, ...]
    labels: Tensor | None


class Source(Protocol):
    """Stored samples, before preprocessing."""

    where: str
    labelled: bool

    def __len__(self) -> int: ...

    def read(self, indices: Sequence[int]) -> tuple[tuple[Array, ...], Array | None]:
        """Arrays ``(N, …)``, one per model input, and labels ``(N,)`` or None."""
        ...


class NpzSource:
    """Arrays of a NumPy archive, kept in the dtype they are stored in."""

    def __init__(self, path: Path, inputs: Sequence[str], labels: str | None) -> None:
        self.where = str(path)
        if not path.is_file():
            raise DataError("no such file", where=self.where, fix="paths are relative to the recipe")
        if not zipfile.is_zipfile(path):
            raise DataError("is not a readable npz", where=self.where, fix="write it with numpy.savez_compressed")
        try:
            with np.load(path, allow_pickle=False) as archive:
                missing = [name for name in inputs if name not in archive.files]
                if missing:
                    raise DataError(
                        f"has no array {missing[0]!r}; it holds {', '.join(archive.files)}",
                        where=self.where,
                        fix="name its arrays in the recipe: inputs: [...], labels: ...",
                    )
                self._inputs = tuple(archive[name] for name in inputs)
                self._labels = archive[labels] if labels is not None and labels in archive.files else None
        except (OSError, ValueError, zipfile.BadZipFile) as error:
            raise DataError(f"is not a readable npz: {error}", where=self.where) from None
        self.labelled = self._labels is not None
        lengths = {len(array) for array in (*self._inputs, *(() if self._labels is None else (self._labels,)))}
        if len(lengths) != 1:
            raise DataError(f"its arrays have different lengths: {sorted(lengths)}", where=self.where)

    def __len__(self) -> int:
        return len(self._inputs[0])

    def read(self, indices: Sequence[int]) -> tuple[tuple[Array, ...], Array | None]:
        chosen = np.asarray(indices, dtype=np.intp)  # also where there are none
        labels = None if self._labels is None else self._labels[chosen]
        return tuple(array[chosen] for array in self._inputs), labels


class FolderSource:
    """Images under one subfolder per class; classes are numbered in sorted order. Decoded by Pillow on demand."""

    extensions = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp"})

    def __init__(self, path: Path, channels: int) -> None:
        self.where = str(path)
        self.labelled = True
        if not path.is_dir():
            raise DataError("no such folder", where=self.where, fix="paths are relative to the recipe")
        self.classes = tuple(sorted(entry.name for entry in path.iterdir() if entry.is_dir()))
        self._mode = "L" if channels == 1 else "RGB"
        self._files = [
            (file, label)
            for label, name in enumerate(self.classes)
            for file in sorted((path / name).iterdir())
            if file.suffix.lower() in self.extensions
        ]

    def __len__(self) -> int:
        return len(self._files)

    def read(self, indices: Sequence[int]) -> tuple[tuple[Array, ...], Array | None]:
        from PIL import Image, UnidentifiedImageError

        images, labels = [], []
        for index in indices:
            file, label = self._files[index]
            try:
                with Image.open(file) as image:
                    images.append(np.array(image.convert(self._mode)))
            except (UnidentifiedImageError, OSError) as error:
                raise DataError(f"is not a readable image: {error}", where=str(file)) from None
            labels.append(label)
        stacked = np.empty(len(images), dtype=object)  # sizes may differ until they are resized
        stacked[:] = images
        return (stacked,), np.asarray(labels)


class DatasetSource:
    """A user's own map-style torch Dataset, whose items are ``inputs`` or ``(inputs, label)``."""

    def __init__(self, dataset: Any, where: str, input_count: int) -> None:
        self.where, self._dataset, self._input_count = where, dataset, input_count
        if not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")):
            raise DataError("must return a map-style torch Dataset, with __len__ and __getitem__", where=where)
        self.labelled = len(dataset) > 0 and self._item(0)[1] is not None

    def __len__(self) -> int:
        return len(self._dataset)

    def _item(self, index: int) -> tuple[tuple[Array, ...], int | None]:
        item = self._dataset[index]
        parts = tuple(item) if isinstance(item, tuple | list) else (item,)
        inputs, rest = parts[: self._input_count], parts[self._input_count :]
        if len(inputs) == 1 and isinstance(inputs[0], tuple | list):
            inputs = tuple(inputs[0])
        return tuple(np.asarray(part) for part in inputs), int(rest[0]) if rest else None

    def read(self, indices: Sequence[int]) -> tuple[tuple[Array, ...], Array | None]:
        items = [self._item(index) for index in indices]
        inputs = tuple(np.stack(parts) for parts in zip(*(inputs for inputs, _ in items), strict=True))
        return inputs, np.asarray([label for _, label in items]) if self.labelled else None


@dataclass(frozen=True)
class SampleSet:
    """A view of some samples of a source, ready for a model.

    Attributes:
        name: How reports call it.
        indices: Which samples of the source it shows, in order.
    """

    name: str
    source: Source
    inputs: tuple[TensorSpec, ...]
    preprocessing: Preprocessing
    indices: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def labelled(self) -> bool:
        """Whether batches carry labels."""
        return self.source.labelled

    def __getitems__(self, positions: Sequence[int]) -> Batch:
        """The samples at these positions as one preprocessed batch (torch's batched fetch)."""
        chosen = [self.indices[position] for position in positions]
        arrays, labels = self.source.read(chosen)
        inputs = tuple(self._tensor(array, spec, chosen) for array, spec in zip(arrays, self.inputs, strict=True))
        return Batch(inputs, None if labels is None else torch.from_numpy(labels.astype(np.int64)))

    def batches(self, batch_size: int) -> Iterator[Batch]:
        """All samples in order; the last batch may be smaller."""
        return iter(self.loader(batch_size))

    def loader(self, batch_size: int, *, shuffle_seed: int | None = None, drop_last: bool = False) -> DataLoader[Batch]:
        """A torch loader of `Batch`es, shuffled anew in every epoch where a seed is given."""
        generator = None if shuffle_seed is None else torch.Generator().manual_seed(shuffle_seed)
        return DataLoader(
            self,  # type: ignore[arg-type]  # torch accepts any class with __getitems__ and __len__
            batch_size=batch_size,
            shuffle=generator is not None,
            generator=generator,
            drop_last=drop_last and len(self) >= batch_size,
            collate_fn=_identity,
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
        kept, held = ([self.indices[position] for position in sorted(part)] for part in (order[:cut], order[cut:]))
        return replace(self, indices=tuple(kept)), replace(self, name=f"{self.name} (held out)", indices=tuple(held))

    @cached_property
    def sha256(self) -> str:
        """Hash of the preprocessed samples and labels, which also reads, and so checks, every one of them."""
        digest = hashlib.sha256()
        for batch in self.batches(256):
            for tensor in (*batch.inputs, *(() if batch.labels is None else (batch.labels,))):
                digest.update(repr((tuple(tensor.shape[1:]), tensor.dtype)).encode())
                digest.update(tensor.numpy().tobytes())
        return digest.hexdigest()

    def check_labels(self, classes: int) -> None:
        """Refuse labels outside ``[0, classes)``.

        Raises:
            DataError: Names the first such sample.
        """
        for start in range(0, len(self), 4096):
            _, labels = self.source.read(self.indices[start : start + 4096])
            if labels is None:
                return
            wrong = np.flatnonzero((labels < 0) | (labels >= classes))
            if len(wrong):
                raise DataError(
                    f"sample {self.indices[start + wrong[0]]} has label {labels[wrong[0]]}, but the model has "
                    f"{classes} classes (0 to {classes - 1})",
                    where=f"{self.source.where}: labels",
                    fix="relabel the samples, or name the right labels array in the recipe",
                )

    def _tensor(self, array: Array, spec: TensorSpec, indices: Sequence[int]) -> Tensor:
        if not spec.dtype.startswith("float"):
            return self._checked(torch.from_numpy(np.ascontiguousarray(array)).to(getattr(torch, spec.dtype)), spec)
        if array.dtype == object:  # images of different sizes: bring each to the common one first
            tensor = torch.cat([self._image(image[None], spec) for image in array])
        else:
            tensor = self._image(array, spec)
        finite = torch.isfinite(tensor).flatten(1).all(1)
        if not finite.all():
            bad = indices[int((~finite).nonzero()[0, 0])]
            raise DataError(
                f"sample {bad} of {spec.name!r} holds NaN or infinity",
                where=self.source.where,
                fix="remove or repair the sample",
            )
        return self._checked(tensor, spec)

    def _image(self, array: Array, spec: TensorSpec) -> Tensor:
        tensor = torch.from_numpy(np.ascontiguousarray(array)).to(torch.float32)
        if tensor.ndim == len(spec.shape) and len(spec.shape) == 3 and spec.shape[0] == 1:
            tensor = tensor.unsqueeze(1)  # greyscale images stored without a channel axis
        elif tensor.ndim == 4 and self._is_nhwc(tensor, spec):
            tensor = tensor.permute(0, 3, 1, 2)
        p = self.preprocessing
        if p.resize is not None:
            tensor = functional.interpolate(tensor, p.resize, mode="bilinear", antialias=True)
        if p.crop is not None:
            top, left = (tensor.shape[-2] - p.crop[0]) // 2, (tensor.shape[-1] - p.crop[1]) // 2
            tensor = tensor[..., top : top + p.crop[0], left : left + p.crop[1]]
        per_channel = (1, -1, *(1,) * (tensor.ndim - 2))
        tensor = tensor * p.scale
        if p.mean:
            tensor = tensor - torch.tensor(p.mean).view(per_channel)
        if p.std:
            tensor = tensor / torch.tensor(p.std).view(per_channel)
        return tensor

    def _is_nhwc(self, tensor: Tensor, spec: TensorSpec) -> bool:
        if self.preprocessing.layout != "auto":
            return self.preprocessing.layout == "nhwc"
        return tensor.shape[1] != spec.shape[0] and tensor.shape[-1] == spec.shape[0]

    def _checked(self, tensor: Tensor, spec: TensorSpec) -> Tensor:
        if tuple(tensor.shape[1:]) != spec.shape:
            raise DataError(
                f"samples of {spec.name!r} have shape {list(tensor.shape[1:])} after preprocessing, "
                f"but the model takes {list(spec.shape)}",
                where=self.source.where,
                fix="set data.preprocessing (layout, resize, crop), or model.inputs",
            )
        return tensor.contiguous()


def _identity(batch: Any) -> Any:
    return batch


def open_samples(
    source: DataSource,
    inputs: tuple[TensorSpec, ...],
    preprocessing: Preprocessing,
    *,
    name: str,
    root: Path = Path(),
) -> SampleSet:
    """Open the samples that a recipe names; ``root`` is what relative paths start from.

    Raises:
        DataError: The source is missing, unreadable, empty, or has the wrong arrays.
    """
    opened: Source
    if source.npz is not None:
        opened = NpzSource(root / source.npz, source.inputs, source.labels)
    elif source.folder is not None:
        opened = FolderSource(root / source.folder, channels=inputs[0].shape[0])
    else:
        assert source.factory is not None  # the recipe has checked that one of the three is there
        factory = import_callable(source.factory, root)
        opened = DatasetSource(factory(**source.kwargs), source.factory, len(inputs))
    samples = from_source(opened, inputs, preprocessing, name=name)
    return samples if source.limit is None else samples.take(source.limit)


def from_source(
    source: Source, inputs: tuple[TensorSpec, ...], preprocessing: Preprocessing | None = None, *, name: str = "samples"
) -> SampleSet:
    """All samples of a source.

    Raises:
        DataError: There are none, or not one array per model input.
    """
    if len(source) == 0:
        raise DataError("holds no samples", where=source.where, fix="add samples, or name another source")
    arrays, _ = source.read([0])
    if len(arrays) != len(inputs):
        raise DataError(
            f"gives {len(arrays)} arrays per sample, but the model takes {len(inputs)} inputs",
            where=source.where,
            fix="list one array per model input in the recipe: inputs: [...]",
        )
    return SampleSet(name, source, inputs, preprocessing or Preprocessing(), tuple(range(len(source))))


def from_dataset(dataset: Any, inputs: tuple[TensorSpec, ...], *, name: str = "samples") -> SampleSet:
    """A `SampleSet` of a torch Dataset that already yields model inputs, for use as a library."""
    return from_source(DatasetSource(dataset, type(dataset).__name__, len(inputs)), inputs, name=name)
