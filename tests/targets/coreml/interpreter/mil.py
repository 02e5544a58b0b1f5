"""One-operator programs: built with coremltools, saved as a package, read back and run by the interpreter."""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import helper, numpy_helper

from targets.coreml.interpreter import Interpreter
from targets.coreml.interpreter.execute import Precision
from targets.coreml.sdk import coremltools, quiet

ct = coremltools()
with quiet():
    from coremltools.converters.mil.mil import Builder as mb  # noqa: N813  # as its own documentation does
    from coremltools.converters.mil.mil import types

gc.freeze()  # coremltools collects garbage at every conversion; without the imported modules that takes no time

Array = np.ndarray[Any, np.dtype[Any]]
Build = Callable[..., Any]

_MIL_TYPES = {"float32": types.fp32, "float16": types.fp16, "int32": types.int32, "bool": types.bool}


@dataclass(frozen=True)
class Case:
    """An operator with its arguments, what it gets, and what it must give, computed by something else."""

    name: str
    build: Build
    oracle: Callable[..., Any]
    inputs: tuple[Array, ...]
    opset: str = "iOS18"
    rtol: float = 1e-5
    atol: float = 1e-6

    @property
    def operator(self) -> str:
        """The operator's name; what follows a space tells variants apart."""
        return self.name.split(" ")[0]

    def check(self) -> None:
        got = run(self.build, *self.inputs, opset=self.opset)
        expected = self.oracle(*self.inputs)
        expected = expected if isinstance(expected, tuple | list) else (expected,)
        assert len(got) == len(expected)
        for one, other in zip(got, expected, strict=True):
            assert one.shape == np.shape(other)
            np.testing.assert_allclose(one, other, rtol=self.rtol, atol=self.atol)


def save(build: Build, *inputs: Array, path: Path, opset: str = "iOS18") -> Path:
    """A package whose program is what ``build`` gives for placeholders like the inputs."""
    target = ct.target[opset]
    specs = [mb.TensorSpec(shape=array.shape, dtype=_MIL_TYPES[array.dtype.name]) for array in inputs]

    def body(*placeholders: Any) -> Any:
        return _outputs(build(*placeholders))

    fixed = (  # coremltools counts the parameters of the code object
        lambda: body(),
        lambda a: body(a),
        lambda a, b: body(a, b),
        lambda a, b, c: body(a, b, c),
        lambda a, b, c, d: body(a, b, c, d),
    )[len(inputs)]
    program = mb.program(input_specs=specs, opset_version=target)(fixed)
    with quiet():
        model = ct.convert(
            program,
            convert_to="mlprogram",
            minimum_deployment_target=target,
            compute_precision=ct.precision.FLOAT32,
            pass_pipeline=ct.PassPipeline.EMPTY,
            skip_model_load=True,
        )
        model.save(str(path))
    return path


def _outputs(results: Any) -> Any:
    """A package gives no booleans: they leave as int32."""
    listed = results if isinstance(results, tuple | list) else (results,)
    cast = tuple(mb.cast(x=one, dtype="int32") if one.dtype == types.bool else one for one in listed)
    return cast if len(cast) > 1 else cast[0]


def run(build: Build, *inputs: Array, opset: str = "iOS18", precision: Precision = "float32") -> tuple[Array, ...]:
    """The outputs of the saved program, in order."""
    with tempfile.TemporaryDirectory() as folder:
        package = save(build, *inputs, path=Path(folder) / "case.mlpackage", opset=opset)
        interpreter = Interpreter(package, precision=precision)
    outputs = interpreter.run(dict(zip(interpreter.inputs, inputs, strict=True)))
    return tuple(outputs[name] for name in interpreter.outputs)


def floats(*shape: int, seed: int = 0, low: float | None = None, high: float = 1.0) -> Array:
    """Seeded float32 values: standard normal, or uniform where a range is given."""
    generator = np.random.default_rng(seed)
    values = generator.standard_normal(shape) if low is None else generator.uniform(low, high, shape)
    return values.astype(np.float32)


def integers(*shape: int, low: int = -9, high: int = 10, seed: int = 0) -> Array:
    """Seeded int32 values in ``[low, high)``."""
    return np.random.default_rng(seed).integers(low, high, shape).astype(np.int32)


def onnx_runs(op: str, *, opset: int = 20, outputs: int = 1, **attributes: Any) -> Callable[..., Any]:
    """The same operator in onnxruntime, an independent implementation; inputs that are None are left out."""

    def run_onnx(*inputs: Array | None) -> Any:
        names = [f"x{index}" if array is not None else "" for index, array in enumerate(inputs)]
        node = helper.make_node(op, names, [f"y{index}" for index in range(outputs)], **attributes)
        given = [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
            for name, array in zip(names, inputs, strict=True)
            if array is not None
        ]
        results = [
            helper.make_tensor_value_info(f"y{index}", onnx.TensorProto.UNDEFINED, None) for index in range(outputs)
        ]
        graph = helper.make_graph([node], "one", given, [onnx.ValueInfoProto(name=value.name) for value in results])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
        session = onnxruntime.InferenceSession(model.SerializeToString())
        values = session.run(
            None, {name: array for name, array in zip(names, inputs, strict=True) if array is not None}
        )
        return tuple(values) if outputs > 1 else values[0]

    return run_onnx


__all__ = ["Case", "ct", "floats", "integers", "mb", "numpy_helper", "onnx_runs", "run", "save", "types"]
