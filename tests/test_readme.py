"""What README says is run as it stands there."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from pipeline.cli.show import summary
from pipeline.recipe import parse_recipe
from pipeline.report.model import read_report
from tests.architecture_table import read_rows
from tests.benchmarks import bench_demos, bench_quantization
from tests.benchmarks.compress_fashion_mnist import table
from tests.networks.architectures import ARCHITECTURES

README = Path(__file__).parents[1] / "README.md"
RESULTS = Path(__file__).parent / "benchmarks" / "results"
NETWORKS = {
    "resnet18": "ResNet-18",
    "resnet50": "ResNet-50",
    "mobilenet_v2": "MobileNetV2",
    "mobilenet_v3_large": "MobileNetV3-large",
    "efficientnet_b0": "EfficientNet-B0",
    "densenet121": "DenseNet-121",
    "vit_tiny": "ViT-tiny",
}


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README.read_text(), re.DOTALL)


@pytest.mark.slow
def test_library_snippet_prints_metrics_when_run_as_printed(tmp_path: Path) -> None:
    (snippet,) = blocks("python")
    (tmp_path / "calibration_data").symlink_to(README.parent / "calibration_data")
    result = subprocess.run([sys.executable, "-c", snippet], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "top1" in result.stdout.splitlines()[-1]
    assert (tmp_path / "out" / "onnx" / "model.onnx").exists()


def test_recipe_in_readme_is_valid_when_parsed() -> None:
    recipe, task, pruning, tflite, training = (yaml.safe_load(block) for block in blocks("yaml"))
    assert [step.name for step in parse_recipe(recipe).stages] == ["prune", "distill", "quantize"]
    own = parse_recipe({**recipe, **task})
    assert own.task is not None
    assert [budget.metric for budget in own.budget] == [metric.partition(":")[2] for metric in own.task.metrics]
    prune, distill = parse_recipe({**recipe, "stages": [*pruning, *training]}).stages
    assert prune.config.recover.epochs == 1
    assert distill.config.student.kwargs == {"classes": 10}
    (target,) = parse_recipe({**recipe, **tflite}).targets
    assert target.config.variants == ("fp16", "int8_dynamic")


def test_headline_in_readme_is_the_sample_reports_when_shown() -> None:
    (headline,) = blocks("text")
    assert headline.strip("\n") == summary(read_report(README.parent / "reports" / "sample" / "report.json"))


def test_compression_table_in_readme_is_the_committed_result() -> None:
    result = json.loads((RESULTS / "compression.json").read_text())
    assert table(result) in README.read_text()


def test_accuracy_table_in_readme_is_the_committed_result() -> None:
    assert bench_quantization.against_peers(bench_quantization.saved()) in README.read_text()


@pytest.mark.parametrize("part", bench_demos.PARTS)
def test_tables_of_the_demos_in_readme_are_the_committed_results(part: str) -> None:
    assert bench_demos.table(json.loads(bench_demos.RESULTS.read_text()), part) in README.read_text()


def onnx_rows() -> list[str]:
    """The README's row of every network: one thread, batch 1."""
    rows = []
    for row in json.loads((RESULTS / "onnx.json").read_text())["rows"]:
        if row["threads"] == row["batch"] == 1:
            peers = {tool: value / 1e6 for tool, value in row["median_ns"].items()}
            fp32, ours = peers.pop("fp32"), peers.pop("ours")
            ratios = f"{fp32 / ours:.2f}× | {ours / min(peers.values()):.2f}"
            rows.append(f"| {NETWORKS[row['network']]} | {fp32:.2f} ms | {ours:.2f} ms | {ratios} |")
    return rows


def tflite_rows() -> list[str]:
    """The README's rows, one thread and two."""
    rows = []
    for row in json.loads((RESULTS / "tflite.json").read_text()):
        tools = ("fp32", "ours", "ai_edge_quantizer", "tensorflow")
        medians = " | ".join(f"{row['median_ms'][tool]:.2f}" if tool in row["median_ms"] else "–" for tool in tools)
        ratios = f"{row['speedup_vs_fp32']:.2f}× | {row['ratio']:.3f} | ±{row['band']:.0%}"
        rows.append(f"| {row['network']} | {row['threads']} | {medians} | {ratios} |")
    return rows


@pytest.mark.parametrize(("rows", "count"), [(onnx_rows(), 7), (tflite_rows(), 14)], ids=["onnxruntime", "LiteRT"])
def test_speed_tables_in_readme_are_the_committed_results(rows: list[str], count: int) -> None:
    assert len(rows) == count
    assert [row for row in rows if row not in README.read_text()] == []


def test_sample_report_is_valid_when_read_against_the_published_schema() -> None:
    import jsonschema

    root = README.parent
    schema = json.loads((root / "pipeline" / "report" / "report.schema.json").read_text())
    jsonschema.validate(json.loads((root / "reports" / "sample" / "report.json").read_text()), schema)


def test_table_in_readme_has_a_row_for_every_architecture() -> None:
    rows = read_rows(README.read_text())
    assert list(rows) == list(ARCHITECTURES)
    for row in rows.values():
        assert float(row.split("|")[2].strip(" %")) >= 99
