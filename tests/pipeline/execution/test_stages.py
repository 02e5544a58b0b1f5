from pipeline.execution.stages import STAGES, source_of
from pipeline.recipe import StageStep


def test_every_stage_of_a_recipe_is_listed_under_its_key_with_its_source() -> None:
    assert list(STAGES) == list(StageStep.model_fields)
    for name in STAGES:
        assert source_of(name).exists()
