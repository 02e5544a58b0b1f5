"""Samples for a file that anyone wrote: read them, see that they fit, and run them at once or in batches."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pipeline.core import DataError, TargetError
from pipeline.core.arrays import Array
from pipeline.data.archive import stated_arrays
from pipeline.machine.memory import require_memory
from pipeline.target import Input, OpenedFile

SAMPLES_AT_ONCE = 64
TOLERANCE = 1e-4
"""By how much, relative to the largest, an output may depend on the other samples of its batch: summation order."""


def read_inputs(path: Path, inputs: Sequence[Input]) -> tuple[Array, ...]:
    """The arrays of an npz that a file takes, by its inputs' names; by position where they are ``arr_0``, ``arr_1`` …

    ``numpy.savez(path, first, second)`` names them so; it is the way to give an input whose name it does not take.

    Raises:
        DataError: The npz cannot be read, or an array is missing or does not fit.
    """
    arrays = _read(path, inputs)
    sizes: dict[str, tuple[str, int]] = {}
    for array, taken in zip(arrays, inputs, strict=True):
        _require_shape(array.shape, taken, path)
        for axis, stated in enumerate(taken.shape or ()):
            if isinstance(stated, str):
                other, size = sizes.setdefault(stated, (taken.name, array.shape[axis]))
                if size != array.shape[axis]:
                    raise DataError(
                        f"arrays {other!r} and {taken.name!r} have different lengths of the axis {stated!r}: {size} "
                        f"and {array.shape[axis]}",
                        where=str(path),
                    )
    return tuple(_with_type(array, taken, path) for array, taken in zip(arrays, inputs, strict=True))


def run_samples(opened: OpenedFile, arrays: tuple[Array, ...], path: Path) -> tuple[Array, ...]:
    """The outputs of a file for all samples.

    They run at once unless the file takes fewer, or there are many. Batches are only made where the outputs of a sample
    do not depend on the others; that is tried on the first batch.

    Raises:
        TargetError: The samples have to be cut, and the outputs show that this file does not take them one by one.
    """
    step = _batch(opened.inputs, arrays)
    if step is None:
        return opened.run(arrays)
    fixed = any(taken.shape and taken.shape[0] == step for taken in opened.inputs)
    count = len(arrays[0])
    problem = _mixes(opened, tuple(_rows(array, 0, step) for array in arrays), step)
    if problem and not fixed:
        return opened.run(arrays)
    if problem:
        raise TargetError(
            f"{problem}, so {count} samples cannot be cut into batches of {step}",
            where=str(path),
            fix=f"give arrays of {step}",
        )
    parts = []
    for start in range(0, count, step):
        outputs = opened.run(tuple(_rows(array, start, step) for array in arrays))
        parts.append([output[: count - start] for output in outputs])
    return tuple(np.concatenate(outputs) for outputs in zip(*parts, strict=True))


def as_text(output: Array) -> Array:
    """An output of texts as an array that can be stored without pickle; every other one as it is."""
    if output.dtype.kind not in "OS":
        return output
    texts = [item.decode(errors="replace") if isinstance(item, bytes) else str(item) for item in output.flat]
    return np.array(texts, np.str_).reshape(output.shape)


def _batch(inputs: Sequence[Input], arrays: tuple[Array, ...]) -> int | None:
    """How many samples a file is given at once; None where it is all of them."""
    if not inputs or not all(taken.shape for taken in inputs) or len({len(array) for array in arrays}) > 1:
        return None
    firsts = {taken.shape[0] for taken in inputs if taken.shape}
    if len(firsts) > 1:
        return None
    (first,) = firsts
    step = first if isinstance(first, int) else SAMPLES_AT_ONCE
    alone = len(arrays[0]) == step if isinstance(first, int) else len(arrays[0]) <= step
    return None if alone else step


def _rows(array: Array, start: int, count: int) -> Array:
    """So many samples; where there are fewer, the last is repeated."""
    rows = array[start : start + count]
    return rows if len(rows) == count else np.concatenate([rows, np.repeat(rows[-1:], count - len(rows), axis=0)])


def _mixes(opened: OpenedFile, batch: tuple[Array, ...], size: int) -> str | None:
    """What shows that an output is not one row a sample, each from that sample alone; None where nothing does.

    The second half of the batch is replaced; the first half of the outputs must stay.
    """
    kept = (size + 1) // 2
    outputs = opened.run(batch)
    for name, output in zip(opened.outputs, outputs, strict=True):
        if output.ndim == 0 or len(output) != size:
            return f"output {name!r} has shape {list(output.shape)} for a batch of {size}"
    if size == 1:
        return None
    replaced = tuple(np.concatenate([array[:kept], np.repeat(array[:1], size - kept, axis=0)]) for array in batch)
    for name, output, other in zip(opened.outputs, outputs, opened.run(replaced), strict=True):
        if not _close(output[:kept], other[:kept]):
            return f"output {name!r} of one sample depends on the other samples"
    return None


def _close(one: Array, other: Array) -> bool:
    if one.shape != other.shape or one.dtype.kind != "f":
        return np.array_equal(one, other)
    finite = np.abs(one[np.isfinite(one)], dtype=np.float64)
    return np.allclose(one, other, rtol=0, atol=TOLERANCE * finite.max(initial=0), equal_nan=True)


def _read(path: Path, inputs: Sequence[Input]) -> list[Array]:
    names = [taken.name for taken in inputs]
    where = str(path)
    if not path.is_file():
        raise DataError("is no regular file" if path.exists() else "no such file", where=where)
    try:
        with np.load(path, allow_pickle=False) as archive:
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise DataError("is a single array, not an npz", where=where, fix="write it with numpy.savez")
            if archive.files == [f"arr_{position}" for position in range(len(names))]:
                names = archive.files
            repeated = [name for name in names if names.count(name) > 1]
            missing = [name for name in names if name not in archive.files]
            if repeated or missing:
                problem = f"two inputs are called {repeated[0]!r}" if repeated else f"has no array {missing[0]!r}"
                raise DataError(
                    f"{problem}; it holds {', '.join(archive.files[:20])}; the model takes {', '.join(names)}",
                    where=where,
                    fix="name the arrays like the inputs, or give all without names, in this order",
                )
            stated = stated_arrays(archive, names, where)
            require_memory(f"reading {path}", sum(size for _, size in stated.values()), fix="give fewer samples")
            for name, taken in zip(names, inputs, strict=True):
                if name in stated:
                    _require_shape(stated[name][0], taken, path)
            return [archive[name] for name in names]
    except DataError:
        raise
    except (OSError, ValueError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"is not a readable npz: {error}", where=where, fix="write it with numpy.savez") from None


def _with_type(array: Array, taken: Input, path: Path) -> Array:
    """An array in the type of an input, if it holds what that type can: never another integer, never infinity."""
    if taken.dtype == "str":
        if array.dtype.kind not in "US":
            raise _unfit(array, taken, path)
        return array.astype(np.str_)
    wanted = np.dtype(taken.dtype)
    if array.dtype.kind not in "biuf":
        raise _unfit(array, taken, path)
    with np.errstate(all="ignore"):
        cast = array.astype(wanted, order="C")
        same = np.isfinite(cast) == np.isfinite(array) if wanted.kind == "f" else cast == array
    if not np.all(same):
        raise _unfit(array, taken, path)
    return cast


def _unfit(array: Array, taken: Input, path: Path) -> DataError:
    return DataError(
        f"array {taken.name!r} is {array.dtype}, and its values are not all {taken.dtype}, which the model takes",
        where=str(path),
        fix=f"give it as {taken.dtype}",
    )


def _require_shape(shape: tuple[int, ...], taken: Input, path: Path) -> None:
    if not _fits(shape, taken):
        raise DataError(
            f"array {taken.name!r} has shape {list(shape)}, but the model takes {_spelled(taken)}", where=str(path)
        )


def _fits(shape: tuple[int, ...], taken: Input) -> bool:
    """Whether a shape is the stated one. An axis that varies has at least one element."""
    if taken.shape is None:
        return 0 not in shape
    if len(shape) != len(taken.shape):
        return False
    pairs = list(zip(shape, taken.shape, strict=True))
    batch = bool(pairs) and isinstance(pairs[0][1], int) and pairs[0][0] > 0  # may hold more samples than one batch
    return all(
        size == stated if isinstance(stated, int) else size > 0 for size, stated in (pairs[1:] if batch else pairs)
    )


def _spelled(taken: Input) -> str:
    """A shape as text: the first axis, where it holds samples, as N."""
    if taken.shape is None:
        return "at least one element"
    return str(["N", *("?" if size is None else size for size in taken.shape[1:])] if taken.shape else [])
