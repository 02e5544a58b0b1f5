"""The report as one HTML file that needs nothing else: no network, no script, no font.

The same report always gives the same bytes. The template engine escapes all text, except our own SVG and CSS.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from pipeline.report import units
from pipeline.report.details import details
from pipeline.report.headline import headline, main_metric, reasons, timed_steps, variant
from pipeline.report.model import Report, budgets, metric_info, stage_metric
from pipeline.report.noise import NOISY, spread, unstable
from pipeline.report.pictures import pictures, training_curve
from pipeline.report.verdict import TITLES, verdict

BOX_COLOURS = ("#ff9d3c", "#5db4ff", "#3fe0a8", "#ff7ab0", "#ffe14d", "#c3a6ff")
"""On photographs, each with a dark outline; by the order in which class names occur."""


def render(report: Report) -> str:
    """The whole page.

    Args:
        report: A run's report, of any version that `pipeline.report.model.read_report` reads.
    """
    return page_template("report.html.j2").render(
        report=report,
        lines=headline(report),
        verdict=verdict(report),
        verdict_titles=TITLES,
        reasons=list(reasons(report)),
        unstable=unstable(report),
        noisy=NOISY,
        spread=spread,
        steps=timed_steps(report),
        main=main_metric(report),
        budgets=budgets(report),
        info=partial(metric_info, report),
        variant=variant(report),
        pictures=pictures(report),
        stage_metric=partial(stage_metric, report),
        colours=BOX_COLOURS,
        training=training_curve,
        details=details,
    )


def page_template(name: str) -> Template:
    """A template of this package, with the units as filters; everything it is given is escaped."""
    environment = Environment(
        loader=PackageLoader("pipeline.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        change=units.change,
        metric=units.metric,
        by_name=lambda value, name: units.by_name(name, value),
        bytes=units.size,
        heading=units.heading,
        milliseconds=units.milliseconds,
        percent=units.percent,
        points=units.points,
        quantity=units.quantity,
        seconds=units.seconds,
        significant=units.significant,
        times=units.times,
        setting=as_setting,
        yaml=as_yaml,
    )
    return environment.get_template(name)


def as_yaml(value: Any) -> str:
    """JSON values as YAML, innermost lists on one line.

    >>> print(as_yaml({"name": "a", "shape": [1, 28, 28]}))
    name: a
    shape: [1, 28, 28]
    """
    return str(yaml.safe_dump(value, sort_keys=False, allow_unicode=True, default_flow_style=None, width=100)).rstrip()


def as_setting(value: Any) -> str:
    """One setting on one line, written as in a recipe.

    >>> as_setting(["minmax", "mse"]), as_setting(True), as_setting(0.0005)
    ('[minmax, mse]', 'true', '0.0005')
    """
    text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10_000)
    return str(text).removesuffix("\n").removesuffix("\n...")
