"""Errors of onnx and onnxruntime, which have a class of their own for every cause, as errors that a user can act on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from pipeline.core import EdgewrightError, TargetError, first_line

FIX = "compute in float32, without autocast, and replace the operator that is named; or leave onnx out of targets"


@contextmanager
def as_target_error(problem: str, where: str, fix: str = FIX) -> Iterator[None]:
    """Raise what an SDK raises inside as a `TargetError` with its first line, which names the operator.

    Errors of the operating system pass: a full disk is no fault of the model.
    """
    try:
        yield
    except (EdgewrightError, OSError):
        raise
    except Exception as error:
        raise TargetError(f"{problem}: {first_line(error)}", where=where, fix=fix) from error
