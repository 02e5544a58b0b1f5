"""Oracles of the files: each is run straight in its own runtime, not through the product's sessions."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from torch import Tensor

import targets
from pipeline.target import Lowered
from tests.fuzz.findings import Finding, of_exception, of_refusal
from tests.fuzz.measure import Array, Difference, bounds, differences, shaken
from tests.fuzz.subject import SHOWN, Subject, fixed_batch, in_steps, outputs_of

INT8_DB, FP32_DB = 30.0, 60.0
HALF_DB = 15.0
"""The least of an FP16 run whose package is right in FP32 arithmetic: FP16 explains noise, not another answer."""


class Misnamed(Exception):  # noqa: N818  # becomes a finding
    """A file's inputs and outputs are not called as the product says."""


Run = Callable[[Lowered, Sequence[Array]], list[Array]]


def run_onnxruntime(file: Lowered, inputs: Sequence[Array]) -> list[Array]:
    """A file in onnxruntime, in as many steps as its batch size asks for."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 3, 1
    session = ort.InferenceSession(str(file.path), options, providers=["CPUExecutionProvider"])
    takes = [port.name for port in session.get_inputs()]
    _check_names(takes, [spec.name for spec in file.inputs])
    _check_names(file.outputs, [port.name for port in session.get_outputs()])

    def run(part: Sequence[Array]) -> list[Array]:
        given = {spec.name: array for spec, array in zip(file.inputs, part, strict=True)}
        return session.run(list(file.outputs), {name: given[name] for name in takes})  # one that nothing reads is gone

    return in_steps(run, inputs, file.batch_size or len(inputs[0]))


def _litert(*, plain: bool) -> Run:
    def run(file: Lowered, inputs: Sequence[Array]) -> list[Array]:
        """A file in LiteRT, sample by sample; integers are decoded by the file's own scales."""
        from ai_edge_litert.interpreter import Interpreter, OpResolverType

        resolver = OpResolverType.BUILTIN_REF if plain else OpResolverType.AUTO
        interpreter = Interpreter(str(file.path), num_threads=1, experimental_op_resolver_type=resolver)
        interpreter.allocate_tensors()
        signature = next(iter(interpreter._get_full_signature_list().values()))
        takes = {port["index"]: port for port in interpreter.get_input_details()}
        gives = {port["index"]: port for port in interpreter.get_output_details()}
        _check_names(signature["inputs"], [spec.name for spec in file.inputs])
        _check_names(file.outputs, signature["outputs"])

        def one(part: Sequence[Array]) -> list[Array]:
            for spec, array in zip(file.inputs, part, strict=True):
                if spec.name in signature["inputs"]:
                    port = takes[signature["inputs"][spec.name]]
                    interpreter.set_tensor(port["index"], _encoded(array, port))
            interpreter.invoke()
            ports = [gives[signature["outputs"][name]] for name in file.outputs]
            return [_decoded(interpreter.get_tensor(port["index"]), port) for port in ports]

        return in_steps(one, inputs, 1)

    return run


def _check_names(asked: Iterable[str], there: Collection[str]) -> None:
    missing = [name for name in asked if name not in there]
    if missing:
        raise Misnamed(f"{', '.join(missing)} not among {', '.join(there)}")


def _encoded(values: Array, port: dict[str, Any]) -> Array:
    scale, zero = port["quantization"]
    if scale and values.dtype.kind == "f":
        steps = np.rint(values.astype(np.float32) * np.float32(1 / np.float64(scale))) + zero
        limits = np.iinfo(port["dtype"])
        return np.clip(steps, limits.min, limits.max).astype(port["dtype"])
    return values.astype(port["dtype"])


def _decoded(numbers: Array, port: dict[str, Any]) -> Array:
    scale, zero = port["quantization"]
    if scale and numbers.dtype.kind in "iu":
        return (numbers.astype(np.float32) - zero) * np.float32(scale)
    return numbers.copy()


def _coreml(*, half: bool) -> Run:
    def run(file: Lowered, inputs: Sequence[Array]) -> list[Array]:
        """A package in the project's interpreter of Core ML programs, the one runtime for them outside macOS."""
        target = targets.get("coreml")
        session = (
            target.load(file, threads=1)
            if half
            else target.cross_checks(file, tuple(array[:1] for array in inputs))[-1]
        )
        return [np.asarray(output) for output in session.run(tuple(inputs))]

    return run


RUNTIMES: dict[str, dict[str, Run]] = {
    "onnx": {"onnxruntime": run_onnxruntime},
    "tflite": {"XNNPACK": _litert(plain=False), "plain kernels": _litert(plain=True)},
    "coreml": {"FP32 arithmetic": _coreml(half=False), "FP16 arithmetic": _coreml(half=True)},
}


def files_of(target: str) -> Callable[[Subject], Iterator[Finding]]:
    """The oracle of one target: its INT8 file follows the program, and its FP32 file the module."""

    def oracle(subject: Subject) -> Iterator[Finding]:
        exported = subject.exported(target)
        if exported.status != "ok" or exported.optimized is None or exported.original is None:
            yield of_refusal(target, exported.reason or "")
            return
        count = 1 if any(array.ndim == 0 for array in subject.expected) else SHOWN
        tensors = [tensor[:count] for tensor in subject.samples]
        program = subject.program.module
        expected = outputs_of(program, tensors)
        moved = in_steps(lambda part: shaken(program, part), tensors, fixed_batch(program) or count)
        asked = bounds(expected, moved, most=INT8_DB, share=10.0)
        yield from _runs(subject, target, "int8", exported.optimized, tensors, expected, asked)
        expected = outputs_of(subject.built.module, tensors)
        precise = [array[:count] for array in subject.precise] if count > 1 else expected
        asked = bounds(expected, precise, most=FP32_DB, share=17.0, below=10)
        yield from _runs(subject, target, "fp32", exported.original, tensors, expected, asked)

    oracle.__name__ = target
    return oracle


def _runs(
    subject: Subject,
    target: str,
    variant: str,
    file: Lowered,
    tensors: list[Tensor],
    expected: list[Array],
    asked: list[float],
) -> Iterator[Finding]:
    """Run a file in every runtime of its target."""
    arrays = [tensor.numpy() for tensor in tensors]
    found: list[Difference] = []
    for name, run in RUNTIMES[target].items():
        oracle = f"{target} {variant}, {name}"
        if name == "FP16 arithmetic":
            if variant == "fp32" or found:
                continue
            asked = [min(bound, HALF_DB) for bound in asked]
        with subject.stage(f"run {oracle}"):
            try:
                got = run(file, arrays)
            except Misnamed as error:
                yield Finding(oracle, "wrong", "names", str(error))
                continue
            except Exception as error:  # runtimes raise a class per status code
                if name == "plain kernels" and "Didn't find op" in str(error):
                    continue  # they were not written for every operator; the product says so
                yield of_exception(oracle, error)
                continue
        found = differences(expected, got, asked, any_integer=target != "onnx")
        if found:
            yield Finding(oracle, "wrong", found[0].what, "; ".join(map(str, found)))
        else:
            yield Finding(oracle, "right")
