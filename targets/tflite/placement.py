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
from targets.tflite.session import interpreter
from targets.tflite.vela import compile_for

OUTSIDE = "outside the XNNPACK delegate"
IN_FLOAT = "computed in float in an integer model"


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
    on integers (`QUANTIZE` and `DEQUANTIZE` are conversions, and count as float).
    """
    nodes = interpreter(path)._get_ops_details()
    partitions = [node for node in nodes if node["op_name"] == "DELEGATE"]
    operators = [node for node in nodes if node["op_name"] != "DELEGATE"]
    inside = delegated(operators, partitions)
    integer_model = any(np.int8 in node["operand_types"] for node in operators)
    fallen: Counter[tuple[str, str]] = Counter()
    for node in operators:
        if node["index"] not in inside:
            fallen[node["op_name"], OUTSIDE] += 1
        elif integer_model and np.float32 in (*node["operand_types"], *node["result_types"]):
            fallen[node["op_name"], IN_FLOAT] += 1
    return Placement(
        operators=len(operators),
        accelerated=len(operators) - fallen.total(),
        fallback=tuple(Fallback(op=op, count=count, reason=reason) for (op, reason), count in sorted(fallen.items())),
        source=f"ai-edge-litert {version('ai-edge-litert')} interpreter: {len(partitions)} XNNPACK partition(s)",
    )


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
