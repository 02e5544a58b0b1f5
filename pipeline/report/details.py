"""A stage's own details: any JSON values as texts and tables, by their shape."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from pipeline.core import MetricInfo
from pipeline.report import units

RATIO = MetricInfo(name="metric", title="Metric")
"""What a metric is where a stage does not name it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Detail:
    """One of a stage's own details, ready to print: a single text, or a table.

    Attributes:
        numbers: Which columns hold nothing but numbers.
    """

    name: str
    text: str = ""
    columns: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()
    numbers: tuple[bool, ...] = ()


def details(values: dict[str, Any], info: MetricInfo = RATIO) -> list[Detail]:
    """A stage's details by their shape: scalars and short lists as text, records and mappings as tables.

    Args:
        info: What the stage's fields called ``metric`` hold.
    """
    return [_detail(name, value, partial(cell, info=info)) for name, value in values.items()]


def _detail(name: str, value: Any, cell: Callable[[str, Any], str]) -> Detail:
    title = units.heading(name)
    if isinstance(value, list | tuple) and value and all(isinstance(entry, dict) for entry in value):
        columns = tuple(dict.fromkeys(key for entry in value for key in entry))
        rows = tuple(tuple(cell(key, entry.get(key)) for key in columns) for entry in value)
        numbers = tuple(_numeric([entry.get(key) for entry in value]) for key in columns)
        return Detail(name=title, columns=tuple(map(units.heading, columns)), rows=rows, numbers=numbers)
    if isinstance(value, dict) and value:
        if len(value) <= 6 and not any(isinstance(entry, dict | list | tuple) for entry in value.values()):
            return Detail(name=title, text=cell(name, value))
        entries = {key: entry if isinstance(entry, dict) else {"value": entry} for key, entry in value.items()}
        inner = tuple(dict.fromkeys(key for entry in entries.values() for key in entry))
        rows = tuple((key, *(cell(column, entry.get(column)) for column in inner)) for key, entry in entries.items())
        numbers = (False, *(_numeric([entry.get(column) for entry in entries.values()]) for column in inner))
        return Detail(name=title, columns=("name", *map(units.heading, inner)), rows=rows, numbers=numbers)
    return Detail(name=title, text=cell(name, value))


def _numeric(values: Sequence[Any]) -> bool:
    return all(value is None or (isinstance(value, int | float) and not isinstance(value, bool)) for value in values)


def cell(name: str, value: Any, info: MetricInfo) -> str:
    """Any JSON value on one line."""
    if isinstance(value, int | float) and "metric" in name.split("_"):
        return units.metric(value, info)
    if not isinstance(value, dict | list | tuple):
        return units.by_name(name, value)
    entries = value.values() if isinstance(value, dict) else value
    if any(isinstance(entry, dict | list | tuple) for entry in entries):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, dict):
        return "; ".join(f"{units.heading(key)}: {cell(key, entry, info)}" for key, entry in value.items()) or "–"
    return ", ".join(units.by_name(name, entry) for entry in value) or "–"
