"""Each placement rule, on an operator that breaks it and on one that does not."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from pipeline.core import TensorSpec
from pipeline.models.capture import capture
from pipeline.recipe import CoremlConfig
from pipeline.target import Placement
from targets.coreml import CoremlTarget
from targets.coreml.interpreter.package import PackageError
from targets.coreml.interpreter.program import Block, Operation, Program, TensorType
from targets.coreml.neural_engine import placement
from targets.coreml.neural_engine.rules import ENGINE_RULES, IN_FLOAT
from targets.coreml.sdk import coremltools, quiet
from tests.targets.coreml.programs import HandQuantized, model_of

Shape = tuple[int | None, ...]


def program(
    operator: str,
    *,
    shape: Shape = (1, 8, 16, 16),
    output: Shape | None = None,
    dtype: str = "FLOAT16",
    weight: Shape | None = None,
    **constants: list[int],
) -> Program:
    """One operator that reads ``x`` and, where it has weights, a constant."""
    variables: dict[str, str | tuple[str, ...]] = {"x": "x"}
    operations = []
    if weight is not None:
        operations.append(Operation("const", "w", {}, {}, (("w", TensorType("FLOAT16", weight)),), ()))
        variables["weight"] = "w"
    values = {key: torch.tensor(value) for key, value in constants.items()}
    outputs = (("y", TensorType(dtype, output or shape)),)
    operations.append(Operation(operator, "op", values, variables, outputs, ()))
    return Program("CoreML8", {"x": TensorType("FLOAT16", shape)}, Block((), tuple(operations), ("y",), {}))


LEAVING = {
    "recurrent": (program("lstm"), "recurrent"),
    "gather": (program("gather"), "only the CPU"),
    "topk": (program("topk"), "on the CPU"),
    "control flow": (program("while_loop"), "control flow"),
    "scatter": (program("scatter_nd"), "data-dependent"),
    "hyperbolic": (program("cosh"), "no hardware path"),
    "nms": (program("non_maximum_suppression"), "handed to"),
    "float32": (program("conv", dtype="FLOAT32", weight=(8, 8, 3, 3)), "FP16"),
    "int32": (program("add", dtype="INT32"), "32-bit"),
    "rank 6": (program("add", shape=(1, 2, 2, 2, 2, 2)), "5 dimensions"),
    "wide": (program("relu", shape=(1, 8, 1, 16385)), "16384"),
    "deep": (program("relu", shape=(1, 65537, 1, 1)), "65536"),
    "kernel 14": (program("conv", weight=(8, 8, 1, 14)), "13 wide"),
    "window 32": (program("avg_pool", kernel_sizes=[32, 1]), "31 wide"),
    "long argmax": (program("reduce_argmax", shape=(1, 8, 1, 2049), dtype="UINT16", axis=[-1]), "2048"),
}

STAYING = {
    "convolution": program("conv", weight=(8, 8, 3, 3)),
    "kernel 13": program("conv", weight=(8, 8, 13, 13)),
    "dilated": program("conv", weight=(8, 8, 3, 3), dilations=[2, 2]),
    "window 31": program("max_pool", kernel_sizes=[31, 31]),
    "rank 5": program("add", shape=(1, 2, 2, 2, 2)),
    "widest": program("relu", shape=(1, 65536, 16384, 1)),
    "cast of an output": program("cast", dtype="FLOAT32"),
    "argmax": program("reduce_argmax", shape=(1, 8, 1, 2048), dtype="UINT16", axis=[3]),
    "open batch": program("relu", shape=(None, 8, 16, 16)),
}


@pytest.mark.parametrize(("leaving", "why"), LEAVING.values(), ids=LEAVING)
def test_placement_names_operator_and_source_when_a_rule_is_broken(leaving: Program, why: str) -> None:
    found = placement(leaving)

    (fallback,) = found.fallback
    assert (found.operators, found.accelerated, fallback.count) == (1, 0, 1)
    assert fallback.op == leaving.body.operations[-1].type
    assert why in fallback.reason
    assert "https://" in fallback.reason


@pytest.mark.parametrize("staying", STAYING.values(), ids=STAYING)
def test_placement_keeps_operators_when_they_are_at_the_limits(staying: Program) -> None:
    assert placement(staying).fallback == ()


def test_every_rule_has_a_source_and_a_breach_under_test() -> None:
    reasons = {placement(leaving).fallback[0].reason for leaving, _ in LEAVING.values()}
    assert all(rule.source.startswith("https://") for rule in ENGINE_RULES)
    assert {f"{rule.reason} ({rule.source})" for rule in ENGINE_RULES if rule.values != {"range"}} == reasons


def test_placement_leaves_nothing_to_the_cpu_when_a_quantized_program_is_lowered(tmp_path: Path) -> None:
    model = model_of(HandQuantized(), quantized=True)
    lowered = CoremlTarget(CoremlConfig(batch_sizes=(1, 4))).lower(model, tmp_path, name="net")

    found = placement(lowered.path)

    assert {(item.op, item.reason) for item in found.fallback} == {("relu", IN_FLOAT), ("reduce_mean", IN_FLOAT)}
    assert found.accelerated == found.operators > 5


def test_placement_sends_everything_away_when_a_program_computes_in_fp32(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 26 * 26, 10))
    lowered = CoremlTarget(CoremlConfig(batch_sizes=(1,))).lower(model_of(module), tmp_path, name="net")

    found = placement(lowered.path)

    assert found.accelerated == 0
    assert sum(fallback.count for fallback in found.fallback) == found.operators


def ranged(folder: Path) -> Path:
    """A package that takes any width from 8 to 64."""
    ct = coremltools()
    exported = capture(nn.Conv2d(1, 2, 3), (TensorSpec(name="image", shape=(1, 8, 8)),))
    with quiet():
        shape = ct.Shape(shape=(ct.RangeDim(1, 64, default=2), 1, 8, 8))
        model = ct.convert(
            exported.run_decompositions({}), inputs=[ct.TensorType("image", shape)], skip_model_load=True
        )
        model.save(str(folder / "ranged.mlpackage"))
    return folder / "ranged.mlpackage"


def test_placement_warns_when_inputs_take_a_range(tmp_path: Path) -> None:
    found = placement(ranged(tmp_path))

    assert found.accelerated == 0
    assert all("default" in fallback.reason for fallback in found.fallback)


def test_placement_raises_when_the_package_is_missing(tmp_path: Path) -> None:
    with pytest.raises(PackageError, match="no such package"):
        placement(tmp_path / "none.mlpackage")


@pytest.mark.skipif(sys.platform != "darwin", reason="MLComputePlan runs only on macOS")
def test_rules_agree_with_core_ml_when_it_can_be_asked(tmp_path: Path) -> None:
    from targets.coreml.neural_engine import compute_plan

    model = model_of(HandQuantized(), quantized=True)
    lowered = CoremlTarget(CoremlConfig(batch_sizes=(1,))).lower(model, tmp_path, name="net")

    planned: Placement = compute_plan.placement(lowered.path)

    assert planned.operators == placement(lowered.path).operators
