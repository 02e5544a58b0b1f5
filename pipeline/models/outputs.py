"""Outputs: what a module returns, as named tensors whose first axis is the batch.

Users return tuples, dictionaries, named tuples and dataclasses, with the batch on any axis, or squeezed away where it
is 1. Targets know one form: a list of tensors ``(N, …)``, each of its own.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from pipeline.core import CheckpointError

Path = tuple[str | int, ...]
"""Where a value stands in what forward returns: keys, field names and positions."""

NARROW = (torch.float32, torch.int64, torch.int32, torch.int8, torch.uint8, torch.bool)
"""Types that outputs keep; other floating-point types become float32."""


MANY = 16
"""Integers of which two tensors hold the same only where they are the same: a few classes agree by chance."""

NO_CACHE = (
    "generation with a key-value cache is out of scope: give the encoder, or one step over whole sequences "
    "(a transformers model with use_cache=False)"
)

NAME = r"[A-Za-z][A-Za-z0-9_]*"
RESERVED = {"any", "bool", "program", "func", "tensor", "list", "dict", "tuple", "true", "false", "string", "state"} | {
    f"{kind}{bits}" for kind in ("int", "uint", "fp", "bf") for bits in (8, 16, 32, 64)
}
"""Words of Core ML's own language, which coremltools renames (`NameSanitizer` in its sources)."""


def leaves(result: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """The values in what a module returns, in order; None is left out.

    >>> list(leaves({"boxes": 1, "levels": [2, None, 3]}))
    [(('boxes',), 1), (('levels', 0), 2), (('levels', 2), 3)]
    """
    parts: list[tuple[str | int, Any]]
    if result is None:
        return
    if isinstance(result, Mapping):
        parts = [(str(key), value) for key, value in result.items()]
    elif dataclasses.is_dataclass(result) and not isinstance(result, type):
        parts = [(each.name, getattr(result, each.name)) for each in dataclasses.fields(result)]
    elif isinstance(result, tuple | list) and not isinstance(result, PackedSequence):
        fields = getattr(result, "_fields", None) or range(len(result))
        parts = list(zip(fields, result, strict=True))
    else:
        yield path, result
        return
    for name, value in parts:
        yield from leaves(value, (*path, name))


def named(paths: list[Path], taken: set[str]) -> tuple[str, ...]:
    """Names for outputs: ``output``, ``output_1``, … where they have only positions, else their keys.

    Args:
        taken: Names of inputs, which an output cannot share.

    >>> named([("logits",), ("box es", 0), ("x",)], {"x"})
    ('logits', 'box_es_0', 'x_output')
    """
    positions = all(isinstance(part, int) for path in paths for part in path)
    names: list[str] = []
    for index, path in enumerate(paths):
        words = "output" if positions else "_".join(map(str, path))
        name = re.sub(r"[^A-Za-z0-9_]", "_", words)
        name = f"{name}_{index}" if positions and index else name
        if name in taken or name in RESERVED or not re.fullmatch(NAME, name):
            name = f"{name}_output" if name[:1].isalpha() else f"output_{name}"
        while name in taken or name in names:
            name += "_"
        names.append(name)
    return tuple(names)


@dataclass(frozen=True, slots=True)
class Form:
    """How a tensor that forward returns becomes an output ``(N, …)``.

    Attributes:
        axis: The axis of the batch.
        per_sample: The shape of one sample, where forward's own differs: it squeezed the batch away, or merged it with
            another axis.
        dtype: What it is converted to; None where it stays.
    """

    axis: int = 0
    per_sample: tuple[int, ...] | None = None
    dtype: torch.dtype | None = None

    def __call__(self, value: Tensor, batch: int) -> Tensor:
        if self.axis:
            value = value.movedim(self.axis, 0)
        if self.per_sample is not None:
            value = value.reshape(batch, *self.per_sample)
        return value if self.dtype is None else value.to(self.dtype)

    @property
    def note(self) -> str:
        """What it does, for a reader of the report; empty where it does nothing."""
        done = [
            f"its batch axis {self.axis} comes first" if self.axis else "",
            f"it has shape {['N', *self.per_sample]}" if self.per_sample is not None else "",
            f"it is {str(self.dtype).removeprefix('torch.')}" if self.dtype is not None else "",
        ]
        return ", ".join(filter(None, done))


def form_of(name: str, values: tuple[Any, ...], *, where: str) -> Form:
    """The form of one output.

    Args:
        values: What forward returned for one, two and three samples; for one only, where it takes no more.

    Raises:
        CheckpointError: It is no tensor, or has no batch.
    """
    first = values[0]
    if not isinstance(first, Tensor):
        raise CheckpointError(
            f"{name!r}, which forward returns, is {_article(type(first).__name__)}; it must return a tensor, or "
            "tensors in a tuple, list, dictionary or dataclass",
            where=where,
            fix=NO_CACHE if "Cache" in type(first).__name__ else "return tensors only",
        )
    if first.layout != torch.strided or first.is_quantized or first.is_complex():
        kind = "complex" if first.is_complex() else "quantized" if first.is_quantized else str(first.layout)
        raise CheckpointError(
            f"output {name!r} is {kind}, which no target holds",
            where=where,
            fix="return its real and imaginary parts (torch.view_as_real)" if first.is_complex() else "make it dense",
        )
    dtype = None if first.dtype in NARROW else torch.float32 if first.is_floating_point() else torch.int32
    shapes = [tuple(value.shape) for value in values]
    if len(shapes) == 1:
        alone = shapes[0]
        return Form(dtype=dtype) if alone[:1] == (1,) else Form(per_sample=alone, dtype=dtype)
    axis, per_sample, merged = _batch_axis(name, shapes[1], shapes[2], where)
    if math.prod(shapes[0]) != math.prod(per_sample):
        raise CheckpointError(
            f"output {name!r} has shape {list(shapes[0])} for one sample, and {list(shapes[1])} for two",
            where=where,
            fix="give every sample an output of one size, whatever its values and its batch are",
        )
    squeezed = shapes[0] != (*per_sample[:axis], 1, *per_sample[axis:])
    return Form(axis=0 if merged else axis, per_sample=per_sample if merged or squeezed else None, dtype=dtype)


def _batch_axis(
    name: str, two: tuple[int, ...], three: tuple[int, ...], where: str
) -> tuple[int, tuple[int, ...], bool]:
    """The axis that grows with the batch, one sample's shape, and whether the axis holds another one, too."""
    differing = [axis for axis, (some, more) in enumerate(zip(two, three, strict=False)) if some != more]
    if len(two) == len(three) and len(differing) == 1:
        axis = differing[0]
        each, rest = divmod(two[axis], 2)
        if not rest and three[axis] == 3 * each:
            others = two[:axis] + two[axis + 1 :]
            if each == 1:
                return axis, others, False
            if axis == 0:
                return axis, (each, *others), True
    raise CheckpointError(
        f"output {name!r} has shape {list(two)} for 2 samples and {list(three)} for 3: no axis of it is the batch",
        where=where,
        fix="return one result per sample, such as x.mean(dim=(1, 2, 3)) instead of x.mean(), and leave out constants",
    )


def require_distinct(
    names: tuple[str, ...], outputs: tuple[Tensor, ...], given: dict[str, Tensor], *, where: str
) -> None:
    """Refuse an output that is another output, or an input: converters merge the two and lose one of the names.

    Args:
        given: The inputs, by name, for which the outputs were computed.

    Raises:
        CheckpointError: Names both.
    """
    for index, (name, output) in enumerate(zip(names, outputs, strict=True)):
        for other, value in zip(names[:index], outputs[:index], strict=True):
            if _equal(output, value):
                raise CheckpointError(
                    f"outputs {other!r} and {name!r} are equal", where=where, fix="return the tensor once"
                )
        for other, value in given.items():
            if _equal(output, value):
                raise CheckpointError(
                    f"output {name!r} is the input {other!r}, unchanged",
                    where=where,
                    fix="leave it out of what forward returns: who gives the input has it",
                )


def _equal(one: Tensor, other: Tensor) -> bool:
    """Whether two are one tensor, or hold the same values, so many of them that it is no coincidence."""
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    if one.data_ptr() == other.data_ptr() and one.stride() == other.stride() and one.numel():
        return True
    distinct = len(torch.unique(one))
    return distinct > 1 and (one.is_floating_point() or one.numel() >= MANY) and torch.equal(one, other)


def _article(word: str) -> str:
    return f"{'an' if word[:1].lower() in 'aeiou' else 'a'} {word}"
