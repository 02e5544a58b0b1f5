import pytest

from pipeline.core import RecipeError
from pipeline.search.objectives import parse_objective


@pytest.mark.parametrize("text", ["speed", "latency", "size"])
def test_parse_objective_refuses_when_it_is(text: str) -> None:
    with pytest.raises(RecipeError, match="there is no objective"):
        parse_objective(text)
