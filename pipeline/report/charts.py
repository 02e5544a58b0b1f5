"""The report's pictures, as inline SVG: text stays text, colours are the page's CSS variables, and the bytes depend
on neither the date nor the machine.

Every row of a bar chart has its name above its bar, so that one drawing fits a wide screen and a phone.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Literal

from pipeline.core import MetricInfo
from pipeline.report import units

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH_IN = 4.6
ROW_IN = 0.36
SPAN_ROOM = 1.1
CHARACTERS = 66  # of a row's label and text together

# Placeholders that matplotlib can parse; `_svg` turns each into the CSS variable of that name.
INK, MUTED, LINE, BEFORE, AFTER, SHADE = "#010203", "#010204", "#010205", "#010206", "#010207", "#010208"
CSS_VARIABLES = {INK: "ink", MUTED: "muted", LINE: "line", BEFORE: "before", AFTER: "after", SHADE: "shade"}

SETTINGS = {
    "svg.fonttype": "none",
    "svg.hashsalt": "edgewright",
    "font.size": 8.5,
    "text.parse_math": False,  # a name may hold a dollar sign
    "text.color": INK,
    "axes.edgecolor": LINE,
    "axes.labelcolor": MUTED,
    "xtick.color": LINE,
    "xtick.labelcolor": MUTED,
    "ytick.color": LINE,
    "ytick.labelcolor": MUTED,
    "hatch.color": AFTER,
    "hatch.linewidth": 0.6,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of a chart.

    Attributes:
        value: In the chart's unit; None where there is none.
        text: The text at the row's right end: the rounded value, or why there is none.
        kind: ``before`` and ``after`` are measured models; ``estimated`` is drawn hollow, ``none`` not at all.
        span: From the 10th to the 90th percentile, where samples exist.
    """

    label: str
    value: float | None
    text: str
    kind: Literal["before", "after", "estimated", "none"]
    span: tuple[float, float] | None = None


def bars(rows: Sequence[Row], *, name: str, alt: str) -> str:
    """Horizontal bars from zero, with the samples' span where there is one. An arrow marks a span beyond the chart.

    The longest value sets the scale, not the longest span: one disturbed measurement must not shrink all others.
    """
    figure, axes = _rows(rows, foot_in=0.02)
    room = SPAN_ROOM if any(row.span for row in rows) else 1.0
    longest = max((row.value for row in rows if row.value is not None), default=0.0) * room or 1.0
    axes.set_xlim(0, longest)
    for position, row in enumerate(rows):
        axes.plot([0, longest], [position, position], color=SHADE, linewidth=5, solid_capstyle="butt", zorder=0)
        if row.value is None:
            continue
        colour = BEFORE if row.kind == "before" else AFTER
        hollow = {"facecolor": "none", "edgecolor": colour, "hatch": "//////", "linewidth": 0.8}
        axes.barh(position, row.value, 0.2, **(hollow if row.kind == "estimated" else {"color": colour}), zorder=1)
        if row.span is not None:
            low, high = min(row.span[0], longest), min(row.span[1], longest)
            axes.plot([low, high], [position, position], color=INK, linewidth=0.9, zorder=2)
            for end, marker in ((low, "|"), (high, "|" if row.span[1] <= longest else ">")):
                axes.plot(end, position, marker, color=INK, markersize=5, markeredgewidth=0.9, zorder=2, clip_on=False)
    axes.set_xticks([])
    return _svg(figure, name=name, alt=alt)


def dots(rows: Sequence[Row], info: MetricInfo, *, allowed: tuple[float, float] | None, name: str, alt: str) -> str:
    """A metric's values as dots on a part of the scale; ``allowed`` (lowest, highest) is the band of the budget."""
    from matplotlib.ticker import MaxNLocator

    figure, axes = _rows(rows, foot_in=0.3)
    values = [row.value for row in rows if row.value is not None] + list(allowed or ())
    low, high = min(values, default=0.0), max(values, default=1.0)
    least = 0.002 if info.unit == "ratio" else 0.002 * max(abs(low), abs(high), 1e-9)
    margin = max(high - low, least) * 0.1
    axes.set_xlim(low - margin, high + margin)
    for position, row in enumerate(rows):
        if allowed is not None:
            axes.plot(allowed, [position, position], color=SHADE, linewidth=7, solid_capstyle="butt", zorder=0)
        axes.axhline(position, color=LINE, linewidth=0.6, zorder=1)
        if row.value is not None:
            axes.plot(row.value, position, "o", color=BEFORE if row.kind == "before" else AFTER, markersize=6, zorder=2)
    axes.tick_params(axis="x", length=3)
    axes.spines["bottom"].set_visible(True)
    every = MaxNLocator(6, steps=[1, 2, 5, 10]).tick_values(low, high)
    decimals = 1 if every[1] - every[0] >= 0.001 else 2
    ratio = info.unit == "ratio"
    ticks = [tick for tick in every if low - margin / 2 < tick < high + margin / 2]
    axes.set_xticks(ticks, [units.percent(tick, decimals) if ratio else f"{tick:g}" for tick in ticks])
    return _svg(figure, name=name, alt=alt)


def curves(series: Sequence[tuple[str, Sequence[float], Sequence[float]]], *, x_label: str, name: str, alt: str) -> str:
    """Panels side by side, one per ``(label, xs, ys)``."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    with _settings():
        figure = Figure(figsize=(WIDTH_IN, 1.7), layout="constrained")
        panels = figure.subplots(1, len(series), squeeze=False)[0]
        for axes, (label, xs, ys) in zip(panels, series, strict=True):
            axes.plot(xs, ys, "o-", color=AFTER, linewidth=1.4, markersize=3.5)
            axes.set_title(label, loc="left", fontsize=8.5, color=INK)
            axes.set_xlabel(x_label)
            axes.spines[["top", "right"]].set_visible(False)
            axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
            axes.yaxis.set_major_locator(MaxNLocator(4))
    return _svg(figure, name=name, alt=alt)


def _settings() -> AbstractContextManager[None]:
    from matplotlib import rc_context

    return rc_context(SETTINGS)  # type: ignore[arg-type]  # typed as a literal of every key


def _rows(rows: Sequence[Row], *, foot_in: float) -> tuple[Figure, Axes]:
    """A figure with one row per entry, top to bottom; names and values are above the row's line, which is still empty.

    Args:
        foot_in: Room for a scale below the rows, in inches.
    """
    from matplotlib.figure import Figure

    with _settings():
        height_in = ROW_IN * len(rows) + foot_in
        figure = Figure(figsize=(WIDTH_IN, height_in))
        axes = figure.add_axes((0.002, foot_in / height_in, 0.996, 1 - foot_in / height_in))
        axes.set_ylim(len(rows) - 0.7, -0.7)
        axes.set_yticks([])
        axes.spines[:].set_visible(False)
        for position, row in enumerate(rows):
            muted = MUTED if row.value is None else INK
            axes.text(
                0,
                position - 0.24,
                _shortened(row.label, len(row.text)),
                transform=axes.get_yaxis_transform(),
                color=muted,
            )
            axes.text(1, position - 0.24, row.text, transform=axes.get_yaxis_transform(), ha="right", color=muted)
    return figure, axes


def _shortened(label: str, beside: int) -> str:
    """A label that leaves room for so many characters beside it.

    >>> _shortened("coreml · FP32", 10), _shortened("x" * 100, 10) == "x" * 54 + "…"
    ('coreml · FP32', True)
    """
    room = CHARACTERS - beside - 1
    return label if len(label) <= room else label[: room - 1] + "…"


def _svg(figure: Figure, *, name: str, alt: str) -> str:
    """A figure as one ``<svg>`` element that can share a page with others: only ids in use, each with a prefix."""
    buffer = io.StringIO()
    with _settings():
        nothing = {"Date": None, "Creator": None, "Format": None, "Type": None}
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", svg, flags=re.DOTALL)
    used = set(re.findall(r"url\(#([^)]+)\)|href=\"#([^\"]+)\"", svg))
    used = {reference for pair in used for reference in pair if reference}
    svg = re.sub(r' id="([^"]+)"', lambda m: f' id="{name}-{m[1]}"' if m[1] in used else "", svg)
    svg = re.sub(r"(url\(#|href=\"#)", rf"\g<1>{name}-", svg)
    svg = re.sub(r"(?<=: )#01020\d", lambda m: f"var(--{CSS_VARIABLES[m[0]]})", svg)
    view_box = re.search(r'viewBox="[^"]+"', svg)
    assert view_box is not None  # print_svg always writes one
    body = svg[svg.index(">") + 1 :]
    return f'<svg role="img" aria-label="{escape(alt)}" {view_box[0]} xmlns:xlink="http://www.w3.org/1999/xlink">{body}'
