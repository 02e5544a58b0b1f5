"""The pages in a real headless Chromium: no message on the console, no request, no sideways scrolling on a phone."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from html import escape
from pathlib import Path

import pytest

from pipeline.report.compare import compare, render_html
from pipeline.report.html import render
from pipeline.report.model import Report

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason=f"no Chromium on this machine (looked for {', '.join(NAMES)})"),
]


@dataclass
class Visit:
    """What a browser did with a page: the DOM after loading, its console messages, and its requests."""

    dom: str
    console: list[str]
    requests: list[str]


Open = Callable[[str], Visit]


@pytest.fixture
def visit(tmp_path: Path) -> Open:
    def open_page(text: str) -> Visit:
        page, log = tmp_path / "page.html", tmp_path / "net.json"
        page.write_text(text)
        done = subprocess.run(
            [
                str(CHROMIUM),
                *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"),
                "--host-resolver-rules=MAP * ~NOTFOUND",  # whatever a page asks for, nothing leaves this machine
                f"--user-data-dir={tmp_path / 'profile'}",
                "--enable-logging=stderr",
                f"--log-net-log={log}",
                "--window-size=1280,1000",
                "--dump-dom",
                page.as_uri(),
            ],
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        net = json.loads(log.read_text())
        started = net["constants"]["logEventTypes"]["URL_REQUEST_START_JOB"]
        parameters = [event["params"] for event in net["events"] if event["type"] == started and "params" in event]
        of_the_page = [p["url"] for p in parameters if p.get("initiator", "not an origin") != "not an origin"]
        return Visit(done.stdout, re.findall(r":CONSOLE:.*", done.stderr), of_the_page)

    return open_page


def test_browser_sees_the_request_and_the_message_when_a_page_makes_them(visit: Open) -> None:
    """Proves the instrument that the other tests read."""
    found = visit('<script>console.error("told you")</script><img src="http://asked.invalid/x.png">')
    assert found.requests == ["http://asked.invalid/x.png"]
    assert any("told you" in message for message in found.console)


def test_report_is_quiet_when_opened_in_a_browser(report: Report, visit: Open) -> None:
    found = visit(render(report))
    assert (found.console, found.requests) == ([], [])
    assert found.dom.count("<svg") == 6  # accuracy, size, latency on 1 and 2 threads, not measured, training
    assert "Accuracy budget exceeded on tflite" in found.dom


def test_comparison_is_quiet_when_opened_in_a_browser(report: Report, visit: Open) -> None:
    found = visit(render_html(compare(report, report)))
    assert (found.console, found.requests) == ([], [])
    assert "regressions" in found.dom


def test_injected_script_and_image_are_blocked_when_they_reach_the_page(report: Report, visit: Open) -> None:
    """The second line of defence, should escaping ever fail: the page's own content security policy."""
    injected = '<script>document.title = "owned"</script><img src="http://asked.invalid/x.png"></body>'
    found = visit(render(report).replace("</body>", injected))
    assert "<title>owned" not in found.dom
    assert found.requests == []
    assert len([message for message in found.console if "Content Security Policy" in message]) == 2


@pytest.mark.parametrize("width", [360, 400, 768, 900, 960, 1280])
def test_pages_never_scroll_sideways_when_the_screen_is_narrow(report: Report, visit: Open, width: int) -> None:
    frames = "".join(
        f'<iframe srcdoc="{escape(page)}" style="border: 0; width: {width}px; height: 800px"></iframe>'
        for page in (render(report), render_html(compare(report, report)))
    )
    measure = """<script>
      addEventListener("load", () => {
        const roots = [...document.querySelectorAll("iframe")].map((frame) => frame.contentDocument.documentElement);
        document.body.textContent = `overflow ${roots.map((root) => root.scrollWidth - root.clientWidth)}`;
      });
    </script>"""
    assert "overflow 0,0" in visit(f"<!DOCTYPE html><body>{frames}{measure}").dom
