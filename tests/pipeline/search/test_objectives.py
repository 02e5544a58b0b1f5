from pathlib import Path

import pytest

from pipeline.core import MetricInfo, RecipeError
from pipeline.report.model import Report, read_report
from pipeline.search.objectives import parse_objective


@pytest.fixture
def frozen() -> Report:
    return read_report(Path(__file__).parents[1] / "report" / "report_1_0.json")


@pytest.mark.parametrize("text", ["speed", "latency", "size"])
def test_parse_objective_refuses_when_it_is(text: str) -> None:
    with pytest.raises(RecipeError, match="there is no objective"):
        parse_objective(text, [MetricInfo(name="top1", title="Top-1")])


@pytest.mark.parametrize(("higher", "direction"), [(True, "maximize"), (False, "minimize")])
def test_objective_follows_the_metrics_direction(higher: bool, direction: str) -> None:
    info = MetricInfo(name="mae", title="MAE", unit="m", higher_is_better=higher)
    assert parse_objective("mae", [info]).direction == direction


@pytest.mark.parametrize(
    ("text", "value", "shown"),
    [("psnr", 31.24, "31.2 dB"), ("latency:onnx", 1_500_000, "1.50 ms"), ("size:onnx", 78_412, "78.4 kB")],
)
def test_objective_is_shown_in_its_own_unit(text: str, value: float, shown: str) -> None:
    info = MetricInfo(name="psnr", title="PSNR", unit="dB")
    assert parse_objective(text, [info]).shown(value).replace("\N{NO-BREAK SPACE}", " ") == shown


@pytest.mark.parametrize(("higher", "worst"), [(True, 0.5), (False, 0.75)])
def test_objective_is_the_worst_targets_value_in_the_metrics_direction(
    higher: bool, worst: float, frozen: Report
) -> None:
    targets = tuple(
        target.model_copy(update={"metrics": {"score": value}})
        for target, value in zip(frozen.targets, (0.5, 0.75, 0.6), strict=True)
    )
    info = MetricInfo(name="score", title="Score", unit="", higher_is_better=higher)
    assert parse_objective("score", [info]).value(frozen.model_copy(update={"targets": targets})) == worst
