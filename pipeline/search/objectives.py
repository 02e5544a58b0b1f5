"""Objectives: what a search improves, read from a run's report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pipeline.core import MetricInfo, RecipeError, Setting
from pipeline.report import units
from pipeline.report.model import Report
from pipeline.target import Measured

OF_A_TARGET = ("latency", "size")


class Objective(Setting):
    """One thing to improve: a metric of the task (the worst target's), ``latency:onnx``, ``size:tflite`` …"""

    kind: str
    target: str | None = None
    metric: MetricInfo | None = None

    @property
    def name(self) -> str:
        """How it was written."""
        return self.kind if self.target is None else f"{self.kind}:{self.target}"

    @property
    def direction(self) -> Literal["minimize", "maximize"]:
        """The direction, as Optuna calls it."""
        return "maximize" if self.metric is not None and self.metric.higher_is_better else "minimize"

    def shown(self, value: float) -> str:
        """A value with its unit."""
        if self.metric is not None:
            return units.metric(value, self.metric)
        return units.milliseconds(value) if self.kind == "latency" else units.size(value)

    def value(self, report: Report) -> float:
        """The objective's value in a report: in the metric's unit, nanoseconds or bytes.

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


def parse_objective(text: str, metrics: Sequence[MetricInfo]) -> Objective:
    """``latency:onnx``, or the name of one of a task's metrics, as an `Objective`.

    >>> parse_objective("latency:onnx", []).direction
    'minimize'
    """
    kind, _, target = text.partition(":")
    named = {info.name: info for info in metrics}
    if kind in named and not target:
        return Objective(kind=kind, metric=named[kind])
    if not (kind in OF_A_TARGET and target):
        raise RecipeError(
            f"there is no objective {text!r}",
            where="search",
            fix=f"use {', '.join(named)}, latency:<target> or size:<target>",
        )
    return Objective(kind=kind, target=target)
