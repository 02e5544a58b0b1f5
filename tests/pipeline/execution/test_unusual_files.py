"""Valid files that edgewright did not write: they run right, or one error says why they do not."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto as T
from onnx import helper

from pipeline.core import DataError, OutputError, TargetError
from pipeline.execution.deployed import Limits, inspect, predict

ROWS = np.random.default_rng(0).normal(size=(100, 3)).astype(np.float32)
USUAL = Limits()
Shape = Sequence[int | str] | None


def save(path: Path, inputs: list[Any], outputs: list[Any], nodes: list[Any], constants: Sequence[Any] = ()) -> Path:
    graph = helper.make_graph(nodes, "graph", inputs, outputs, list(constants))
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)
    return path


def one_operator(path: Path, op: str, shape: Shape, *, kind: int = T.FLOAT, output: str = "y", **options: Any) -> Path:
    value = helper.make_tensor_value_info
    result = value(output, kind, [] if op == "ReduceMean" else shape)
    return save(path, [value("x", kind, shape)], [result], [helper.make_node(op, ["x"], [output], **options)])


def run(model: Path, limits: Limits = USUAL, **arrays: Any) -> dict[str, np.ndarray]:
    np.savez(model.with_name("in.npz"), **arrays)
    returned = predict(model, model.with_name("in.npz"), model.with_name("out.npz"), limits=limits)
    with np.load(model.with_name("out.npz")) as written:
        for name, array in returned.items():
            np.testing.assert_array_equal(written[name], array)
        return {name: written[name] for name in written.files}


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (T.DOUBLE, np.array([[0.1, 1e300, 3]])),
        (T.INT16, np.array([[1, -3, 32767]], np.int16)),
        (T.UINT64, np.array([[1, 2, 2**64 - 1]], np.uint64)),
        (T.BOOL, np.array([[True, False, True]])),
        (T.STRING, np.array([["a", "bä", ""]])),
    ],
)
def test_element_types_come_back_unchanged(tmp_path: Path, kind: int, values: np.ndarray) -> None:
    found = run(one_operator(tmp_path / "m.onnx", "Identity", ["N", 3], kind=kind), x=values)["y"]
    assert found.dtype.kind == values.dtype.kind
    np.testing.assert_array_equal(found, values)


@pytest.mark.parametrize(
    ("shape", "values"),
    [
        ([], np.float32(3)),
        (None, np.ones((2, 5))),
        (["N", 3, "H", "W"], np.ones((2, 3, 4, 5))),
        ([0, 3], np.ones((0, 3))),
    ],
)
def test_scalars_and_axes_of_any_size_are_taken_as_they_are(tmp_path: Path, shape: Shape, values: Any) -> None:
    found = run(one_operator(tmp_path / "m.onnx", "Neg", shape), x=values)["y"]
    np.testing.assert_array_equal(found, -np.asarray(values))


@pytest.mark.parametrize(
    ("kind", "values"),
    [(T.INT16, 40000), (T.UINT8, 0.5), (T.INT64, np.nan), (T.FLOAT16, 1e6), (T.FLOAT, "text"), (T.STRING, 1)],
)
def test_values_that_an_input_cannot_hold_are_refused_not_wrapped(tmp_path: Path, kind: int, values: Any) -> None:
    with pytest.raises(DataError, match="its values are not all"):
        run(one_operator(tmp_path / "m.onnx", "Identity", ["N", 3], kind=kind), x=np.full((1, 3), values))


def softmax(values: np.ndarray) -> np.ndarray:
    powers = np.exp(values - values.max(0))
    return powers / powers.sum(0)


def test_samples_are_cut_into_batches_only_where_each_stands_alone(tmp_path: Path) -> None:
    alone = one_operator(tmp_path / "alone.onnx", "Neg", [8, 3])
    np.testing.assert_array_equal(run(alone, x=ROWS[:19])["y"], -ROWS[:19])  # padded to 24
    mixed = one_operator(tmp_path / "mixed.onnx", "Softmax", [8, 3], axis=0)
    np.testing.assert_allclose(run(mixed, x=ROWS[:8])["y"], softmax(ROWS[:8]), atol=1e-6)
    with pytest.raises(TargetError, match="depends on the other samples, so 19 samples cannot be cut"):
        run(mixed, x=ROWS[:19])
    dynamic = one_operator(tmp_path / "dynamic.onnx", "Softmax", ["N", 3], axis=0)
    np.testing.assert_allclose(run(dynamic, x=ROWS)["y"], softmax(ROWS), atol=1e-6)
    mean = one_operator(tmp_path / "mean.onnx", "ReduceMean", ["N", 3], keepdims=0)
    np.testing.assert_allclose(run(mean, x=ROWS)["y"], ROWS.mean(), atol=1e-6)


def test_axes_of_one_name_have_one_length_and_others_need_not(tmp_path: Path) -> None:
    value = helper.make_tensor_value_info
    nodes = [helper.make_node("ReduceSum", ["t"], ["s"], keepdims=0), helper.make_node("Add", ["x", "s"], ["y"])]
    results = [value("y", T.FLOAT, ["N", 3])]
    free = save(tmp_path / "m.onnx", [value("x", T.FLOAT, ["N", 3]), value("t", T.FLOAT, ["L"])], results, nodes)
    np.testing.assert_allclose(run(free, x=ROWS, t=np.ones(7))["y"], ROWS + 7, atol=1e-6)
    bound = save(tmp_path / "m.onnx", [value("x", T.FLOAT, ["N", 3]), value("t", T.FLOAT, ["N"])], results, nodes)
    with pytest.raises(DataError, match="different lengths of the axis 'N': 100 and 7"):
        run(bound, x=ROWS, t=np.ones(7))


def test_a_file_without_inputs_runs_once(tmp_path: Path) -> None:
    constant = helper.make_node("Constant", [], ["y"], value=helper.make_tensor("v", T.FLOAT, [2], [1.0, 2.0]))
    model = save(tmp_path / "m.onnx", [], [helper.make_tensor_value_info("y", T.FLOAT, [2])], [constant])
    assert run(model)["y"].tolist() == [1, 2]


@pytest.mark.parametrize("name", ["file", "a/b:0", "allow_pickle"])
def test_output_names_that_savez_would_not_take_are_kept(tmp_path: Path, name: str) -> None:
    found = run(one_operator(tmp_path / "m.onnx", "Neg", ["N", 3], output=name), x=ROWS)
    np.testing.assert_array_equal(found[name], -ROWS)


@pytest.mark.parametrize("name", ["../../x", "/x", "a//b", "..", "C:x", "a\\b", "\x1b[2J", "x.npy", "n" * 300])
def test_output_names_that_lead_out_of_the_archive_give_way_to_a_number(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "inner"
    folder.mkdir()
    found = run(one_operator(folder / "m.onnx", "Neg", ["N", 3], output=name), x=ROWS)
    np.testing.assert_array_equal(found["output_0"], -ROWS)
    assert sorted(file.name for file in folder.iterdir()) == ["in.npz", "m.onnx", "out.npz"]
    assert [file.name for file in tmp_path.iterdir()] == ["inner"]


def test_an_input_whose_name_savez_does_not_take_is_given_by_position(tmp_path: Path) -> None:
    value = helper.make_tensor_value_info
    node = helper.make_node("Neg", ["file"], ["y"])
    model = save(tmp_path / "m.onnx", [value("file", 1, ["N", 3])], [value("y", 1, ["N", 3])], [node])
    np.savez(tmp_path / "in.npz", ROWS)
    np.testing.assert_array_equal(predict(model, tmp_path / "in.npz", tmp_path / "out.npz")["y"], -ROWS)


def test_what_no_array_holds_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match="'x' holds bfloat16, which NumPy does not have"):
        run(one_operator(tmp_path / "m.onnx", "Identity", ["N", 3], kind=T.BFLOAT16), x=ROWS)
    sequence = helper.make_tensor_sequence_value_info("y", T.FLOAT, None)
    node = helper.make_node("SequenceConstruct", ["x"], ["y"])
    model = save(tmp_path / "m.onnx", [helper.make_tensor_value_info("x", T.FLOAT, ["N", 3])], [sequence], [node])
    with pytest.raises(TargetError, match=r"'y' is a seq\(tensor\(float\)\), not a tensor"):
        run(model, x=ROWS)


def test_memory_and_time_are_bounded_and_the_error_says_how_to_give_more(tmp_path: Path) -> None:
    value = helper.make_tensor_value_info
    sizes = helper.make_tensor("sizes", T.INT64, [4], [100_000, 100_000, 1, 3])
    large = save(
        tmp_path / "m.onnx", [value("x", 1, ["N", 3])], [value("y", 1, None)],
        [helper.make_node("Expand", ["x", "sizes"], ["y"])], [sizes],
    )  # fmt: skip
    with pytest.raises(TargetError, match=r"m.onnx: needs more than 1 GiB of memory\n.*--memory"):
        run(large, Limits(memory_bytes=1 << 30), x=ROWS)
    huge = one_operator(tmp_path / "m.onnx", "Neg", [1, 2**20, 2**12])
    with pytest.raises(TargetError, match=r"m.onnx: needs more than 1 GiB of memory"):
        inspect(huge, limits=Limits(memory_bytes=1 << 30))
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["going"]), helper.make_node("Identity", ["v"], ["w"])], "body",
        [value("i", T.INT64, []), value("go", T.BOOL, []), value("v", T.FLOAT, None)],
        [value("going", T.BOOL, []), value("w", T.FLOAT, None)],
    )  # fmt: skip
    endless = save(
        tmp_path / "m.onnx", [value("x", 1, ["N", 3])], [value("y", 1, None)],
        [helper.make_node("Loop", ["", "true", "x"], ["y"], body=body)], [helper.make_tensor("true", T.BOOL, [], [1])],
    )  # fmt: skip
    started = time.monotonic()
    with pytest.raises(TargetError, match=r"m.onnx: took longer than 3 s\n.*--seconds"):
        run(endless, Limits(seconds=3), x=ROWS)
    assert time.monotonic() - started < 6
    assert not (tmp_path / "out.npz").exists()


def test_where_the_output_cannot_go_is_said_before_anything_runs(tmp_path: Path) -> None:
    model = one_operator(tmp_path / "m.onnx", "Neg", ["N", 3])
    for output in (tmp_path, tmp_path / "missing" / "out.npz"):
        with pytest.raises(OutputError):
            predict(model, tmp_path / "in.npz", output)


def tflite(path: Path, *, shape: Sequence[int], signature: Sequence[int] | None = None, kind: str = "FLOAT32",
           names: tuple[bytes, bytes] = (b"x", b"y")) -> Path:  # fmt: skip
    """A file with one operator, ``y = x + x``."""
    from ai_edge_litert import schema_py_generated as schema

    from targets.tflite.flatbuffer import serialize

    model, graph, step, code = schema.ModelT(), schema.SubGraphT(), schema.OperatorT(), schema.OperatorCodeT()
    model.version, model.buffers, model.operatorCodes, model.subgraphs = 3, [schema.BufferT()], [code], [graph]
    code.version, graph.tensors, graph.operators, graph.inputs, graph.outputs = 1, [], [step], [0], [1]
    for name in names:
        tensor = schema.TensorT()
        tensor.name, tensor.shape, tensor.shapeSignature, tensor.hasRank = name, list(shape), signature, True
        tensor.type = getattr(schema.TensorType, kind)
        graph.tensors.append(tensor)
    step.inputs, step.outputs = [0, 0], [1]
    step.builtinOptionsType, step.builtinOptions = schema.BuiltinOptions.AddOptions, schema.AddOptionsT()
    path.write_bytes(serialize(model))
    return path


@pytest.mark.parametrize(
    ("form", "values"),
    [
        ({"shape": [1, 3]}, ROWS),
        ({"shape": [4, 3]}, ROWS[:10]),
        ({"shape": [1, 3], "signature": [-1, 3]}, ROWS),
        ({"shape": [1, 1], "signature": [1, -1]}, np.ones((2, 7), np.float32)),
        ({"shape": []}, np.float32(2)),
        ({"shape": [1, 3], "kind": "INT64"}, np.array([[1, 2, 2**40]])),
    ],
)
def test_tflite_takes_the_shapes_and_types_of_the_file(tmp_path: Path, form: dict[str, Any], values: Any) -> None:
    np.testing.assert_array_equal(run(tflite(tmp_path / "m.tflite", **form), x=values)["y"], values + values)


def test_tflite_without_names_is_given_by_position(tmp_path: Path) -> None:
    model = tflite(tmp_path / "m.tflite", shape=[1, 3], names=(b"", b""))
    np.savez(tmp_path / "in.npz", ROWS)
    found = predict(model, tmp_path / "in.npz", tmp_path / "out.npz")
    np.testing.assert_array_equal(found["output_0"], ROWS + ROWS)


def test_tflite_that_is_too_large_is_one_error(tmp_path: Path) -> None:
    model = tflite(tmp_path / "m.tflite", shape=[1, 2**20, 2**10])
    for call in (lambda: run(model, Limits(memory_bytes=1 << 30), x=ROWS), lambda: inspect(model)):
        with pytest.raises((TargetError, DataError)) as caught:
            call()
        assert str(tmp_path) in str(caught.value)


@pytest.mark.slow
def test_mlpackage_takes_axes_of_any_size_and_integers(tmp_path: Path) -> None:
    from targets.coreml.sdk import coremltools, quiet

    ct = coremltools()
    from coremltools.converters.mil import Builder
    from coremltools.converters.mil.mil import get_new_symbol, types

    with quiet():
        specs = [
            Builder.TensorSpec(shape=(2, get_new_symbol())),
            Builder.TensorSpec(shape=(2, 1), dtype=types.int32),
        ]

        @Builder.program(input_specs=specs, opset_version=ct.target.iOS17)
        def program(x: Any, shift: Any) -> Any:
            return Builder.add(x=x, y=Builder.cast(x=shift, dtype="fp32"), name="y")

        forms = [
            ct.TensorType("x", shape=(2, ct.RangeDim(1, 9)), dtype=np.float32),
            ct.TensorType("shift", shape=(2, 1), dtype=np.int32),
        ]
        package = ct.convert(program, inputs=forms, minimum_deployment_target=ct.target.iOS17)
        package.save(str(tmp_path / "m.mlpackage"))
    x, shift = np.arange(25, dtype=np.float32).reshape(5, 5), np.arange(5).reshape(5, 1)
    np.testing.assert_array_equal(run(tmp_path / "m.mlpackage", x=x, shift=shift)["y"], x + shift)  # padded to 6
    with pytest.raises(DataError, match=r"array 'shift' is float64, and its values are not all int32"):
        run(tmp_path / "m.mlpackage", x=x, shift=shift + 0.5)
    with pytest.raises(DataError, match=r"array 'x' has shape \[5\], but the model takes \['N', '\?'\]"):
        run(tmp_path / "m.mlpackage", x=x[0], shift=shift)
