"""Running ``.tflite`` files in LiteRT."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from pipeline.core import TargetError, TensorSpec
from pipeline.machine.processor import all_cores, cpu_name
from pipeline.target import Lowered
from targets.tflite.interface import read_metadata
from targets.tflite.sdk import plain_errors, quiet

if TYPE_CHECKING:
    from pipeline.target import Array


class LitertSession:
    """A ``.tflite`` file in LiteRT's interpreter, on the CPU with XNNPACK. See `pipeline.target.Session`.

    An integer artifact takes and gives integers. `run` converts from and to the float values of the original model,
    so a measured time includes that conversion, as an application that starts from floats would pay it.

    Args:
        reference_kernels: Run TensorFlow Lite's plain loops, which NPUs are bit-exact to, instead of XNNPACK. Slow:
            an oracle for accuracy, never for time.
    """

    metrics_source: Literal["measured", "reference"]

    def __init__(self, model: Path | bytes, *, threads: int = 1, reference_kernels: bool = False) -> None:
        self._interpreter = interpreter(model, threads=threads, reference_kernels=reference_kernels)
        described = read_metadata(model) or {"inputs": ({},) * len(self._interpreter.get_input_details())}
        self._inputs = [
            Port(details, channels_last=facts.get("layout") == "nhwc")
            for details, facts in zip(self._interpreter.get_input_details(), described["inputs"], strict=True)
        ]
        self._outputs = [Port(details) for details in self._interpreter.get_output_details()]
        self.batch_size: int | None = int(self._interpreter.get_input_details()[0]["shape"][0])
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
        with plain_errors("LiteRT cannot run it"):
            for port, values in zip(self._inputs, inputs, strict=True):
                self._interpreter.set_tensor(port.index, port.encode(values))
            self._interpreter.invoke()
        return tuple(self._interpreter.get_tensor(port.index) for port in self._outputs)


class ReferenceKernelSession:
    """A ``.tflite`` file in the reference kernels, one interpreter per core. See `pipeline.target.Session`."""

    metrics_source: Literal["measured", "reference"] = "reference"
    batch_size = None
    """It takes any number of samples at once, and shares them out."""

    def __init__(self, model: Path) -> None:
        self._sessions = [LitertSession(model, reference_kernels=True) for _ in range(all_cores())]
        self.runtime, self.device = self._sessions[0].runtime, self._sessions[0].device

    def run(self, inputs: tuple[Array, ...]) -> tuple[Array, ...]:
        """Float outputs ``(N, …)`` for float inputs ``(N, …)``."""

        def run_share(start: int) -> list[tuple[Array, ...]]:
            session = self._sessions[start]
            mine = range(start, len(inputs[0]), len(self._sessions))
            return [session.run(tuple(array[i : i + 1] for array in inputs)) for i in mine]

        with ThreadPoolExecutor(len(self._sessions)) as pool:  # the interpreter lets go of the GIL
            shares = list(pool.map(run_share, range(len(self._sessions))))
        count = len(self._sessions)
        in_order = [shares[index % count][index // count] for index in range(len(inputs[0]))]
        return tuple(np.concatenate(outputs) for outputs in zip(*in_order, strict=True))

    def seconds_per_sample(self, sample: tuple[Array, ...]) -> float:
        """Duration of one forward pass of one interpreter, on a real sample ``(1, …)``."""
        started = time.perf_counter()
        self._sessions[0].run(sample)
        return time.perf_counter() - started


class Port:
    """One input or output: its tensor, and how its numbers encode real values: ``scale * (q - zero_point)``.

    Args:
        channels_last: Whether the tensor holds as ``(N, H, W, C)`` what the original model takes as ``(N, C, H, W)``.
    """

    def __init__(self, details: dict[str, Any], *, channels_last: bool = False) -> None:
        self.index: int = details["index"]
        self._channels_last = channels_last
        self._dtype = np.dtype(details["dtype"])
        scale, self._zero_point = details["quantization"]
        self.quantized = scale != 0 and self._dtype.kind in "iu"
        if self.quantized:
            self._scale = np.float32(scale)
            self._inverse_scale = np.float32(1.0 / float(scale))
            self._limits = np.iinfo(self._dtype)

    def encode(self, values: Array) -> Array:
        """Real values as the tensor's numbers, rounded half to even, exactly as torch's ``quantize_per_tensor``."""
        if (values.dtype.kind == "f") != (self.quantized or self._dtype.kind == "f"):
            wanted = "real numbers" if self.quantized or self._dtype.kind == "f" else "integers"
            raise TargetError(f"an input takes {wanted}, not {values.dtype}", fix="give the original model's values")
        if self._channels_last:
            values = np.ascontiguousarray(values.transpose(0, 2, 3, 1))
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
    described = read_metadata(path)
    if described is not None:
        specs = tuple(
            TensorSpec(name=facts["name"], shape=facts["shape"], dtype=facts["dtype"]) for facts in described["inputs"]
        )
        variant = described["variant"]
    else:
        specs = tuple(_spec(port, names[port["index"]]) for port in inputs)
        variant = "int8" if any(Port(port).quantized for port in (*inputs, *outputs)) else "fp32"
    return Lowered(
        path=path,
        variant=variant,
        inputs=specs,
        outputs=tuple(names[port["index"]] for port in outputs),
        batch_size=int(inputs[0]["shape"][0]),
    )


def _spec(details: dict[str, Any], name: str) -> TensorSpec:
    dtype = "float32" if Port(details).quantized else np.dtype(details["dtype"]).name
    return TensorSpec.model_validate({"name": name, "shape": details["shape"][1:].tolist(), "dtype": dtype})
