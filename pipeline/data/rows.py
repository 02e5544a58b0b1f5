"""Samples in rows with named columns: what tables and Hugging Face data sets have in common."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.core import DataError, TensorSpec, did_you_mean, first_line
from pipeline.core.arrays import Array
from pipeline.data.folder import mode_of, stacked
from pipeline.data.images import EXTENSIONS, read_image, read_mask, require_regular
from pipeline.data.labels import MisfitError, named_class, value_of
from pipeline.data.samples import Source
from pipeline.data.sound import EXTENSION, is_sound_input
from pipeline.data.source import DataSource

ARRAY = ".npy"
_DEFAULT_LABELS = DataSource.model_fields["labels"].default
_DEFAULT_INPUTS = DataSource.model_fields["inputs"].default
_TEXTS = ("text", "sentence")

Tokenize = Callable[[Sequence[Sequence[str]]], tuple[Array, ...]]
"""All model inputs ``(N, …)`` of texts: one text for each sample, or a pair."""


class RowSource(Source):
    """Rows whose cells are numbers, lists, texts, or the paths of images and of arrays (``.npy``).

    Args:
        where: The file.
        columns: The columns that it has.
        specs: The model's inputs.
        inputs: The column of each.
        labels: The column of the labels, or of each part of them.
        classes: The names of classes 0, 1, …, which labels may have in place of numbers.
        folder: What relative paths in cells start from.
        tokenize: What makes inputs of texts; the columns then hold texts, unless they have the names of the inputs.

    Raises:
        DataError: There is no such column.
    """

    one_by_one = True

    def __init__(
        self,
        where: str,
        columns: Sequence[str],
        *,
        specs: Sequence[TensorSpec],
        inputs: Sequence[str],
        labels: str | Mapping[str, str] | None,
        classes: Sequence[str],
        folder: Path,
        tokenize: Tokenize | None = None,
    ) -> None:
        self.where, self._folder, self.classes = where, folder, tuple(classes)
        self._tokenize = None if set(inputs) & {spec.name for spec in specs} else tokenize
        if self._tokenize is not None and tuple(inputs) == _DEFAULT_INPUTS and inputs[0] not in columns:
            inputs = [next((name for name in _TEXTS if name in columns), _TEXTS[0])]
        if labels == _DEFAULT_LABELS and labels not in columns:
            labels = "label" if "label" in columns else None
        self._labels = labels
        self.label_columns = [] if labels is None else [labels] if isinstance(labels, str) else list(labels.values())
        missing = next((name for name in (*inputs, *self.label_columns) if name.split(".")[0] not in columns), None)
        if missing is not None:
            raise DataError(
                f"has no column {missing!r}; {did_you_mean(missing, columns)}",
                where=where,
                fix="name its columns in the recipe: inputs: [...], labels: ...",
            )
        self._inputs, self._specs = tuple(inputs), tuple(specs)
        self.labelled = labels is not None
        self.labels_where = f"{where}: {labels}" if isinstance(labels, str) else f"{where}: labels"

    @abstractmethod
    def row_name(self, index: int) -> str:
        """The file and the row, as a person finds it: ``set.csv: line 7``."""

    def input_place(self, index: int) -> str:
        return self.row_name(index)

    @abstractmethod
    def row(self, index: int) -> Mapping[str, Any]:
        """The cells of a row by column."""

    def place_of(self, index: int) -> str:
        labels = self._labels if isinstance(self._labels, str) else "labels"
        return f"{self.row_name(index)}: {labels}"

    def read(self, indices: Sequence[int]) -> tuple[tuple[Array, ...], Any]:
        rows = [(self.row_name(index), self.row(index)) for index in indices]
        labels = [self._label(row, place) for place, row in rows] if self.labelled else None
        if self._tokenize is not None:
            return self._tokenize([[_text(row, name, place) for name in self._inputs] for place, row in rows]), labels
        inputs = tuple(
            column([self._input(spec, _cell(row, name, place), f"{place}: {name}") for place, row in rows])
            for spec, name in zip(self._specs, self._inputs, strict=True)
        )
        return inputs, labels

    def _input(self, spec: TensorSpec, cell: Any, place: str) -> Array:
        if is_sound(cell):
            if not is_sound_input(spec):
                problem = f"is a recording, and {spec.name!r} is {spec.dtype} {list(spec.shape)}"
                raise DataError(problem, where=place, fix="recordings are for inputs [samples] or [channels, samples]")
            content, path = image_of(cell, self._folder)
            return self.sound(content, spec, _named(place, path))
        if is_image(cell):
            content, path = image_of(cell, self._folder)
            return read_image(
                content, mode_of(spec.shape[0] if spec.shape else 1), _named(place, path), upright=self.upright
            )
        value = self._value(cell, place)
        if value.dtype.kind not in "biuf":
            raise DataError(
                f"{cell!r:.80} is no number, list of numbers, or path of an image, {EXTENSION} or {ARRAY} file",
                where=place,
                fix="correct it; paths are relative to the table",
            )
        return value

    def _label(self, row: Mapping[str, Any], place: str) -> Any:
        if isinstance(self._labels, str):
            return self._entry(row, self._labels, place)
        assert self._labels is not None
        return {part: value_of(self._entry(row, name, place)) for part, name in self._labels.items()}

    def numbered(self, _column: str, cell: Any, _place: str) -> Any:
        """A label with the numbers of classes as the model has them."""
        return cell

    def class_of(self, name: str, place: str) -> int:
        """The number of a class."""
        if name not in self.classes:
            raise DataError(
                f"{name!r} is not in model.classes; {did_you_mean(name, self.classes)}",
                where=place,
                fix="correct the label, or add the class",
            )
        return self.classes.index(name)

    def _entry(self, row: Mapping[str, Any], column: str, row_place: str) -> Any:
        """A label: a class's number in place of its name, a mask or an array in place of its path."""
        place = f"{row_place}: {column}"
        cell = self.numbered(column, _cell(row, column, row_place), place)
        if is_image(cell):
            content, path = image_of(cell, self._folder)
            return read_mask(content, _named(place, path), upright=self.upright)
        if isinstance(cell, str) and cell.lower().endswith(ARRAY):
            return self._value(cell, place)
        return self._with_numbers(self._class_or_value(cell, place), place) if self.classes else cell

    def _class_or_value(self, cell: Any, place: str) -> Any:
        """The number of the class that a cell names, else the value that it holds."""
        try:
            number = named_class(cell, self.classes) if isinstance(cell, str) else None
        except MisfitError as misfit:
            raise DataError(str(misfit), where=place, fix=misfit.fix) from None
        return value_of(cell) if number is None else number

    def _with_numbers(self, value: Any, place: str) -> Any:
        """Numbers in place of the names of classes, also in lists."""
        if isinstance(value, list):
            return [self._with_numbers(each, place) for each in value]
        return self.class_of(value, place) if isinstance(value, str) else value

    def _value(self, cell: Any, place: str) -> Array:
        """Numbers, or the array in a file."""
        if isinstance(cell, str) and cell.lower().endswith(ARRAY):
            return read_array(self._folder / cell, place)
        try:
            return np.asarray(value_of(cell))
        except ValueError:  # lists of different lengths
            return np.asarray("")


def _cell(row: Mapping[str, Any], name: str, place: str) -> Any:
    """A cell that holds something; ``a.b`` is column b inside column a."""
    found: Any = row.get(name)
    if name not in row:
        found = row
        for part in name.split("."):
            found = found.get(part) if isinstance(found, Mapping) else None
    if found is None or (isinstance(found, str) and not found.strip()):
        raise DataError("is empty", where=f"{place}: {name}", fix="fill it in, or remove the row")
    return found


def _text(row: Mapping[str, Any], name: str, place: str) -> str:
    cell = _cell(row, name, place)
    if not isinstance(cell, str):
        raise DataError(
            f"{cell!r:.80} is no text",
            where=f"{place}: {name}",
            fix="name columns of texts in the recipe: inputs: [text]",
        )
    return cell


def is_sound(cell: Any) -> bool:
    """Whether a cell is a recording: the path of one, or one as Hugging Face stores it."""
    if isinstance(cell, Mapping) and set(cell) == {"bytes", "path"}:
        cell = cell["path"] if cell["bytes"] is None else f".{(cell['bytes'][:4] == b'RIFF') * 'wav'}"
    return isinstance(cell, str) and cell.lower().endswith(EXTENSION)


def is_image(cell: Any) -> bool:
    """Whether a cell is an image: the path of one, or one as Hugging Face stores it."""
    if isinstance(cell, str):
        return Path(cell).suffix.lower() in EXTENSIONS
    return isinstance(cell, Mapping) and set(cell) == {"bytes", "path"}


def image_of(cell: Any, folder: Path) -> tuple[Path | bytes, str | None]:
    """An image's file or content, and how messages call it."""
    path = cell if isinstance(cell, str) else cell["path"]
    content = None if isinstance(cell, str) else cell["bytes"]
    return (folder / path if content is None else content), path


def _named(place: str, path: str | None) -> str:
    return place if path is None else f"{place}: {path}"


def read_array(path: Path, place: str) -> Array:
    """The array of a ``.npy`` file.

    Raises:
        DataError: It cannot be read, or holds other things than numbers.
    """
    where = f"{place}: {path}"
    require_regular(path, where, fix="correct the path")
    try:
        return np.array(np.load(path, mmap_mode="r", allow_pickle=False))  # a header that lies takes no memory
    except Exception as error:  # a damaged file fails in NumPy in many ways
        problem = f"is not a readable array: {first_line(error)}"
        raise DataError(problem, where=where, fix="write it with numpy.save") from None


def column(values: Sequence[Array]) -> Array:
    """One array ``(N, …)``, or ``(N,)`` of arrays where their sizes differ."""
    return np.stack(values) if len({value.shape for value in values}) == 1 else stacked(values)
