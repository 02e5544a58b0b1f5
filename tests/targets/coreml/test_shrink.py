"""A smaller specification computes the same, and coremltools still reads it."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from targets.coreml.interpreter import Interpreter
from targets.coreml.sdk import coremltools, quiet
from targets.coreml.shrink import shrink

PACKAGES = Path(__file__).parent / "packages"


def specification(package: Path) -> Any:
    return coremltools().models.MLModel(str(package), skip_model_load=True).get_spec()


def body(specification: Any) -> Any:
    function = specification.mlProgram.functions["main"]
    return function.block_specializations[function.opset]


def shrunk(package: Path, folder: Path) -> Path:
    """A copy of a package with its specification made smaller."""
    copied = Path(shutil.copytree(package, folder / package.name))
    small = specification(package)
    shrink(small)
    (copied / "Data" / "com.apple.CoreML" / "model.mlmodel").write_bytes(small.SerializeToString())
    return copied


@pytest.mark.parametrize("name", ["tensorflow_convolutions", "tensorflow_loop"])
def test_shrink_changes_no_result_when_there_are_loops_and_branches(name: str, tmp_path: Path) -> None:
    small = shrunk(PACKAGES / f"{name}.mlpackage", tmp_path)
    with np.load(PACKAGES / f"{name}.npz") as stored:
        inputs = {key: stored[key] for key in stored.files if key != "expected"}
    before, after = (Interpreter(package).run(inputs) for package in (PACKAGES / small.name, small))
    assert before.keys() == after.keys()
    for one, other in zip(before.values(), after.values(), strict=True):
        np.testing.assert_array_equal(one, other)
    assert specification(small).ByteSize() < 0.75 * specification(PACKAGES / small.name).ByteSize()


def test_shrink_keeps_one_of_each_constant_and_all_other_operators(tmp_path: Path) -> None:
    before = body(specification(PACKAGES / "tensorflow_convolutions.mlpackage"))
    after = body(specification(shrunk(PACKAGES / "tensorflow_convolutions.mlpackage", tmp_path)))
    values = Counter(
        op.attributes["val"].SerializeToString(deterministic=True) for op in after.operations if op.type == "const"
    )
    assert set(values.values()) == {1}
    kept = [[op.type for op in block.operations if op.type != "const"] for block in (before, after)]
    assert kept[0] == kept[1]
    assert list(after.outputs) == list(before.outputs)


def test_shrunk_program_is_read_by_coremltools(tmp_path: Path) -> None:
    model = coremltools().models.MLModel(
        str(shrunk(PACKAGES / "tensorflow_convolutions.mlpackage", tmp_path)), skip_model_load=True
    )
    from coremltools.converters.mil.frontend.milproto.load import load

    with quiet():
        program = load(
            model.get_spec(),
            specification_version=model.get_spec().specificationVersion,
            file_weights_dir=model.weights_dir,
        )
    assert "conv" in {operation.op_type for operation in program.functions["main"].operations}
