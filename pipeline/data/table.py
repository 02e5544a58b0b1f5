"""Samples in the rows of a CSV file with a header, or of a JSON Lines file."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.core import DataError, TensorSpec, did_you_mean
from pipeline.core.files import require_file
from pipeline.data.rows import ARRAY, RowSource, Tokenize, is_image, is_sound

FORMATS = (".csv", ".jsonl")
MAX_ROW_BYTES = 1 << 24
_MARK = b"\xef\xbb\xbf"  # of byte order, as Excel writes it


class TableSource(RowSource):
    """Rows of a table, of which only the place in the file is held in memory; each is read when it is asked for.

    Args:
        path: ``.csv`` (comma-separated, with a header, as RFC 4180 says) or ``.jsonl`` (an object in each line); UTF-8.

    Raises:
        DataError: A row cannot be read, has other columns than the first, or names files that an earlier one names.
    """

    def __init__(
        self,
        path: Path,
        specs: Sequence[TensorSpec],
        inputs: Sequence[str],
        labels: str | Mapping[str, str] | None,
        classes: Sequence[str] = (),
        tokenize: Tokenize | None = None,
    ) -> None:
        if path.suffix.lower() not in FORMATS:
            raise DataError(f"is no {' or '.join(FORMATS)} file", where=str(path), fix="name a table of these formats")
        require_file(path, DataError)
        self._path, self._of = path, path.suffix.lower()
        header, starts = _scanned(path, inputs)
        self._header, self._starts = header, np.asarray(starts, np.int64).reshape(-1, 3)
        super().__init__(
            str(path),
            header,
            specs=specs,
            inputs=inputs,
            labels=labels,
            classes=classes,
            folder=path.parent,
            tokenize=tokenize,
        )

    def __len__(self) -> int:
        return len(self._starts)

    def row_name(self, index: int) -> str:
        return f"{self.where}: line {self._starts[index, 2]}"

    def row(self, index: int) -> Mapping[str, Any]:
        start, end, line = map(int, self._starts[index])
        with self._path.open("rb") as opened:
            opened.seek(start)
            text = opened.read(end - start)
        if self._of == ".jsonl":
            return _object(text, self._path, line)
        cells = next(csv.reader(io.StringIO(_decoded(text, self._path, line), newline=""), strict=True))
        return dict(zip(self._header, cells, strict=True))


def _scanned(path: Path, inputs: Sequence[str]) -> tuple[list[str], list[tuple[int, int, int]]]:
    """The columns, and of each row its first and last byte and its line."""
    header: list[str] | None = None
    places: list[tuple[int, int, int]] = []
    seen: dict[tuple[str, ...], int] = {}
    for row, place in (_csv_rows if path.suffix.lower() == ".csv" else _json_rows)(path):
        if header is None:
            header = list(row)
        if list(row) != header and set(row) != set(header):
            odd = sorted(set(row) ^ set(header))[0]
            where = f"{path}: line {place[2]}"
            problem = f"has {'other' if odd in row else 'no'} column {odd!r}; {did_you_mean(odd, header)}"
            raise DataError(problem, where=where, fix="give every row the same columns")
        files = tuple(str(cell) for cell in (row.get(name) for name in inputs) if _is_file(cell))
        if files and (first := seen.setdefault(files, place[2])) != place[2]:
            problem = f"names {files[0]}, as line {first} does"
            raise DataError(problem, where=f"{path}: line {place[2]}", fix="keep one row for each sample")
        places.append(place)
    if header is None:
        raise DataError("holds no rows", where=str(path), fix="add some below a header")
    return header, places


def _is_file(cell: Any) -> bool:
    return isinstance(cell, str) and (is_image(cell) or is_sound(cell) or cell.lower().endswith(ARRAY))


def _lines(path: Path) -> Iterator[tuple[bytes, int, int]]:
    """The lines of a file, each with its first byte and its number."""
    start = 0
    with path.open("rb") as opened:
        for number, line in enumerate(iter(lambda: opened.readline(MAX_ROW_BYTES + 1), b""), start=1):
            if len(line) > MAX_ROW_BYTES:
                problem = f"has more than {MAX_ROW_BYTES >> 20} MiB"
                raise DataError(problem, where=f"{path}: line {number}", fix="store arrays in files of their own")
            mark = len(_MARK) if number == 1 and line.startswith(_MARK) else 0
            yield line[mark:], start + mark, number
            start += len(line)


def _json_rows(path: Path) -> Iterator[tuple[dict[str, Any], tuple[int, int, int]]]:
    for line, start, number in _lines(path):
        if line.strip():
            yield _object(line, path, number), (start, start + len(line), number)


def _csv_rows(path: Path) -> Iterator[tuple[dict[str, str], tuple[int, int, int]]]:
    """Rows below the header; a quoted cell may hold line ends."""
    end, last = 0, 0

    def texts() -> Iterator[str]:
        nonlocal end, last
        for line, start, number in _lines(path):
            end, last = start + len(line), number
            yield _decoded(line, path, number)

    reader = csv.reader(texts(), strict=True)
    header: list[str] | None = None
    begins, first = 0, 1
    while True:
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise DataError(
                f"is not CSV: {error}",
                where=f"{path}: line {last}",
                fix="quote cells that hold quotes, commas or line ends; keep long values in .npy files",
            ) from None
        if cells is None:
            return
        if cells and header is None:
            header = cells
            twice = next((name for name in header if header.count(name) > 1), None)
            if twice is not None:
                raise DataError(f"has two columns {twice!r}", where=f"{path}: line 1", fix="rename one")
        elif cells:
            assert header is not None
            if len(cells) != len(header):
                problem = f"has {len(cells)} cells, and the header has {len(header)}"
                raise DataError(problem, where=f"{path}: line {first}", fix="give every row the same columns")
            yield dict(zip(header, cells, strict=True)), (begins, end, first)
        begins, first = end, last + 1


def _object(line: bytes, path: Path, number: int) -> dict[str, Any]:
    where = f"{path}: line {number}"
    try:
        found = json.loads(_decoded(line, path, number))
    except (ValueError, RecursionError) as error:
        raise DataError(f"is not JSON: {error}", where=where, fix="write one object in each line") from None
    if not isinstance(found, dict):
        problem = f"holds a {type(found).__name__}, not an object"
        raise DataError(problem, where=where, fix='write {"column": value, …} in each line')
    return found


def _decoded(line: bytes, path: Path, number: int) -> str:
    try:
        return line.decode()
    except UnicodeDecodeError:
        raise DataError("is not UTF-8 text", where=f"{path}: line {number}", fix="save the file as UTF-8") from None
