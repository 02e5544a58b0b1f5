"""What an oracle says of a network."""

from __future__ import annotations

import re
import traceback
from dataclasses import dataclass
from pathlib import Path

from pipeline import EdgewrightError

OUTCOMES = ("right", "refused", "no reason", "wrong", "traceback", "abort", "hang")
"""From best to worst. ``no reason``: refused, but in the words of a Python error."""

FAULTS = OUTCOMES[2:]

DISGUISED = re.compile(
    r"has no attribute|not subscriptable|index out of range|unexpected keyword|positional argument|NoneType|KeyError|"
    r"AssertionError|list index|unsupported operand|not iterable|Internal error|INTERNAL|Traceback|division by zero|"
    r"^\W*$"
)
"""Refusals that are a Python error in disguise."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One oracle's answer.

    Attributes:
        oracle: Which one, and of what: ``canonical``, ``onnx int8``.
        outcome: One of `OUTCOMES`.
        cause: What findings are grouped by: ``dB``, ``TypeError in canonical.py:attention`` …; empty if right.
        detail: For a reader.
    """

    oracle: str
    outcome: str
    cause: str = ""
    detail: str = ""

    @property
    def is_fault(self) -> bool:
        return self.outcome in FAULTS


def of_refusal(oracle: str, message: str) -> Finding:
    """A refusal, which must name a reason."""
    text = message.strip()
    outcome = "no reason" if DISGUISED.search(text) or len(text) < 20 else "refused"
    return Finding(oracle, outcome, _without_numbers(text), text)


def of_exception(oracle: str, error: BaseException) -> Finding:
    """A refusal, or a traceback with the project's innermost function.

    Raises:
        Exception: The error itself, where it is the fuzzer's own.
    """
    if isinstance(error, EdgewrightError):
        return of_refusal(oracle, str(error))
    frames = traceback.extract_tb(error.__traceback__)
    ours = [f for f in frames if re.search(r"/(pipeline|targets)/", f.filename) and "site-packages" not in f.filename]
    if not ours and re.search(r"/tests/fuzz/\w+\.py$", frames[-1].filename):
        raise error
    at = f"{Path(ours[-1].filename).name}:{ours[-1].name}" if ours else f"{Path(frames[-1].filename).name}"
    first_line = next(iter(str(error).strip().splitlines()), "")
    where = " < ".join(f"{Path(f.filename).name}:{f.lineno}" for f in reversed(frames[-3:]))
    return Finding(oracle, "traceback", f"{type(error).__name__} in {at}", f"{first_line[:300]} ({where})")


def _without_numbers(text: str) -> str:
    """A message as a kind: first line, no numbers, no names of values."""
    line = re.sub(r"'[^']*'|\"[^\"]*\"|\[[^\]]*\]|\([^)]*\)", "_", next(iter(text.splitlines()), ""))
    return re.sub(r"\d+", "0", re.sub(r"\b\w+_\d+\b", "_", line))[:160]
