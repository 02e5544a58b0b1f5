"""Oracles of the canonical graph and of the INT8 program."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from functools import partial

import numpy as np
import torch

from tests.fuzz.findings import Finding
from tests.fuzz.measure import bounds, closeness_db, differences, rounded_plainly
from tests.fuzz.subject import Subject, fixed_batch, in_steps, outputs_of

FLOAT32_DB, FLOAT64_DB = 100.0, 120.0
PROGRAM_DB = 30.0
ONE_BY_ONE_DB = 20.0
"""Where samples are rounded one by one, each to its own range, which is finer than what all have in common."""
LEVELS = (256, 232, 208)
BELOW_PLAIN_DB, BELOW_POOR_DB, POOR_DB = 6.0, 10.0, 24.0
"""How far the program may lie below plain rounding, which shares no grid but knows no clamp that fuses; and how far
where that is poor itself, and so a matter of luck (a division by a small number)."""


def load(subject: Subject) -> Iterator[Finding]:
    """The model is taken, with one name per output, and its module gives what the user's gives."""
    model = subject.model
    if len(model.outputs) != len(subject.expected):
        text = f"{len(model.outputs)} names for {len(subject.expected)} outputs"
        yield Finding("load", "wrong", "output names", text)
    found = differences(subject.expected, outputs_of(model.module, subject.built.samples), _every(subject, FLOAT64_DB))
    yield _finding("load", found)


def canonical(subject: Subject) -> Iterator[Finding]:
    """The canonical graph equals the float module: 100 dB in FP32, else 120 dB in FP64,
    in which weights that were folded and stored in FP32 are some 140 dB from what they should be."""
    inputs = subject.samples
    got = outputs_of(subject.canonical, inputs)
    found = differences(subject.expected, got, _every(subject, FLOAT32_DB))
    if found and all(difference.what == "dB" for difference in found):
        found = _in_float64(subject) or []
    yield _finding("canonical", found)


def _in_float64(subject: Subject) -> list[object]:
    """The same in FP64; where the module names FP32 itself, as close in FP32 as its own rounding allows."""
    try:
        graph = copy.deepcopy(subject.canonical).double()
        module = copy.deepcopy(subject.built.module).double()
        inputs = [t.double() if t.dtype == torch.float32 else t for t in subject.samples]
        exact = outputs_of(module, inputs)
        asked = bounds(exact, subject.expected, most=FLOAT64_DB, below=10)  # what cancels out, FP32 cannot tell either
        return list(differences(exact, outputs_of(graph, inputs), asked))
    except Exception:  # a dtype written into the graph
        got = outputs_of(subject.canonical, subject.samples)
        asked = bounds(subject.expected, subject.precise, most=FLOAT32_DB, below=20)
        return list(differences(subject.expected, got, asked))


def program(subject: Subject) -> Iterator[Finding]:
    """The INT8 program follows the float module nearly as well as plain rounding of every value does."""
    inputs = subject.samples
    made = subject.program
    got = outputs_of(made.module, inputs)
    step = fixed_batch(subject.canonical) or len(inputs[0])
    most = PROGRAM_DB if step > 1 else ONE_BY_ONE_DB
    close = _least_close(subject, step)
    asked = [
        min(most, db - (BELOW_PLAIN_DB if db > POOR_DB else BELOW_POOR_DB)) if a.dtype.kind == "f" else -np.inf
        for a, db in zip(subject.expected, close, strict=True)
    ]
    yield _finding("program", differences(subject.expected, got, asked))
    record = made.history[-1]
    share = record.details["int8_macs_ratio"]
    if share < 0.999 and not record.skipped:
        yield Finding("listed", "wrong", "float layers not listed", f"{share:.2f} of the MACs in INT8, no layer listed")


def _least_close(subject: Subject, step: int) -> list[float]:
    """How close each output comes when all values are rounded plainly: the worst of several numbers of levels.

    One alone may be lucky, where few numbers decide. Levels with which an output is not finite (a divisor became zero)
    say that the program may come out poor, or as poor as where no value becomes zero.
    """
    return [min(of_output) for of_output in zip(*(_close(subject, step, levels) for levels in LEVELS), strict=True)]


def _close(subject: Subject, step: int, levels: int) -> list[float]:
    inputs, exact = subject.samples, subject.expected
    plain = in_steps(partial(rounded_plainly, subject.canonical, levels=levels), inputs, step)
    finite = [bool((np.isfinite(a) == np.isfinite(b)).all()) for a, b in zip(exact, plain, strict=True)]
    if not all(finite):
        kept = in_steps(partial(rounded_plainly, subject.canonical, levels=levels, zeros=False), inputs, step)
        plain = [a if same else b for a, b, same in zip(plain, kept, finite, strict=True)]
    found = [closeness_db(a, b) for a, b in zip(exact, plain, strict=True)]
    return [db if same else min(db, POOR_DB) for db, same in zip(found, finite, strict=True)]


def _every(subject: Subject, bound: float) -> list[float]:
    return [bound] * len(subject.expected)


def _finding(oracle: str, found: list[object]) -> Finding:
    if not found:
        return Finding(oracle, "right")
    first = found[0]
    return Finding(oracle, "wrong", getattr(first, "what", ""), "; ".join(map(str, found)))
