"""Verification: each file is run right after it was written, and compared with what it was made from.

The FP32 file has to give what the original gives, and the optimized file what the program gives: every output in its
shape, finite where the other is, and close. A converter that writes a wrong form without an error is found here, and
not by the user of the app.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pipeline.core import Model
from pipeline.core.bounded import run_bounded
from pipeline.data.preprocessing import normalise, stored_pixels
from pipeline.models.noise import rounding_noise_db, within_noise
from pipeline.stages.export.divergence import first_divergence
from pipeline.target import Exported, Lowered, Target, Verified, run_files
from pipeline.tasks.comparison import sqnr_db
from pipeline.tasks.prediction import outputs_of

logger = logging.getLogger(__name__)

EXPLAINED_DB = 15.0
"""However well a difference is explained, an output below this SQNR is of no use."""
SECONDS = 300.0
"""For a native runtime to run a few samples through two files."""
MEMORY_BYTES = 1 << 40
"""No limit: the process of its own is there for crashes."""


@dataclass(frozen=True, slots=True)
class Limit:
    """What counts as the same function.

    Attributes:
        sqnr_db: Least SQNR of an output of real numbers, in dB.
        equal: Least share of equal values of an output of integers or truth values: where two classes are almost as
            likely, rounding decides.
    """

    sqnr_db: float
    equal: float


ORIGINAL, OPTIMIZED = Limit(60.0, 0.99), Limit(30.0, 0.9)


@dataclass(frozen=True, slots=True)
class _Finding:
    """How a file's outputs differ from the model's. Without a problem they are the same function."""

    sqnr_db: dict[str, float | None]
    problem: str | None = None
    explained: str | None = None


def verify(exported: Exported, model: Model, folder: Path) -> Exported:
    """The artifacts of a target with what running them showed; failed where a file computes something else.

    Args:
        exported: Complete artifacts, the original's where it was written. Where nothing here can run them, they are
            returned as they are.
        model: What they were made from; its examples are the samples.
        folder: Where the search for the first wrong operator may write.
    """
    if exported.target.cannot_run():
        return exported
    assert exported.optimized is not None
    model = replace(model, examples=_as_taken(exported.optimized, model))
    checks = {"optimized": _Check(exported.optimized, model, OPTIMIZED if model.quantized else ORIGINAL)}
    if exported.original is not None:
        checks = {"original": _Check(exported.original, model.original(), ORIGINAL), **checks}
    outputs = _run(exported.target, [check.lowered for check in checks.values()], model.examples)
    found = {
        name: check.finding(exported.target, each) for (name, check), each in zip(checks.items(), outputs, strict=True)
    }
    verified = Verified(
        samples=len(model.examples[0]),
        original_sqnr_db=found["original"].sqnr_db if "original" in found else {},
        optimized_sqnr_db=found["optimized"].sqnr_db,
        explained=tuple(finding.explained for finding in found.values() if finding.explained is not None),
    )
    problems = {checks[name]: finding.problem for name, finding in found.items() if finding.problem}
    if not problems:
        return replace(exported, verified=verified)
    begins = next(iter(problems)).where_it_begins(exported.target, folder)
    reason = "; ".join(problems.values()) + ("" if begins is None else f"; it begins at {begins}")
    reason += f"\n  fix: {'change the model' if begins is None else 'replace that operator'}, or remove the target"
    return Exported(target=exported.target, status="failed", reason=reason, verified=verified)


def _as_taken(lowered: Lowered, model: Model) -> tuple[Tensor, ...]:
    """The model's examples, where the file takes pixels rounded to such: resizing leaves values between two levels."""
    return tuple(
        normalise(torch.from_numpy(stored_pixels(value.numpy(), model.preprocessing)).float(), model.preprocessing)
        if spec.name in lowered.pixels
        else value
        for spec, value in zip(model.inputs, model.examples, strict=True)
    )


def _run(target: Target, files: Sequence[Lowered], inputs: tuple[Tensor, ...]) -> list[tuple[Tensor, ...]]:
    """The outputs of each file for the same inputs; in a process of its own where the runtime may crash."""
    arrays = tuple(value.numpy() for value in inputs)
    if target.may_crash:
        where = " and ".join(file.path.name for file in files)
        call = run_bounded(run_files, target, files, arrays, seconds=SECONDS, memory_bytes=MEMORY_BYTES, where=where)
        results = call.value
    else:
        results = run_files(target, files, arrays)
    return [tuple(torch.from_numpy(np.ascontiguousarray(each)) for each in outputs) for outputs in results]


@dataclass(frozen=True, slots=True, eq=False)
class _Check:
    """One file, the model that it was made from, and how close they have to be."""

    lowered: Lowered
    model: Model
    limit: Limit

    def finding(self, target: Target, outputs: tuple[Tensor, ...]) -> _Finding:
        """How the file's outputs differ from the model's, and what explains it."""
        expected = outputs_of(self.model.module, self.model.examples)
        figures = _figures(self.model.outputs, expected, outputs)
        problem = difference(self.model.outputs, expected, outputs, self.limit)
        if problem is None:
            return _Finding(figures)
        problem = f"{self.lowered.path.name}: {problem}"
        if all(value is None or value >= EXPLAINED_DB for value in figures.values()):
            explanation = self._noise(figures) or target.explain(self.lowered, self.model)
            if explanation is not None:
                return _Finding(figures, explained=f"{problem}: {explanation}")
        return _Finding(figures, problem=problem)

    def _noise(self, figures: dict[str, float | None]) -> str | None:
        """That the model is no closer to itself, where its sums are added in another order."""
        noise = rounding_noise_db(self.model.module, self.model.examples)
        found = zip(figures.values(), noise, strict=True)
        if not all(value is None or within_noise(value, own) for value, own in found):
            return None
        return f"rounding decides: with its sums added in another order, the program is {min(noise):.1f} dB from itself"

    def where_it_begins(self, target: Target, folder: Path) -> str | None:
        """The first operator behind which a file of this model's differs; None where the search does not find it."""

        def differs(part: Model, lowered: Lowered) -> bool:
            (found,) = _run(target, [lowered], part.examples)
            return difference(part.outputs, outputs_of(part.module, part.examples), found, self.limit) is not None

        try:
            return first_divergence(self.model, target, differs, folder)
        except Exception:  # the converter may fail on a part of the model; the finding stands
            logger.debug("the first diverging operator was not found", exc_info=True)
            return None


def difference(names: Sequence[str], expected: Sequence[Tensor], found: Sequence[Tensor], limit: Limit) -> str | None:
    """What is wrong with the first output that is not the same within the limit; None where all are.

    >>> one = torch.tensor([[3.0, 4.0]])
    >>> difference(["y"], [one], [one + torch.tensor([[0.0, 0.5]])], Limit(60.0, 1.0))
    "output 'y' has an SQNR of 20.0 dB, at least 60 dB is needed"
    """
    if len(expected) != len(found):
        return f"it gives {len(found)} outputs instead of {len(expected)}"
    for name, one, other in zip(names, expected, found, strict=True):
        if one.shape != other.shape:
            return f"output {name!r} has shape {list(other.shape)} instead of {list(one.shape)}"
        if one.is_floating_point() != other.is_floating_point():
            return f"output {name!r} is {other.dtype} instead of {one.dtype}".replace("torch.", "")
        if not one.is_floating_point():
            equal = float((one.long() == other.long()).double().mean())
            if equal < limit.equal:
                return f"{equal:.0%} of output {name!r} is right, at least {limit.equal:.0%} is needed"
        elif bool((one.isfinite() & ~other.isfinite()).any()):
            return f"output {name!r} is not finite"
        elif (value := sqnr_db(one, other)) < limit.sqnr_db:
            return f"output {name!r} has an SQNR of {value:.1f} dB, at least {limit.sqnr_db:g} dB is needed"
    return None


def _figures(names: Sequence[str], expected: Sequence[Tensor], found: Sequence[Tensor]) -> dict[str, float | None]:
    """The SQNR of each output in dB; None where it is equal. Of an output that cannot be compared, none is given."""
    figures = {}
    for name, one, other in zip(names, expected, found, strict=False):
        if one.shape == other.shape:
            value = sqnr_db(one, other)
            figures[name] = None if value == float("inf") else max(value, -999.0)
    return figures
