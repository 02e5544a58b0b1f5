"""Running ``.tflite`` files in LiteRT."""

from __future__ import annotations

from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import cpuinfo
import numpy as np

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

    def __init__(self, path: Path, *, threads: int = 1, reference_kernels: bool = False) -> None:
        self._interpreter = interpreter(path, threads=threads, reference_kernels=reference_kernels)
        signature = self._interpreter.get_signature_runner()
        names = next(iter(self._interpreter._get_full_signature_list().values()))  # the public list is sorted by name
        inputs, outputs = signature.get_input_details(), signature.get_output_details()
        self._inputs = [_Port(inputs[name]) for name in names["inputs"]]
        self._outputs = [_Port(outputs[name]) for name in names["outputs"]]
        kernels = "reference kernels" if reference_kernels else "XNNPACK"
        self.runtime = f"ai-edge-litert {version('ai-edge-litert')} {kernels}"
        self.device = cpu_name()
        self.metrics_source = "reference" if reference_kernels else "measured"

    def run(self, inputs: tuple[Array, ...]) -> tuple[Array, ...]:
        """Float outputs ``(1, …)`` for float inputs ``(1, …)`` in the original model's layout."""
        for port, values in zip(self._inputs, inputs, strict=True):
            self._interpreter.set_tensor(port.index, port.encode(values))
        self._interpreter.invoke()
        return tuple(port.decode(self._interpreter.get_tensor(port.index)) for port in self._outputs)


class _Port:
    """One input or output: its tensor, and how its numbers stand for real values ``scale * (q - zero_point)``."""

    def __init__(self, details: dict[str, Any]) -> None:
        self.index: int = details["index"]
        self._dtype = np.dtype(details["dtype"])
        scale, self._zero_point = details["quantization"]
        self._quantized = scale != 0 and self._dtype.kind in "iu"
        if self._quantized:
            self._scale = np.float32(scale)
            self._inverse_scale = np.float32(1.0 / float(scale))
            self._limits = np.iinfo(self._dtype)

    def encode(self, values: Array) -> Array:
        """Real values as the tensor's numbers, rounded half to even, exactly as torch's ``quantize_per_tensor``."""
        if not self._quantized:
            return values.astype(self._dtype, copy=False)
        steps = np.multiply(values, self._inverse_scale, dtype=np.float32)
        np.rint(steps, out=steps)
        steps += np.float32(self._zero_point)
        np.clip(steps, self._limits.min, self._limits.max, out=steps)
        return steps.astype(self._dtype)

    def decode(self, numbers: Array) -> Array:
        """The tensor's numbers as real values."""
        if not self._quantized:
            return numbers
        return (numbers.astype(np.float32) - np.float32(self._zero_point)) * self._scale


def interpreter(path: Path, *, threads: int = 1, reference_kernels: bool = False) -> Any:
    """LiteRT's interpreter with its tensors allocated."""
    with quiet():
        from ai_edge_litert.interpreter import Interpreter, OpResolverType

        resolver = OpResolverType.BUILTIN_REF if reference_kernels else OpResolverType.AUTO
        loaded = Interpreter(str(path), num_threads=threads, experimental_op_resolver_type=resolver)
        loaded.allocate_tensors()
    return loaded


@cache
def cpu_name() -> str:
    """The processor's brand string."""
    return str(cpuinfo.get_cpu_info().get("brand_raw", "unknown CPU"))
