from __future__ import annotations

import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from pipeline.core import SkippedLayer, StageRecord
from pipeline.report import html
from pipeline.report.html import render
from pipeline.report.model import (
    ArtifactRecord,
    BoxRecord,
    BudgetRecord,
    CrossCheck,
    Parity,
    Report,
    SampleRecord,
    TargetRecord,
    VariantRecord,
    ViewRecord,
)
from pipeline.target import Estimated, Fallback, OperatorTime, Placement, measured

VOID = {"meta", "link", "br", "img", "hr", "input"}


class Page(HTMLParser):
    """Checks that tags nest, and keeps what tests ask about."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.cells: list[list[str]] = []
        self.text = ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "tr":
            self.cells.append([])
        if tag in ("td", "th"):
            self.cells[-1].append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        words = " ".join(data.split())
        if "style" not in self.open:
            self.text += f" {words}"
        if words and {"td", "th"} & set(self.open):
            self.cells[-1][-1] += f" {words}"

    def row(self, *starts: str) -> list[str]:
        """The first table row whose cells start so."""
        stripped = ([cell.strip() for cell in row] for row in self.cells)
        return next(r for r in stripped if all(c.startswith(s) for c, s in zip(r, starts, strict=False)))


@pytest.fixture(scope="module")
def text(report: Report) -> str:
    return render(report)


@pytest.fixture(scope="module")
def page(text: str) -> Page:
    return Page(text)


def changed(report: Report, **updates: Any) -> Report:
    return report.model_copy(update=updates)


def test_headline_shows_each_model_when_all_three_targets_have_records(page: Page) -> None:
    # 0.9321 - 0.9263 = 0.58 pp; 708344 / 78412 = 9.03; both read off the fixture by hand
    assert page.row("original", "93.21", "708")[:3] == ["original FP32, PyTorch", "93.21 %", "708 kB checkpoint"]
    onnx = page.row("onnx INT8", "92.63")
    assert onnx[1:3] == ["92.63 % −0.58 pp", "78.4 kB 9.03× smaller"]
    assert onnx[4:] == ["99.91 % 51.3 dB SQNR", "met"]
    tflite = page.row("tflite INT8", "92.12")
    assert tflite[4:] == ["100.00 % equal outputs", "exceeded"]
    coreml = page.row("coreml INT8", "not measured")
    assert "≈ 0.0900 ms estimated, Fixture phone NPU" in coreml[3]


def test_one_thread_is_quoted_when_more_threads_were_measured_too(page: Page) -> None:
    # medians of the fixture's raw samples on one thread: 124695 ns, 1433852 ns; 0.125 ms is 11.5 times as fast
    assert page.row("original", "93.21")[3] == "1.43 ms"
    assert page.row("onnx INT8", "92.63")[3] == "0.125 ms 11.5× the original’s speed 4.02× FP32 in the same runtime"


def test_estimate_tells_its_method_figures_and_fallbacks_when_a_compiler_gave_them(report: Report) -> None:
    estimate = Estimated(
        runtime="Vela",
        device="Ethos-U55-256",
        median_ns=150_000,
        method="Vela 5.2",
        source="https://example.org/vela",
        placement=Placement(
            operators=22,
            accelerated=20,
            fallback=(Fallback(op="GATHER", count=2, reason="no NPU form"),),
            source="Vela",
        ),
        figures={"cycles": 75_123.0, "sram_bytes": 1536.0},
    )
    target = report.targets[2].model_copy(update={"latency": (estimate,)})
    page = Page(render(changed(report, targets=(target,))))
    assert "Estimate for Ethos-U55-256 ≈ 0.150 ms, 20 of 22 operators accelerated" in " ".join(page.text.split())
    assert "cycles 75123, sram 1.54 kB" in page.text.replace("\N{NO-BREAK SPACE}", " ")
    assert page.row("GATHER") == ["GATHER", "2", "no NPU form"]


def test_target_shows_its_slowest_operators_and_what_rewriting_gained_when_the_runtime_told(report: Report) -> None:
    placement = Placement(
        operators=22,
        accelerated=22,
        source="LiteRT",
        slowest=(OperatorTime(op="CONV_2D", name="stem", median_ns=40_000, share=0.4),),
        before=Placement(operators=30, accelerated=18, source="LiteRT"),
    )
    target = report.targets[0].model_copy(update={"placement": placement})
    page = Page(render(changed(report, targets=(target,))))
    text = page.text.replace("\N{NO-BREAK SPACE}", " ")
    assert "Placement without our rewriting 18 of 30 operators accelerated" in " ".join(text.split())
    assert [cell.replace("\N{NO-BREAK SPACE}", " ") for cell in page.row("CONV_2D")] == [
        "CONV_2D", "stem", "0.0400 ms", "40.0 %",
    ]  # fmt: skip


def test_other_forms_and_cross_checks_stand_beside_the_result_when_they_were_asked_for(report: Report) -> None:
    made = VariantRecord(
        variant="palettized_4bit",
        status="ok",
        artifact=ArtifactRecord(path="coreml/original_palettized_4bit.mlpackage", size_bytes=90_000, sha256="0" * 64),
        metrics={"top1": 0.875},
        metrics_source="reference",
    )
    missing = VariantRecord(variant="fp16", status="skipped", reason="no FP16 form")
    check = CrossCheck(
        runtime="interpreter, FP32",
        metrics={"top1": 0.9125},
        parity=Parity(sqnr_db=61.5, max_abs_error=0.01, top1_agreement=0.999),
    )
    target = report.targets[0].model_copy(update={"variants": (made, missing), "cross_checks": (check,)})
    page = Page(render(changed(report, targets=(target,))))
    text = " ".join(page.text.replace("\N{NO-BREAK SPACE}", " ").split())
    cells = [cell.replace("\N{NO-BREAK SPACE}", " ") for cell in page.row("palettized 4bit")]
    assert cells[:3] == ["palettized 4bit", "90.0 kB", "87.50 %"]
    assert page.row("fp16") == ["fp16", "skipped: no FP16 form"]
    assert "interpreter, FP32: top1 91.25 %, top-1 agreement 99.90 %, SQNR 61.5 dB" in text


def test_stage_table_tells_the_story_when_stages_ran(page: Page) -> None:
    assert page.row("prune", "61.2")[1:] == ["61.2 k 34.9 %", "8.20 M 40.0 %", "10.34 %", "1.84 s"]
    assert page.row("stages.0.conv1") == ["stages.0.conv1", "16", "8"]
    assert page.row("head", "the classifier") == ["head", "the classifier's outputs are the classes"]
    assert page.row("percentile") == ["percentile", "92.65 %", "27.6 dB", "4.40 s"]


def test_every_reason_is_on_the_page_when_something_was_skipped(page: Page) -> None:
    assert "coreml metrics: Core ML runs only on macOS" in page.text
    assert "coreml latency, Core ML, this machine: Core ML runs only on macOS" in page.text
    assert page.row("DequantizeLinear") == ["DequantizeLinear", "1", "the model's output is float"]


def test_unstable_measurement_is_named_when_its_spread_is_ten_percent_or_more(page: Page) -> None:
    assert re.search(r"Unstable measurements.*onnx, ONNX Runtime, 2 threads: 11 %", page.text)


def test_estimate_is_drawn_hatched_when_measured_bars_are_solid(page: Page) -> None:
    filled = [attributes.get("style") or "" for tag, attributes in page.tags if tag == "path"]
    assert sum("fill: url(#" in style and "stroke: var(--after)" in style for style in filled) == 1


def test_bars_have_the_lengths_of_their_values_when_drawn(text: str) -> None:
    """Sizes 708344 and 712880 bytes: the second is the longest bar, so it spans the whole width."""
    chart = re.search(r'<svg role="img" aria-label="Size:.*?</svg>', text, re.DOTALL)
    assert chart is not None
    solid = re.findall(r'd="M ([\d.]+) [\d.]+ \nL ([\d.]+) [^"]*" clip-path[^>]*style="fill: var\(--', chart[0])
    lengths = [float(right) - float(left) for left, right in solid]
    width = float(re.findall(r'viewBox="0 0 ([\d.]+) ', chart[0])[0])
    assert lengths[1] == pytest.approx(width, rel=0.01)
    assert lengths[0] / lengths[1] == pytest.approx(708_344 / 712_880, abs=1e-4)
    assert lengths[2] / lengths[1] == pytest.approx(78_412 / 712_880, abs=1e-4)


def test_latency_span_runs_from_the_10th_to_the_90th_percentile_when_drawn(report: Report) -> None:
    """Samples 1 to 100 µs around a median of 50.5: the 10th percentile is 10.9, the 90th 90.1, the scale 1.1 × 50.5."""
    latency = measured(runtime="r", device="d", threads=1, warmup_ns=(), samples_ns=tuple(range(1000, 100_001, 1000)))
    original = report.original.model_copy(update={"latency": (latency,)})
    text = render(changed(report, original=original, targets=()))
    chart = re.search(r'<svg role="img" aria-label="Latency on one thread:.*?</svg>', text, re.DOTALL)
    assert chart is not None
    drawn = re.findall(
        r'd="M ([\d.]+) [\d.]+ \nL ([\d.]+) [\d.]+ \n"[^>]*style="fill: none; stroke: var\(--ink\)', chart[0]
    )
    left, right = (float(end) for end in drawn[0])
    width = float(re.findall(r'viewBox="0 0 ([\d.]+) ', chart[0])[0])
    assert left / width == pytest.approx(10.9 / (1.1 * 50.5), abs=0.005)
    assert right / width == pytest.approx(1, abs=0.005)  # cut off at the edge, where the arrow stands


def test_page_asks_for_nothing_when_it_is_opened(text: str, page: Page) -> None:
    assert not [tag for tag, _ in page.tags if tag in ("script", "img", "iframe", "object", "embed")]
    outside = [value for _, attributes in page.tags for key, value in attributes.items() if key in ("href", "src")]
    assert outside == ["data:,"]
    assert "@import" not in text
    assert not re.search(r"url\((?!#)", text)
    references = [a["xlink:href"] for _, a in page.tags if "xlink:href" in a]
    assert all((reference or "").startswith("#") for reference in references)


def test_ids_are_unique_and_all_references_resolve_when_charts_share_a_page(text: str, page: Page) -> None:
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert not [name for name in ids if "figure" in (name or "") or "axes" in (name or "")]
    assert len(ids) == len(set(ids))
    assert set(re.findall(r"url\(#([^)]+)\)|xlink:href=\"#([^\"]+)\"", text)) != set()
    assert {a or b for a, b in re.findall(r"url\(#([^)]+)\)|xlink:href=\"#([^\"]+)\"", text)} <= set(ids)


def test_page_is_accessible_when_read_aloud(page: Page) -> None:
    for tag, attributes in page.tags:
        assert tag != "svg" or attributes.get("aria-label")
        assert tag != "th" or attributes.get("scope") in ("row", "col")
    assert ("html", {"lang": "en"}) in page.tags
    assert sum(tag == "h1" for tag, _ in page.tags) == 1


def test_same_bytes_come_out_when_rendered_in_two_processes(frozen_path: Path, text: str) -> None:
    code = (
        "import sys; from pathlib import Path; from pipeline.report.html import render\n"
        "from pipeline.report.model import read_report\n"
        f"sys.stdout.write(render(read_report(Path({str(frozen_path)!r}))))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == text


HOSTILE = "$\\frac{1}{0}$ </title></style><script>alert(1)</script><img src=x onerror=alert(1)> {{ 7*7 }} \"'&"


def hostile(value: Any) -> Any:
    """The same structure with every free text replaced; words of a fixed vocabulary stay."""
    if isinstance(value, dict):
        kept = ("kind", "status", "schema_version", "against", "metrics_source", "started_at", "metric")
        return {key: entry if key in kept else hostile(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [hostile(entry) for entry in value]
    return HOSTILE if isinstance(value, str) else value


def test_nothing_breaks_out_when_every_text_of_the_report_is_hostile(report: Report) -> None:
    evil = Report.model_validate(hostile(report.model_dump(mode="json")))
    stage = StageRecord(
        stage=HOSTILE,
        config={HOSTILE: [HOSTILE]},
        duration_s=1,
        parameters=1,
        macs=1,
        metrics={HOSTILE: 0.5},
        skipped=(SkippedLayer(layer=HOSTILE, reason=HOSTILE),),
        details={HOSTILE: {HOSTILE: {HOSTILE: HOSTILE}}, "log": [{"loss": 1.0, HOSTILE: HOSTILE}]},
    )
    evil = changed(
        evil, stages=(*evil.stages, stage), budget=BudgetRecord(metric="top1", max_drop=0.01, met={HOSTILE: True})
    )
    text = render(evil)
    page = Page(text)
    assert not [tag for tag, _ in page.tags if tag in ("script", "img")]
    assert not [key for _, attributes in page.tags for key in attributes if key.startswith("on")]
    assert "49" not in re.findall(r"\{\{.{0,10}", page.text)
    labels = [word for word in re.findall(r"<text[^>]*>([^<]*)</text>", text) if "frac" in word]
    assert labels
    assert all("$\\frac{1}{0}$" in label for label in labels)
    assert page.text.count("<script>alert(1)</script>") > 20  # shown as text


def test_page_renders_when_a_run_had_no_stage_no_target_and_no_labels(report: Report) -> None:
    original = report.original.model_copy(update={"metrics": {}, "latency": ()})
    bare = changed(report, stages=(), targets=(), data={}, original=original)
    bare = changed(bare, budget=BudgetRecord(metric="agreement", max_drop=0.01, met={}))
    page = Page(render(bare))
    assert page.row("original", "100.00") != []
    assert "The recipe names no target." in page.text


def test_page_renders_with_the_reason_when_a_target_failed_or_was_skipped(report: Report) -> None:
    targets = (
        TargetRecord(target="onnx", status="failed", reason="operator Foo has no form on this target"),
        TargetRecord(target="tflite", status="skipped", reason="install edgewright[tflite]"),
    )
    page = Page(render(changed(report, targets=targets)))
    assert "onnx failed: operator Foo has no form on this target" in page.text
    assert "tflite skipped: install edgewright[tflite]" in page.text


def luminance(colour: str) -> float:
    """Relative luminance, https://www.w3.org/TR/WCAG21/#dfn-relative-luminance."""
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
@pytest.mark.parametrize("background", ["paper", "shade"])
def test_text_has_wcag_aa_contrast_when_on_any_background(scheme: int, background: str) -> None:
    css = Path(html.__file__).with_name("report.css").read_text()
    block = re.findall(r":root \{(.*?)\}", css, re.DOTALL)[scheme]
    colours = dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", block))
    for name in ("ink", "muted", "after", "good", "bad", "open"):
        light, dark = sorted((luminance(colours[name]), luminance(colours[background])), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5, name


def test_samples_show_boxes_in_the_colour_of_their_class_when_a_report_has_pictures(report: Report) -> None:
    boxes = (
        BoxRecord(corners=(1, 2, 11, 22), label="shoe", score=0.873),
        BoxRecord(corners=(30, 40, 50, 60), label="<bag>", score=0.5),
    )
    label = ViewRecord(title="label", boxes=(BoxRecord(corners=(2, 2, 12, 22), label="shoe"),))
    sample = SampleRecord(
        index=7, width=96, height=96, image="AAAA", views=(label, ViewRecord(title="INT8, onnx", boxes=boxes))
    )
    page = Page(render(changed(report, samples=(sample,))))
    drawn = [attributes for tag, attributes in page.tags if tag == "rect" and attributes.get("stroke", "")[:1] == "#"]
    assert [(box["x"], box["y"], box["width"], box["height"]) for box in drawn][:2] == [
        ("2.0", "2.0", "10.0", "20.0"),
        ("1.0", "2.0", "10.0", "20.0"),
    ]
    assert drawn[0]["stroke"] == drawn[1]["stroke"] != drawn[2]["stroke"]
    assert "shoe 87 %" in page.text
    assert "<bag> 50 %" in page.text
    assert "INT8, onnx" in page.text
