"""The operator table against coremltools' definitions: every citation exists and every parameter has its MIL name."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from typing import Any

import pytest

from targets.coreml.interpreter.operators import OPERATORS
from tests.targets.coreml.interpreter import mil, test_elementwise, test_layers, test_shapes

DEFS = "coremltools.converters.mil.mil.ops.defs"


def definitions(operator: str) -> list[Any]:
    """All versions of an operator's definition, oldest first."""
    found = []
    for opset in ("iOS15", "iOS16", "iOS17", "iOS18"):
        package = importlib.import_module(f"{DEFS}.{opset}")
        for part in pkgutil.iter_modules(package.__path__):
            module = importlib.import_module(f"{DEFS}.{opset}.{part.name}")
            definition = getattr(module, operator, None)
            if inspect.isclass(definition) and definition.__module__ == module.__name__:
                found.append(definition)
    return found


def test_table_holds_at_least_80_operators() -> None:
    assert len(OPERATORS) >= 80


@pytest.mark.parametrize("operator", OPERATORS)
def test_citation_names_the_first_definition(operator: str) -> None:
    module, _, name = OPERATORS[operator].definition.rpartition(".")
    assert name == operator
    assert getattr(importlib.import_module(f"{DEFS}.{module}"), name) is definitions(operator)[0]


@pytest.mark.parametrize("operator", OPERATORS)
def test_function_takes_every_input_of_every_definition(operator: str) -> None:
    taken = set(inspect.signature(OPERATORS[operator].run).parameters)
    defined = {name for definition in definitions(operator) for name in definition.input_spec.input_types}
    assert taken == {name for name in defined if not name.startswith("_")}


@pytest.mark.parametrize("operator", OPERATORS)
def test_optional_inputs_have_a_default(operator: str) -> None:
    parameters = inspect.signature(OPERATORS[operator].run).parameters
    first = definitions(operator)[0].input_spec.input_types
    without = {name for name, parameter in parameters.items() if parameter.default is inspect.Parameter.empty}
    assert without <= {name for name, kind in first.items() if not kind.optional}


def test_every_operator_is_proven_by_a_case_or_a_program() -> None:
    proven = {
        case.operator for cases in (test_elementwise.CASES, test_layers.CASES, test_shapes.CASES) for case in cases
    }
    by_programs = {"make_list", "list_length", "list_write", "list_read", "list_gather", "list_scatter"}
    by_programs |= {"quantize", "dequantize"} | {name for name in OPERATORS if name.startswith("constexpr_")}
    assert set(OPERATORS) - proven - by_programs == set()
    assert mil.mb is not None
