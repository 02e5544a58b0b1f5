from pipeline.recipe import parse_recipe
from pipeline.search.front import recipe_of
from tests.pipeline.conftest import Project


def test_recipe_of_a_point_finds_its_files_when_it_is_written_to_another_folder(project: Project) -> None:
    student = {"factory": "mine:tiny", "checkpoint": "students/tiny.safetensors"}
    project.recipe["stages"][1] = {"distill": {"student": student}}
    recipe, folder = parse_recipe(project.recipe), project.folder / "search" / "recipes"
    values = recipe_of({"0.prune.macs_ratio": 0.3}, recipe, project.folder, folder)
    assert values["model"]["checkpoint"] == "../../model.safetensors"
    assert values["data"]["evaluation"]["npz"] == "../../test.npz"
    assert values["stages"][1]["distill"]["student"]["checkpoint"] == "../../students/tiny.safetensors"
    assert values["stages"][0]["prune"]["macs_ratio"] == 0.3
    parse_recipe(values)
