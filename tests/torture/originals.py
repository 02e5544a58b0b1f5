"""Small model files of every format, each with samples for it, that mutations start from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

FORMATS = (".onnx", ".tflite", ".mlpackage")


def write_originals(folder: Path, suffix: str) -> list[tuple[Path, Path]]:
    """Files of a format and, for each, the npz that it takes."""
    made = []
    for number, build in enumerate(_BUILDERS[suffix]):
        model, samples = folder / f"original{number}{suffix}", folder / f"original{number}.npz"
        np.savez(samples, **build(model))
        made.append((model, samples))
    return made


def _onnx_network(path: Path) -> dict[str, Any]:
    """A convolution in QDQ form, a reshape and a matrix product."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(0)
    constants = {
        "scale": np.float32(0.02), "zero": np.uint8(128), "weight_scale": np.full(4, 0.01, np.float32),
        "weight_zero": np.zeros(4, np.int8), "weight": rng.integers(-127, 127, (4, 3, 3, 3), np.int8),
        "shape": np.array([0, -1]), "matrix": rng.normal(size=(144, 5)).astype(np.float32),
    }  # fmt: skip
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "scale", "zero"], ["xd"]),
        helper.make_node("DequantizeLinear", ["weight", "weight_scale", "weight_zero"], ["w"], axis=0),
        helper.make_node("Conv", ["xd", "w"], ["c"], name="conv"),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("Reshape", ["r", "shape"], ["flat"]),
        helper.make_node("Gemm", ["flat", "matrix"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["y"], axis=-1),
    ]
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 5])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)
    return {"x": rng.normal(size=(2, 3, 8, 8)).astype(np.float32)}


def _onnx_control(path: Path) -> dict[str, Any]:
    """A loop with a condition, slices, gathers and padding: operators that read sizes from tensors."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    body = helper.make_graph(
        [
            helper.make_node("Add", ["state", "one"], ["grown"]),
            helper.make_node("Identity", ["go"], ["going"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("step", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("state", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("going", TensorProto.BOOL, []),
            helper.make_tensor_value_info("grown", TensorProto.FLOAT, None),
        ],
    )
    constants = {
        "count": np.int64(3), "true": np.bool_(1), "one": np.float32(1), "starts": np.array([1]), "ends": np.array([4]),
        "pads": np.array([0, 1, 0, 1]), "tiles": np.array([1, 2]), "axis": np.array([1]),
    }  # fmt: skip
    nodes = [
        helper.make_node("Loop", ["count", "true", "x"], ["looped"], body=body),
        helper.make_node("Slice", ["looped", "starts", "ends", "axis"], ["cut"]),
        helper.make_node("Pad", ["cut", "pads"], ["padded"]),
        helper.make_node("Tile", ["padded", "tiles"], ["tiled"]),
        helper.make_node("Gather", ["tiled", "index"], ["y"], axis=1),
    ]
    graph = helper.make_graph(
        nodes,
        "control",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 6]),
            helper.make_tensor_value_info("index", TensorProto.INT64, ["K"]),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", "K"])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)
    return {"x": np.ones((2, 6), np.float32), "index": np.arange(3)}


def _tflite(path: Path, *, integers: bool) -> dict[str, Any]:
    """A convolution, a reshape and a matrix product; with int8 inside, or in float."""
    from ai_edge_litert import schema_py_generated as schema

    from targets.tflite.flatbuffer import serialize

    rng = np.random.default_rng(0)
    model, graph = schema.ModelT(), schema.SubGraphT()
    model.version, model.buffers, model.subgraphs, model.operatorCodes = 3, [schema.BufferT()], [graph], []
    graph.tensors, graph.operators, graph.name = [], [], b"main"
    types = schema.TensorType

    def tensor(name: bytes, shape: list[int], values: Any = None, scale: float = 0.05, wide: bool = False) -> int:
        made = schema.TensorT()
        made.name, made.shape, made.buffer, made.hasRank = name, shape, 0, True
        made.type = (types.INT32 if wide else types.INT8) if integers else types.FLOAT32
        if name == b"shape":
            made.type = types.INT32
        elif integers:
            made.quantization = schema.QuantizationParametersT()
            made.quantization.scale, made.quantization.zeroPoint = [scale], [0]
        if values is not None:
            buffer = schema.BufferT()
            buffer.data = np.frombuffer(values.tobytes(), np.uint8)
            model.buffers.append(buffer)
            made.buffer = len(model.buffers) - 1
        graph.tensors.append(made)
        return len(graph.tensors) - 1

    def numbers(*shape: int, wide: bool = False) -> Any:
        if integers:
            return rng.integers(-100, 100, shape).astype(np.int32 if wide else np.int8)
        return rng.normal(size=shape).astype(np.float32)

    def operator(code: int, kind: int, options: Any, inputs: list[int], output: int, version: int = 1) -> None:
        made, its_code = schema.OperatorT(), schema.OperatorCodeT()
        its_code.builtinCode = its_code.deprecatedBuiltinCode = code
        its_code.version = version
        model.operatorCodes.append(its_code)
        made.opcodeIndex, made.inputs, made.outputs = len(model.operatorCodes) - 1, inputs, [output]
        made.builtinOptionsType, made.builtinOptions = kind, options
        graph.operators.append(made)

    x = tensor(b"x", [1, 8, 8, 3])
    weight = tensor(b"w", [4, 3, 3, 3], numbers(4, 3, 3, 3))
    bias = tensor(b"b", [4], numbers(4, wide=True), 0.0025, wide=True)
    convolved, flat, shape = tensor(b"c", [1, 6, 6, 4]), tensor(b"f", [1, 144]), np.array([1, 144], np.int32)
    matrix, result = tensor(b"m", [5, 144], numbers(5, 144)), tensor(b"y", [1, 5])
    convolution, product = schema.Conv2DOptionsT(), schema.FullyConnectedOptionsT()
    convolution.padding, convolution.strideH, convolution.strideW = schema.Padding.VALID, 1, 1
    convolution.dilationHFactor = convolution.dilationWFactor = 1
    codes, kinds = schema.BuiltinOperator, schema.BuiltinOptions
    operator(codes.CONV_2D, kinds.Conv2DOptions, convolution, [x, weight, bias], convolved, 3 if integers else 1)
    inputs = [convolved, tensor(b"shape", [2], shape)]
    operator(codes.RESHAPE, kinds.ReshapeOptions, schema.ReshapeOptionsT(), inputs, flat)
    operator(
        codes.FULLY_CONNECTED, kinds.FullyConnectedOptions, product, [flat, matrix, -1], result, 4 if integers else 1
    )
    graph.inputs, graph.outputs = [x], [result]
    path.write_bytes(serialize(model))
    return {"x": rng.normal(size=(2, 8, 8, 3)).astype(np.float32)}


def _tflite_float(path: Path) -> dict[str, Any]:
    return _tflite(path, integers=False)


def _tflite_int8(path: Path) -> dict[str, Any]:
    return _tflite(path, integers=True)


def _coreml(path: Path) -> dict[str, Any]:
    """A convolution, pooling and a matrix product in FP16, with weights in a file of their own."""
    from targets.coreml.sdk import coremltools, quiet

    ct = coremltools()
    from coremltools.converters.mil import Builder

    rng = np.random.default_rng(0)
    with quiet():

        @Builder.program(input_specs=[Builder.TensorSpec(shape=(1, 3, 8, 8))], opset_version=ct.target.iOS17)
        def network(x: Any) -> Any:
            y = Builder.conv(x=x, weight=rng.normal(size=(4, 3, 3, 3)).astype(np.float32), pad_type="same")
            y = Builder.relu(x=Builder.avg_pool(x=y, kernel_sizes=[2, 2], strides=[2, 2], pad_type="valid"))
            y = Builder.reshape(x=y, shape=[1, -1])
            y = Builder.linear(x=y, weight=rng.normal(size=(5, 64)).astype(np.float32))
            return Builder.softmax(x=y, axis=-1, name="y")

        ct.convert(network, minimum_deployment_target=ct.target.iOS17).save(str(path))
    return {"x": rng.normal(size=(1, 3, 8, 8)).astype(np.float32)}


_BUILDERS: dict[str, tuple[Callable[[Path], dict[str, Any]], ...]] = {
    ".onnx": (_onnx_network, _onnx_control),
    ".tflite": (_tflite_float, _tflite_int8),
    ".mlpackage": (_coreml,),
}
