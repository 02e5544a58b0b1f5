"""Which operators run in the XNNPACK delegate as integers, and which fall back."""

from __future__ import annotations

import contextlib
import tempfile
from collections import Counter
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter

from pipeline.core import TargetError
from pipeline.target import Fallback, Placement
from targets.tflite.interface import read_metadata
from targets.tflite.opened import refusals
from targets.tflite.session import interpreter
from targets.tflite.vela import compile_for

OUTSIDE = "outside the XNNPACK delegate"
IN_FLOAT = "computed in float in an integer model"
HYBRID = "multiplies int8 weights by float activations, which it quantizes at run time"
CONVERTS = "converts between integers and the floats of other operators"
REQUANTIZES = "changes quantization parameters, through float"

_NO_INT8_KERNEL = "computed in float between integers, by edgewright's choice: XNNPACK has no int8 kernel for it"
KEPT_REASONS = {
    **dict.fromkeys(("BATCH_MATMUL", "GELU", "HARD_SWISH", "SOFTMAX"), _NO_INT8_KERNEL),
    "MUL": "computed in float between integers, by edgewright's choice: the int8 product would round twice",
}
"""Operators that `forms` keeps in float for XNNPACK, and why.

https://github.com/tensorflow/tensorflow/blob/master/tensorflow/lite/delegates/xnnpack/README.md lists its int8 kernels.
"""

DELEGATE = "XNNPACK"
BEFORE = TypeAdapter(dict[str, Placement])


def record_before(content: bytes, path: Path, npus: Sequence[str]) -> None:
    """Keep, next to the model at ``path``, where the operators of the same model without our forms would run.

    Args:
        content: That model.
        npus: Ethos-U configurations to compile it for; one that Vela refuses is left out.
    """
    with tempfile.TemporaryDirectory() as folder:
        plain = Path(folder) / path.name
        plain.write_bytes(content)
        found = {DELEGATE: _in_delegate(plain)}
        for npu in npus:
            with contextlib.suppress(TargetError):
                found[npu] = compile_for(plain, npu).placement
    _before_file(path).write_bytes(BEFORE.dump_json(found))


def read_before(path: Path, where: str = DELEGATE) -> Placement | None:
    """What `record_before` kept for the delegate or for one NPU; None where the model was not rewritten."""
    file = _before_file(path)
    return BEFORE.validate_json(file.read_bytes()).get(where) if file.is_file() else None


def _before_file(path: Path) -> Path:
    return path.with_suffix(".before.json")


def placement(path: Path) -> Placement:
    """Where a model's operators run, and where they would without our forms."""
    return _in_delegate(path).model_copy(update={"before": read_before(path)})


def _in_delegate(path: Path) -> Placement:
    """Ask LiteRT's interpreter what its delegate took over.

    An operator counts as accelerated inside a delegate partition; in a model with integer weights it must also work
    on integers (`QUANTIZE` and `DEQUANTIZE` between floats and integers are conversions, and count as float).
    """
    with refusals(path, "LiteRT cannot load it"):
        nodes = interpreter(path)._get_ops_details()
    partitions = [node for node in nodes if node["op_name"] == "DELEGATE"]
    operators = [node for node in nodes if node["op_name"] != "DELEGATE"]
    inside = delegated(operators, partitions)
    in_float = reasons_for_float(operators, ours=read_metadata(path) is not None)
    fallen: Counter[tuple[str, str]] = Counter()
    for node in operators:
        outside = OUTSIDE if node["index"] not in inside else ""
        reason = "; ".join(filter(None, (outside, in_float.get(node["index"]))))
        if reason:
            fallen[node["op_name"], reason] += 1
    return Placement(
        operators=len(operators),
        accelerated=len(operators) - fallen.total(),
        fallback=tuple(Fallback(op=op, count=count, reason=reason) for (op, reason), count in sorted(fallen.items())),
        source=f"ai-edge-litert {version('ai-edge-litert')} interpreter: {len(partitions)} XNNPACK partition(s)",
    )


def reasons_for_float(operators: Sequence[dict[str, Any]], *, ours: bool) -> dict[int, str]:
    """Why operators of an integer model have float tensors, by their index; nothing for a float model.

    Args:
        ours: Whether edgewright wrote the file, so that the forms in it are its own.
    """
    if not any(np.int8 in node["operand_types"] for node in operators):
        return {}
    makers = {tensor: node for node in operators for tensor in node["outputs"]}
    readers: dict[int, list[dict[str, Any]]] = {}
    for node in operators:
        for tensor in node["inputs"]:
            readers.setdefault(tensor, []).append(node)
    return {
        node["index"]: _reason(node, makers, readers, ours=ours)
        for node in operators
        if np.float32 in (*node["operand_types"], *node["result_types"])
    }


def _reason(
    node: dict[str, Any], makers: dict[int, dict[str, Any]], readers: dict[int, list[dict[str, Any]]], *, ours: bool
) -> str:
    before = {makers[tensor]["op_name"] for tensor in node["inputs"] if tensor in makers}
    after = {reader["op_name"] for tensor in node["outputs"] for reader in readers.get(tensor, ())}
    if node["op_name"] == "DEQUANTIZE":
        return REQUANTIZES if after == {"QUANTIZE"} else CONVERTS
    if node["op_name"] == "QUANTIZE":
        return REQUANTIZES if before == {"DEQUANTIZE"} else CONVERTS
    if np.int8 in node["operand_types"]:
        return HYBRID
    kept = ours and before == {"DEQUANTIZE"} and after <= {"QUANTIZE", "RESHAPE"}
    return KEPT_REASONS.get(node["op_name"], IN_FLOAT) if kept else IN_FLOAT


def delegated(operators: Sequence[dict[str, Any]], partitions: Sequence[dict[str, Any]]) -> set[int]:
    """Indices of the operators that the partitions replace: all that lie between a partition's outputs and inputs."""
    producer = {output: node for node in operators for output in node["outputs"]}
    inside: set[int] = set()
    for partition in partitions:
        borders = set(partition["inputs"])
        pending = list(partition["outputs"])
        while pending:
            tensor = pending.pop()
            node = producer.get(tensor)
            if node is None or tensor in borders or node["index"] in inside:
                continue
            inside.add(node["index"])
            pending.extend(node["inputs"])
    return inside
