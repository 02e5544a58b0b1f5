"""Plain samples: what a tensor, a Dataset or a path stands for, given what a network takes.

Floats in memory are the network's inputs as they are. Files, and 8-bit pixels in memory, are stored samples, which the
model's preprocessing brings into the form of its inputs. A list of tensors may hold samples or batches: every reading
that its shapes allow is returned, and the network decides (`pipeline.models.given`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeAlias, get_args

import numpy as np
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from pipeline.core import DataError, DType, EdgewrightError, Preprocessing, TensorSpec, did_you_mean
from pipeline.core.arrays import Array
from pipeline.core.callables import failure_of
from pipeline.data.arrays import ArraySource
from pipeline.data.dataset import LABEL_NAMES, unwrapped
from pipeline.data.folder import FolderSource
from pipeline.data.frame import is_frame
from pipeline.data.labels import numpy_of
from pipeline.data.npz import NpzSource
from pipeline.data.open import from_dataset, from_source
from pipeline.data.preprocessing import prepared_shape
from pipeline.data.samples import SampleSet, Source


class Indexed(Protocol):
    """Anything with a length whose items are samples, such as a map-style Dataset."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: Any, /) -> Any: ...


Samples: TypeAlias = (
    SampleSet
    | Tensor
    | Array
    | Mapping[str, Any]
    | Sequence[Any]
    | Dataset[Any]
    | DataLoader[Any]
    | Indexed
    | str
    | Path
)
"""What every function of the library takes as samples."""

TAKEN = (
    "a tensor or an array (N, …), a tuple of them (one per input), a mapping of them by input, a list of samples or "
    "batches, a torch Dataset or DataLoader, a SampleSet, or the path of an .npz or of a folder of images"
)
"""The same for messages."""

_DTYPES = {"float64": "float32", "float16": "float32", "int16": "int32", "uint16": "int32", "uint32": "int64"}
"""Types that no input has, and those that hold their values."""
_IMAGE_CHANNELS = (3, 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What is known of a network's inputs.

    Attributes:
        specs: Its inputs; empty where only samples can tell.
        names: The names of forward's parameters, in order, as inputs may have them.
        least: How many of them forward needs.
        preprocessing: Of stored samples; one without any field that was given says nothing.
    """

    specs: tuple[TensorSpec, ...] = ()
    names: tuple[str, ...] = ()
    least: int = 1
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    classes: tuple[str, ...] = ()

    @property
    def count(self) -> int:
        """How many inputs there are, as far as that is known."""
        return len(self.specs) or max(self.least, 1)

    @property
    def called(self) -> str:
        """The inputs, for messages."""
        names = [spec.name for spec in self.specs] or self.names[: self.count]
        return f"{self.count} input{'s' if self.count > 1 else ''}" + (f" ({', '.join(names)})" if names else "")

    def name(self, index: int, count: int) -> str:
        """What to call an input whose samples have no name."""
        if self.specs:
            return self.specs[index].name
        if index < len(self.names):
            return self.names[index]
        return "input" if count == 1 else f"input_{index}"


def readings(given: Samples, wanted: Wanted, *, where: str) -> tuple[SampleSet, ...]:
    """Every meaning that plain samples can have for a network.

    Args:
        where: The argument that they were given as, for the messages; also the name of the set.

    Raises:
        DataError: They are nothing that is taken, or do not fit what the network takes.
    """
    if isinstance(given, SampleSet):
        return (given,)
    reader = _Reader(wanted, where)
    if isinstance(given, str | Path):
        return reader.path(Path(given))
    if _is_array(given):
        return (reader.columns([_array(given, where)]),)
    if isinstance(given, Mapping) and given and all(map(_is_array, given.values())):
        return (reader.named({str(key): _array(value, where) for key, value in given.items()}),)
    if isinstance(given, tuple | list) and given and all(map(_is_array, given)):
        return reader.several([_array(value, where) for value in given], record=isinstance(given, tuple))
    if isinstance(given, Mapping):
        problem = f"is a {type(given).__name__} of {', '.join(map(str, given))}"
        raise DataError(f"{problem:.200}, which are not all tensors", where=where, fix=f"give {TAKEN}")
    if isinstance(given, DataLoader) or (hasattr(given, "__len__") and hasattr(given, "__getitem__")):
        return reader.items(given)
    raise DataError(f"is a {type(given).__name__}", where=where, fix=f"give {TAKEN}")


def unscaled(where: str) -> DataError:
    """The refusal of pixels where nothing says how they become inputs."""
    return DataError(
        "holds stored pixels, and nothing says how they become the network's inputs",
        where=where,
        fix="give tensors as the network takes them, or say how: model = from_module(net, samples=…, "
        "preprocessing=Preprocessing(scale=1 / 255, mean=…, std=…)); scale=1 for pixels from 0 to 255",
    )


@dataclass(frozen=True, slots=True)
class _Reader:
    """Reads samples of one network."""

    wanted: Wanted
    where: str

    def columns(self, arrays: Sequence[Array], labels: Array | None = None, names: Sequence[str] = ()) -> SampleSet:
        """Arrays with one row per sample, one for each input."""
        if len(arrays) != self.wanted.count and (self.wanted.specs or len(arrays) < self.wanted.least):
            problem = f"holds {_tensors(len(arrays))}, and the network takes {self.wanted.called}"
            raise DataError(problem, where=self.where, fix="give a tuple with one tensor (N, …) per input")
        names = names or [self.wanted.name(index, len(arrays)) for index in range(len(arrays))]
        return self._set(ArraySource(arrays, labels, self.where), names)

    def named(self, arrays: dict[str, Array]) -> SampleSet:
        """Arrays by the names of the inputs; one more may hold the labels."""
        known = [spec.name for spec in self.wanted.specs] or list(self.wanted.names)
        label = next((name for name in LABEL_NAMES if name in arrays and name not in known), None)
        labels = None if label is None else arrays.pop(label)
        if len(arrays) == self.wanted.count == 1:
            return self.columns(list(arrays.values()), labels)
        missing = [name for name in known[: self.wanted.count] if name not in arrays]
        odd = next((name for name in arrays if known and name not in known), None)
        if missing or odd is not None:
            problem = f"has no {missing[0]!r}" if missing else f"has {odd!r}, which the network does not take"
            near = did_you_mean(missing[0], arrays) if missing else did_you_mean(odd, known)
            raise DataError(f"{problem}; {near}", where=self.where, fix="name tensors as forward does")
        names = [name for name in known if name in arrays] or list(arrays)
        return self.columns([arrays[name] for name in names], labels, names)

    def several(self, arrays: list[Array], *, record: bool) -> tuple[SampleSet, ...]:
        """A tuple (a record) or a list of arrays: one per input, or samples, or batches of the only input."""
        count = self.wanted.count
        if count > 1 or len(arrays) == 1 == len(self.wanted.specs):
            extra = len(arrays) == count + 1
            return (self.columns(arrays[:count] if extra else arrays, arrays[count] if extra else None),)
        shapes = [array.shape for array in arrays]
        if record and len(arrays) == 2 and shapes[0] and shapes[0][:1] == shapes[1][:1] and shapes[0] != shapes[1]:
            return (self.columns(arrays[:1], arrays[1]),)
        allowed: list[Callable[[], SampleSet]] = []
        if record and not self.wanted.specs and 1 < len(arrays) <= len(self.wanted.names):
            allowed.append(lambda: self.columns(arrays))
        if len(set(shapes)) == 1 and self._fits(shapes[0], axes=0):
            allowed.append(lambda: self.columns([np.stack(arrays)]))
        if all(shapes) and len({shape[1:] for shape in shapes}) == 1 and self._fits(shapes[0], axes=1):
            allowed.append(lambda: self.columns([np.concatenate(arrays)]))
        if not allowed:
            found = ", ".join(str(list(shape)) for shape in dict.fromkeys(shapes))
            problem = f"holds tensors of the shapes {found:.200}, and the network takes {self.wanted.called}"
            raise DataError(problem, where=self.where, fix=f"give {TAKEN}")
        return _all_that_open(allowed)

    def _fits(self, shape: tuple[int, ...], *, axes: int) -> bool:
        """Whether an array's shape, without so many axes in front, is that of the only input."""
        return not self.wanted.specs or shape[axes:] == self.wanted.specs[0].shape

    def path(self, path: Path) -> tuple[SampleSet, ...]:
        """An archive of NumPy, or a folder of images."""
        if path.is_dir():
            return self._folder(path)
        if path.suffix == ".npz":
            return (self._archive(path),)
        if not path.exists():
            raise DataError("no such file or folder", where=f"{self.where}: {path}", fix=f"give {TAKEN}")
        problem = "is neither an .npz nor a folder of images"
        raise DataError(problem, where=f"{self.where}: {path}", fix="open it: open_samples(DataSource(table=…), …)")

    def _archive(self, path: Path) -> SampleSet:
        arrays = self._arrays_in(path)
        names = [self.wanted.name(index, len(arrays)) for index in range(len(arrays))]
        return self._set(NpzSource(path, arrays, "labels"), names, stored=True)

    def _arrays_in(self, path: Path) -> list[str]:
        """The arrays of an archive that hold the inputs: those of their names, or the only one beside labels."""
        try:
            with np.load(path, allow_pickle=False) as archive:
                found = list(archive.files)
        except Exception:  # NpzSource says what is wrong with the file
            return ["images"]
        known = [spec.name for spec in self.wanted.specs] or list(self.wanted.names[: self.wanted.count])
        if known and all(name in found for name in known):
            return known
        others = [name for name in found if name not in LABEL_NAMES]
        if self.wanted.count == 1 and ("images" in found or len(others) == 1):
            return ["images"] if "images" in found else others
        problem = f"holds {', '.join(found[:20])}, and the network takes {self.wanted.called}"
        raise DataError(problem, where=str(path), fix="call its arrays as forward calls its inputs")

    def _folder(self, path: Path) -> tuple[SampleSet, ...]:
        if not self.wanted.preprocessing.model_fields_set:
            raise unscaled(str(path))
        labelled = any(entry.is_dir() and not entry.name.startswith((".", "_")) for entry in path.iterdir())
        specs = self.wanted.specs or tuple(
            TensorSpec(name=self.wanted.name(0, 1), shape=(channels, 1, 1)) for channels in self._channels()
        )

        def read(spec: TensorSpec) -> SampleSet:
            source = FolderSource(path, spec, self.wanted.classes, labelled=labelled)
            source.upright = self.wanted.preprocessing.exif
            return self._set(source, [spec.name], stored=True, channels=spec.shape[0])

        return _all_that_open([lambda spec=spec: read(spec) for spec in specs[:2]])  # type: ignore[misc]  # the default binds it

    def _channels(self) -> tuple[int, ...]:
        """Of images, which the preprocessing may name."""
        counts = {len(values) for values in (self.wanted.preprocessing.mean, self.wanted.preprocessing.std)} - {0, 1}
        return tuple(counts) or _IMAGE_CHANNELS

    def items(self, given: Any) -> tuple[SampleSet, ...]:
        """A Dataset, a DataLoader, a DataFrame or a list, whose items are samples; a list's may be batches."""
        if isinstance(given, Sequence) and not given:
            raise DataError("holds no samples", where=self.where, fix="add samples")
        if self.wanted.specs:
            specs = self.wanted.specs
        elif is_frame(given):
            features = [name for name in given.columns if str(name) not in LABEL_NAMES]
            specs = (TensorSpec(name=self.wanted.name(0, 1), shape=(len(features),)),)
        else:
            specs = self._specs_of_items(given)
        batches = isinstance(given, tuple | list)
        as_samples = lambda: self._checked(from_dataset(given, specs, name=self.where, preprocessing=self._of(given)))  # noqa: E731
        return _all_that_open([as_samples, *([lambda: self._batches(given)] if batches else [])])

    def _of(self, given: Any) -> Preprocessing | None:
        """The preprocessing of a Dataset's items: stored images have one, tensors are inputs already."""
        if is_frame(given):
            return None
        parts = [part for _, part in self._inputs_in(self._first(given))]
        if not any(_is_image(part) or numpy_of(part).dtype == np.uint8 for part in parts):
            return None
        if not self.wanted.preprocessing.model_fields_set:
            if any(map(_is_image, parts)) or any(spec.dtype.startswith("float") for spec in self.wanted.specs):
                raise unscaled(self.where)
            return None
        return self.wanted.preprocessing

    def _first(self, given: Any) -> Any:
        """The first item, in a batch of one where a DataLoader collates in a way of its own."""
        dataset, collate = unwrapped(given, self.where, None)
        try:
            if len(dataset) == 0:
                raise DataError("holds no samples", where=self.where, fix="add samples")
            return _first_row(collate([dataset[0]])) if collate is not None else dataset[0]
        except EdgewrightError:
            raise
        except (Exception, SystemExit) as error:  # the user's code may fail in any way
            problem = f"sample 0 fails: {failure_of(error)}"
            raise DataError(problem, where=self.where, fix="correct that line") from error

    def _inputs_in(self, item: Any) -> list[tuple[str, Any]]:
        """The inputs in one sample, with their names."""
        if isinstance(item, tuple | list) and item and isinstance(item[0], Mapping | tuple | list):
            item = item[0] if isinstance(item[0], Mapping) or len(item) <= 2 else item
            whole = not isinstance(item, Mapping)
        else:
            whole = False
        if isinstance(item, Mapping):
            known = [spec.name for spec in self.wanted.specs] or list(self.wanted.names)
            named = [name for name in known if name in item]
            others = [key for key in item if key not in LABEL_NAMES and not isinstance(item[key], str)]
            if len(named) < self.wanted.count and self.wanted.count == 1:
                usual = [key for key in others if key in ("image", "images", "pixel_values", "img", "x", "inputs")]
                chosen = usual if len(usual) == 1 else others
                return [(self.wanted.name(0, 1), item[key]) for key in chosen[:1]]
            return [(name, item[name]) for name in named]
        parts = list(item) if isinstance(item, tuple | list) else [item]
        parts = parts if whole else parts[: self.wanted.count]
        return [(self.wanted.name(index, len(parts)), part) for index, part in enumerate(parts)]

    def _specs_of_items(self, given: Any) -> tuple[TensorSpec, ...]:
        found = self._inputs_in(self._first(given))
        if len(found) < self.wanted.least or not found:
            problem = f"gives {_tensors(len(found))} per sample, and the network takes {self.wanted.called}"
            raise DataError(problem, where=self.where, fix="return (inputs, label), or a mapping by forward's names")
        specs = []
        for name, part in found:
            if _is_image(part) and not self.wanted.preprocessing.model_fields_set:
                raise unscaled(self.where)
            array = np.array(part) if _is_image(part) else _array(part, self.where)
            stored = array.dtype == np.uint8 and bool(self.wanted.preprocessing.model_fields_set)
            specs.append(self._spec(name, array[None], stored=stored or _is_image(part)))
        return tuple(specs)

    def _batches(self, given: Sequence[Any]) -> SampleSet:
        """A list of batches, such as a DataLoader gives, as one array per input."""
        rows = [[(name, _array(part, self.where)) for name, part in self._inputs_in(item)] for item in given]
        names = [name for name, _ in rows[0]]
        arrays = [np.concatenate([row[index][1] for row in rows]) for index in range(len(names))]
        return self.columns(arrays, names=names)

    def _set(
        self, source: Source, names: Sequence[str], *, stored: bool = False, channels: int | None = None
    ) -> SampleSet:
        """All samples of a source, whose first one says what cannot be known otherwise."""
        if len(source) == 0:
            raise DataError("holds no samples", where=self.where, fix="add samples")
        arrays, _ = source.read([0])
        given = bool(self.wanted.preprocessing.model_fields_set)
        pixels = [array.dtype in (np.uint8, object) for array in arrays]
        if any(pixels) and not given and any(spec.dtype.startswith("float") for spec in self.wanted.specs):
            raise unscaled(source.where)
        stored = given and (stored or any(pixels))
        specs = self.wanted.specs or tuple(
            self._spec(name, array, stored=stored, channels=channels) for name, array in zip(names, arrays, strict=True)
        )
        preprocessing = self.wanted.preprocessing if stored else None
        return self._checked(from_source(source, specs, preprocessing, name=self.where))

    def _checked(self, samples: SampleSet) -> SampleSet:
        """The samples, of which the first has been read."""
        next(samples.take(1).batches(1))
        return samples

    def _spec(self, name: str, array: Array, *, stored: bool, channels: int | None = None) -> TensorSpec:
        """The input that takes samples such as the first one ``(1, …)``."""
        if stored and array.dtype in (np.uint8, object):
            channels = channels or _channels_of(array, self.wanted.preprocessing.layout)
            wide = TensorSpec(name=name, shape=(channels, 1, 1))
            return TensorSpec(name=name, shape=prepared_shape(array, wide, self.wanted.preprocessing))
        dtype = _DTYPES.get(str(array.dtype), str(array.dtype))
        if dtype not in get_args(DType):
            problem = f"holds {array.dtype}, which no input takes"
            raise DataError(problem, where=self.where, fix=f"give one of {', '.join(get_args(DType))}")
        return TensorSpec.model_validate({"name": name, "shape": array.shape[1:], "dtype": dtype})


def _all_that_open(allowed: Sequence[Callable[[], SampleSet]]) -> tuple[SampleSet, ...]:
    """The readings that can be opened; where none can, the first one's error stands."""
    found: list[SampleSet] = []
    errors: list[DataError] = []
    for read in allowed:
        try:
            found.append(read())
        except DataError as error:
            errors.append(error)
        except ValueError as error:  # arrays that cannot be joined
            errors.append(DataError(f"cannot be joined: {error}", where="samples", fix=f"give {TAKEN}"))
    if not found:
        raise errors[0]
    return tuple(found)


def names_of(names: Sequence[str], *, pattern: str, reserved: set[str]) -> Iterator[str]:
    """Parameters of forward as inputs may be called: one whose name no file can hold is called by its position."""
    for index, name in enumerate(names):
        good = re.fullmatch(pattern, name) and name not in reserved
        yield name if good else "input" if len(names) == 1 else f"input_{index}"


def _is_array(value: Any) -> bool:
    return isinstance(value, Tensor | np.ndarray)


def _is_image(value: Any) -> bool:
    return type(value).__module__.startswith("PIL.")


def _array(value: Any, where: str) -> Array:
    try:
        array = numpy_of(value)
    except (TypeError, ValueError, RuntimeError) as error:  # a sparse or quantized tensor, or a ragged list
        raise DataError(f"holds no plain tensor: {error}", where=where, fix=f"give {TAKEN}") from None
    if array.dtype.kind not in "biuf":
        raise DataError(f"holds {array.dtype}, not numbers of one size", where=where, fix=f"give {TAKEN}")
    return array


def _channels_of(array: Array, layout: str) -> int:
    """Of a stored image ``(1, H, W)``, ``(1, H, W, C)`` or ``(1, C, H, W)``."""
    if array.ndim < 4:
        return 1
    last = layout == "nhwc" or (layout == "auto" and array.shape[1] not in (1, 3) and array.shape[-1] in (1, 3, 4))
    return int(array.shape[-1] if last else array.shape[1])


def _first_row(batch: Any) -> Any:
    """The first sample of a batch."""
    if isinstance(batch, Mapping):
        return {name: _first_row(part) for name, part in batch.items()}
    if isinstance(batch, tuple | list):
        return tuple(_first_row(part) for part in batch)
    return batch[0]


def _tensors(count: int) -> str:
    return "one tensor" if count == 1 else f"{count} tensors"
