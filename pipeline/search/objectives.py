"""Objectives: what a search improves, read from a run's report."""

from __future__ import annotations

from typing import Literal, get_args

from pipeline.core import RecipeError, Setting
from pipeline.recipe import Metric
from pipeline.report.model import Report
from pipeline.target import Measured

METRICS: tuple[str, ...] = get_args(Metric)
OF_A_TARGET = ("latency", "size")


class Objective(Setting):
    """One thing to improve: ``top1`` or ``agreement`` (the worst target's), ``latency:onnx``, ``size:tflite`` …"""

    kind: str
    target: str | None = None

    @property
    def name(self) -> str:
        """How it was written."""
        return self.kind if self.target is None else f"{self.kind}:{self.target}"

    @property
    def direction(self) -> Literal["minimize", "maximize"]:
        """The direction, as Optuna calls it."""
        return "minimize" if self.kind in OF_A_TARGET else "maximize"

    def value(self, report: Report) -> float:
        """The objective's value in a report: a ratio, nanoseconds or bytes.

        Raises:
            RecipeError: The report has no such value, and says why.
        """
        records = [record for record in report.targets if self.target in (None, record.target)]
        found: list[float] = []
        for record in records:
            if self.kind == "size" and record.artifact is not None:
                found.append(record.artifact.size_bytes)
            elif self.kind == "latency":
                found += [item.median_ns for item in record.latency if isinstance(item, Measured) and item.threads == 1]
            elif self.kind in (record.metrics or {}):
                assert record.metrics is not None
                found.append(record.metrics[self.kind])
        if not found:
            reasons = "; ".join(f"{record.target}: {record.reason or record.metrics_skipped}" for record in records)
            raise RecipeError(
                f"no target gives {self.name!r} ({reasons})", where="search", fix="choose another objective"
            )
        return max(found) if self.direction == "minimize" else min(found)


def parse_objective(text: str) -> Objective:
    """``latency:onnx`` as an `Objective`.

    >>> parse_objective("latency:onnx").direction
    'minimize'
    """
    kind, _, target = text.partition(":")
    if kind not in METRICS and not (kind in OF_A_TARGET and target):
        raise RecipeError(
            f"there is no objective {text!r}",
            where="search",
            fix=f"use {', '.join(METRICS)}, latency:<target> or size:<target>",
        )
    return Objective(kind=kind, target=target or None)
