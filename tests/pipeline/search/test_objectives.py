import pytest

from pipeline.core import MetricInfo, RecipeError
from pipeline.search.objectives import parse_objective


@pytest.mark.parametrize("text", ["speed", "latency", "size"])
def test_parse_objective_refuses_when_it_is(text: str) -> None:
    with pytest.raises(RecipeError, match="there is no objective"):
        parse_objective(text, [MetricInfo(name="top1", title="Top-1")])


@pytest.mark.parametrize(("higher", "direction"), [(True, "maximize"), (False, "minimize")])
def test_objective_follows_the_metrics_direction(higher: bool, direction: str) -> None:
    info = MetricInfo(name="mae", title="MAE", unit="m", higher_is_better=higher)
    assert parse_objective("mae", [info]).direction == direction
