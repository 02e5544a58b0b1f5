"""The headline of a report in a notebook."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from typing import Any

import pytest

from pipeline.report.model import Report

HOSTILE = '<script>alert("x")</script>&'


class Tags(HTMLParser):
    """The tags of a fragment, and its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.opened: list[str] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.found.append(tag)
        self.opened.append(tag)
        assert all(not name.startswith("on") for name, _ in attrs)

    def handle_endtag(self, tag: str) -> None:
        assert self.opened.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.opened:
            self.text += f" {data}"


def test_table_has_a_line_for_the_original_and_for_each_target(report: Report) -> None:
    tags = Tags(report._repr_html_())
    assert tags.opened == []
    assert tags.found.count("tr") == 2 + len(report.targets)
    for target in report.targets:
        assert target.target in tags.text
    assert len(report._repr_html_()) < 10_000


def test_table_says_the_verdict_and_what_is_missing(report: Report) -> None:
    failed = report.targets[0].model_copy(update={"status": "failed", "reason": "no room for it", "metrics": None})
    tags = Tags(report.model_copy(update={"targets": (failed,), "warnings": ("a doubt",)})._repr_html_())
    assert "Not passed." in tags.text
    assert "no room for it" in tags.text
    assert "a doubt" in tags.text


@pytest.mark.parametrize("field", ["target", "reason", "warning"])
def test_names_that_look_like_tags_are_text(report: Report, field: str) -> None:
    target = report.targets[0]
    if field == "warning":
        changed = report.model_copy(update={"warnings": (HOSTILE,)})
    else:
        update = {"status": "failed", "reason": HOSTILE} if field == "reason" else {"target": HOSTILE}
        changed = report.model_copy(update={"targets": (target.model_copy(update=update),)})
    html = changed._repr_html_()
    assert "script" not in Tags(html).found
    assert not re.search(r"<script", html)
    assert HOSTILE in Tags(html).text
