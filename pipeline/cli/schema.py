"""``edgewright schema``: the JSON Schema of a recipe or a report."""

from __future__ import annotations

import json
from enum import StrEnum
from typing import Annotated

import typer

from pipeline.recipe import Recipe
from pipeline.report.schema import json_schema


class Schema(StrEnum):
    """What ``edgewright schema`` can print."""

    RECIPE = "recipe"
    REPORT = "report"


def schema(of: Annotated[Schema, typer.Argument(help="The recipe you write, or the report you get.")]) -> None:
    """Print a JSON Schema, for editors and programs.

    For example:

        edgewright schema recipe > recipe.schema.json
    """
    typer.echo(json.dumps(Recipe.model_json_schema() if of is Schema.RECIPE else json_schema(), indent=2))
