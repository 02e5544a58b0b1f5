"""Running ``.tflite`` files in LiteRT."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from pipeline.core import TargetError, TensorSpec
from pipeline.machine import cpu_name
from pipeline.target import Lowered
from targets.tflite.sdk import quiet

if TYPE_CHECKING:
    from pipeline.target import Array


class LitertSession:
    """A ``.tflite`` file in LiteRT's interpreter, on the CPU with XNNPACK. See `pipeline.target.Session`.

    An integer artefact takes and gives integers. `run` converts from and to the float values of the original model,
    so a measured time includes that conversion, as an application that starts from floats would pay it.

    Args:
        reference_kernels: Run TensorFlow Lite's plain loops, which NPUs are bit-exact to, instead of XNNPACK. Slow:
            an oracle for accuracy, never for time.
    """

    metrics_source: Literal["measured", "reference"]

    def __init__(self, model: Path | bytes, *, threads: int = 1, reference_kernels: bool = False) -> None:
        self._interpreter = interpreter(model, threads=threads, reference_kernels=reference_kernels)
        self._inputs = [Port(details) for details in self._interpreter.get_input_details()]
        self._outputs = [Port(details) for details in self._interpreter.get_output_details()]
        kernels = "reference kernels" if reference_kernels else "XNNPACK"
        self.runtime = f"ai-edge-litert {version('ai-edge-litert')} {kernels}"
        self.device = cpu_name()
        self.metrics_source = "reference" if reference_kernels else "measured"

    def run(self, inputs: tuple[Array, ...]) -> tuple[Array, ...]:
        """Float outputs ``(1, …)`` for float inputs ``(1, …)`` in the original model's layout."""
        numbers = self.run_integers(inputs)
        return tuple(port.decode(values) for port, values in zip(self._outputs, numbers, strict=True))

    def run_integers(self, inputs: tuple[Array, ...]) -> tuple[Array, ...]:
        """The numbers that the output tensors hold, before they are scaled to real values."""
        for port, values in zip(self._inputs, inputs, strict=True):
            self._interpreter.set_tensor(port.index, port.encode(values))
        self._interpreter.invoke()
        return tuple(self._interpreter.get_tensor(port.index) for port in self._outputs)


class Port:
    """One input or output: its tensor, and how its numbers stand for real values ``scale * (q - zero_point)``."""

    def __init__(self, details: dict[str, Any]) -> None:
        self.index: int = details["index"]
        self._dtype = np.dtype(details["dtype"])
        scale, self._zero_point = details["quantization"]
        self.quantized = scale != 0 and self._dtype.kind in "iu"
        if self.quantized:
            self._scale = np.float32(scale)
            self._inverse_scale = np.float32(1.0 / float(scale))
            self._limits = np.iinfo(self._dtype)

    def encode(self, values: Array) -> Array:
        """Real values as the tensor's numbers, rounded half to even, exactly as torch's ``quantize_per_tensor``."""
        if not self.quantized:
            return values.astype(self._dtype, copy=False)
        steps = np.multiply(values, self._inverse_scale, dtype=np.float32)
        np.rint(steps, out=steps)
        steps += np.float32(self._zero_point)
        np.clip(steps, self._limits.min, self._limits.max, out=steps)
        return steps.astype(self._dtype)

    def decode(self, numbers: Array) -> Array:
        """The tensor's numbers as real values."""
        if not self.quantized:
            return numbers
        return (numbers.astype(np.float32) - np.float32(self._zero_point)) * self._scale


def interpreter(model: Path | bytes, *, threads: int = 1, reference_kernels: bool = False) -> Any:
    """LiteRT's interpreter with its tensors allocated."""
    with quiet():
        from ai_edge_litert.interpreter import Interpreter, OpResolverType

        resolver = OpResolverType.BUILTIN_REF if reference_kernels else OpResolverType.AUTO
        source = {"model_content": model} if isinstance(model, bytes) else {"model_path": str(model)}
        loaded = Interpreter(**source, num_threads=threads, experimental_op_resolver_type=resolver)
        loaded.allocate_tensors()
    return loaded


def read_interface(path: Path) -> Lowered:
    """What a saved model takes and gives, named by its signature. See `pipeline.target.Target.open`."""
    if not path.is_file():
        raise TargetError("no such file", where=str(path))
    try:
        loaded = interpreter(path)
    except (ValueError, RuntimeError) as error:
        raise TargetError(f"LiteRT cannot load it: {str(error).splitlines()[0]}", where=str(path)) from None
    inputs, outputs = loaded.get_input_details(), loaded.get_output_details()
    names = {port["index"]: port["name"] for port in (*inputs, *outputs)}
    for signature in loaded._get_full_signature_list().values():
        names |= {index: name for ports in signature.values() for name, index in ports.items()}
    quantized = any(Port(port).quantized for port in (*inputs, *outputs))
    return Lowered(
        path=path,
        variant="int8" if quantized else "fp32",
        inputs=tuple(
            TensorSpec.model_validate(
                {
                    "name": names[port["index"]],
                    "shape": port["shape"][1:].tolist(),
                    "dtype": "float32" if Port(port).quantized else np.dtype(port["dtype"]).name,
                }
            )
            for port in inputs
        ),
        outputs=tuple(names[port["index"]] for port in outputs),
        batch_size=int(inputs[0]["shape"][0]),
    )
