"""Packages that are damaged, hostile or of another kind: one clear error each, and nothing read outside the package."""

from __future__ import annotations

import contextlib
import json
import shutil
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core import EdgewrightError, TargetError
from targets.coreml.interpreter import Interpreter
from targets.coreml.interpreter.package import PackageError, WeightFile, read_package
from tests.targets.coreml.interpreter.mil import ct, floats, mb, save

Model_pb2 = ct.proto.Model_pb2

MODEL = Path("Data/com.apple.CoreML/model.mlmodel")
WEIGHTS = Path("Data/com.apple.CoreML/weights/weight.bin")
X = floats(2, 16)
WEIGHT = floats(8, 16, seed=1)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("package")
    return save(lambda x: mb.linear(x=x, weight=WEIGHT), X, path=folder / "model.mlpackage")


@pytest.fixture
def package(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "model.mlpackage"))


def edit_model(package: Path, change: Callable[[Model_pb2.Model], object]) -> None:
    model = Model_pb2.Model()
    model.ParseFromString((package / MODEL).read_bytes())
    change(model)
    (package / MODEL).write_bytes(model.SerializeToString())


def edit_root_path(package: Path, path: object) -> None:
    manifest = json.loads((package / "Manifest.json").read_text())
    manifest["itemInfoEntries"][manifest["rootModelIdentifier"]]["path"] = path
    (package / "Manifest.json").write_text(json.dumps(manifest))


def weight_offset(package: Path) -> int:
    """Where the weight's record stands in the weight file."""
    found: list[int] = []

    def look(model: Model_pb2.Model) -> None:
        function = model.mlProgram.functions["main"]
        for operation in function.block_specializations[function.opset].operations:
            for value in (operation.attributes.get("val"),):
                if value is not None and value.WhichOneof("value") == "blobFileValue":
                    found.append(value.blobFileValue.offset)

    edit_model(package, look)
    return found[0]


def test_original_package_runs(original: Path) -> None:
    (got,) = Interpreter(original).run({"a": X}).values()
    np.testing.assert_allclose(got, X @ WEIGHT.T, rtol=1e-5, atol=1e-5)


def _wrong_kind(model: Model_pb2.Model) -> None:
    model.neuralNetwork.SetInParent()


def _newer(model: Model_pb2.Model) -> None:
    model.specificationVersion = 99


def _older(model: Model_pb2.Model) -> None:
    model.specificationVersion = 4


def _foreign_weights(model: Model_pb2.Model) -> None:
    function = model.mlProgram.functions["main"]
    for operation in function.block_specializations[function.opset].operations:
        if "val" in operation.attributes and operation.attributes["val"].WhichOneof("value") == "blobFileValue":
            operation.attributes["val"].blobFileValue.fileName = "@model_path/../../../../secret.bin"


def _huge_shape(model: Model_pb2.Model) -> None:
    function = model.mlProgram.functions["main"]
    for operation in function.block_specializations[function.opset].operations:
        for output in operation.outputs:
            for dimension in output.type.tensorType.dimensions:
                dimension.constant.size = 1 << 40


def _longer_weight(model: Model_pb2.Model) -> None:
    function = model.mlProgram.functions["main"]
    for operation in function.block_specializations[function.opset].operations:
        if "val" in operation.attributes and operation.attributes["val"].WhichOneof("value") == "blobFileValue":
            operation.attributes["val"].type.tensorType.dimensions[0].constant.size = 9


def _unknown_operator(model: Model_pb2.Model) -> None:
    function = model.mlProgram.functions["main"]
    for operation in function.block_specializations[function.opset].operations:
        if operation.type == "linear":
            operation.type = "quantum_linear"


def _dangling_name(model: Model_pb2.Model) -> None:
    function = model.mlProgram.functions["main"]
    for operation in function.block_specializations[function.opset].operations:
        if operation.type == "linear":
            operation.inputs["x"].arguments[0].name = "nowhere"


def _no_main(model: Model_pb2.Model) -> None:
    del model.mlProgram.functions["main"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_wrong_kind, "holds a neuralNetwork, not an ML Program"),
        (_newer, "specification version 99"),
        (_older, "older than ML Programs"),
        (_foreign_weights, "outside itself"),
        (_huge_shape, "too large"),
        (_longer_weight, "has 144 elements of 32 bits"),
        (_unknown_operator, r"quantum_linear \(1 times, first as 'linear_0'\)"),
        (_no_main, "has no function 'main'"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_changed_specification_is_refused(package: Path, change: Callable[..., None], message: str) -> None:
    edit_model(package, change)
    with pytest.raises(EdgewrightError, match=message):
        Interpreter(package)


def test_name_that_nothing_computes_is_refused_when_it_is_run(package: Path) -> None:
    edit_model(package, _dangling_name)
    with pytest.raises(TargetError, match="'nowhere', which nothing computes"):
        Interpreter(package).run({"a": X})


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_truncated_specification_is_refused(package: Path, share: float) -> None:
    data = (package / MODEL).read_bytes()
    (package / MODEL).write_bytes(data[: int(len(data) * share)])
    with pytest.raises(PackageError):
        Interpreter(package)


def test_encrypted_specification_is_refused(package: Path) -> None:
    (package / MODEL).write_bytes(np.random.default_rng(0).bytes(4096))
    with pytest.raises(PackageError, match="truncated, or encrypted"):
        Interpreter(package)


@pytest.mark.parametrize("kept", [0, 10, 64, 100, 300])
def test_truncated_weights_are_refused(package: Path, kept: int) -> None:
    data = (package / WEIGHTS).read_bytes()
    (package / WEIGHTS).write_bytes(data[:kept])
    with pytest.raises(PackageError):
        Interpreter(package)


def test_missing_weights_are_refused(package: Path) -> None:
    (package / WEIGHTS).unlink()
    with pytest.raises(PackageError, match=r"has no weight file 'weights/weight\.bin'"):
        Interpreter(package)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        (0, 0x12345678, "is not a blob record"),
        (1, 77, "unknown data type 77"),
        (2, 1 << 60, "claims bytes"),
        (2, 4, "holds 4 bytes"),
        (3, 1 << 62, "claims bytes"),
    ],
)
def test_blob_record_that_lies_is_refused(package: Path, field: int, value: int, message: str) -> None:
    data = bytearray((package / WEIGHTS).read_bytes())
    offset = weight_offset(package)
    record = list(struct.unpack_from("<IIQQQ", data, offset))
    record[field] = value
    struct.pack_into("<IIQQQ", data, offset, *record)
    (package / WEIGHTS).write_bytes(data)
    with pytest.raises(PackageError, match=message):
        Interpreter(package)


@pytest.mark.parametrize("path", ["/etc/passwd", "../../outside.mlmodel", "a\\b", "a\0b", 7, None])
def test_root_path_that_leads_outside_is_refused(package: Path, path: object) -> None:
    (package.parent / "outside.mlmodel").write_bytes((package / MODEL).read_bytes())
    edit_root_path(package, path)
    with pytest.raises(PackageError):
        Interpreter(package)


@pytest.mark.parametrize("part", [MODEL, WEIGHTS])
def test_link_that_leads_outside_is_refused(package: Path, part: Path) -> None:
    outside = package.parent / "outside"
    (package / part).rename(outside)
    (package / part).symlink_to(outside)
    with pytest.raises(PackageError, match="outside itself"):
        Interpreter(package)


@pytest.mark.parametrize("manifest", ["", "[]", "{}", '{"rootModelIdentifier": []}', "[" * 100_000])
def test_manifest_that_is_none_is_refused(package: Path, manifest: str) -> None:
    (package / "Manifest.json").write_text(manifest)
    with pytest.raises(PackageError, match="is not a package manifest"):
        read_package(package)


def test_manifest_that_is_too_large_is_not_read(package: Path) -> None:
    with (package / "Manifest.json").open("r+b") as file:
        file.truncate(1 << 30)
    with pytest.raises(PackageError, match="is larger than"):
        read_package(package)


def test_path_that_is_no_package_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PackageError, match="no such package"):
        read_package(tmp_path / "absent.mlpackage")
    (tmp_path / "file.mlpackage").touch()
    with pytest.raises(PackageError, match="is a file"):
        read_package(tmp_path / "file.mlpackage")
    (tmp_path / "empty.mlpackage").mkdir()
    with pytest.raises(PackageError, match=r"no Manifest\.json"):
        read_package(tmp_path / "empty.mlpackage")


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, "needs input 'a'"),
        ({"a": X, "b": X}, "has no input 'b'"),
        ({"a": X[:, :5]}, r"has shape \[2, 5\], but the model takes \[2, 16\]"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(original: Path, inputs: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(TargetError, match=message):
        Interpreter(original).run(inputs)


def test_program_that_asks_for_too_much_memory_is_refused(tmp_path: Path) -> None:
    package = save(
        lambda x: mb.fill(shape=mb.cast(x=x, dtype="int32"), value=1.0), X[0, :3], path=tmp_path / "m.mlpackage"
    )
    with pytest.raises(TargetError, match="asks for a tensor of shape"):
        Interpreter(package).run({"a": np.full(3, 1 << 20, np.float32)})


@given(st.binary(max_size=400), st.integers(0, 2**63), st.integers(0, 2**40))
def test_random_weight_files_are_refused_without_crashing(data: bytes, offset: int, count: int) -> None:
    with tempfile.NamedTemporaryFile() as file:
        file.write(struct.pack("<II56x", 1, 2) + data)
        file.flush()
        with pytest.raises(PackageError):
            WeightFile(Path(file.name)).read(offset, count + 1)


def main_block(model: Model_pb2.Model) -> Any:
    (block,) = model.mlProgram.functions["main"].block_specializations.values()
    return block


def forget_a_value(model: Model_pb2.Model) -> None:
    constant = next(operation for operation in main_block(model).operations if operation.type == "const")
    del constant.attributes["val"]


def forget_a_name(model: Model_pb2.Model) -> None:
    constant = next(operation for operation in main_block(model).operations if operation.type == "const")
    del constant.outputs[:]


def set_type(number: int) -> Callable[[Model_pb2.Model], None]:
    def change(model: Model_pb2.Model) -> None:
        main_block(model).operations[-1].outputs[0].type.tensorType.dataType = number

    return change


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (forget_a_value, "a constant without a value or a name"),
        (forget_a_name, "a constant without a value or a name"),
        (set_type(3), "the program is damaged: .*no name defined for value 3"),
        (set_type(2), "a tensor cannot be of type STRING"),
    ],
)
def test_program_is_refused_when_it_makes_no_sense(
    package: Path, change: Callable[[Model_pb2.Model], None], problem: str
) -> None:
    edit_model(package, change)
    with pytest.raises(EdgewrightError, match=problem) as caught:
        Interpreter(package).run({"a": X})
    assert caught.value.where is not None
    assert caught.value.where.startswith(str(package))


@given(st.data())
def test_flipped_bytes_of_the_specification_never_crash(original: Path, data: st.DataObject) -> None:
    content = bytearray((original / MODEL).read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    with tempfile.TemporaryDirectory() as folder:
        package = Path(shutil.copytree(original, Path(folder) / "m.mlpackage"))
        (package / MODEL).write_bytes(bytes(content))
        with contextlib.suppress(EdgewrightError):
            Interpreter(package).run({"a": X})
