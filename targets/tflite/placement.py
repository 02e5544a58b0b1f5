"""Which operators run in the XNNPACK delegate as integers, and which fall back."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.target import Fallback, Placement
from targets.tflite.session import interpreter

OUTSIDE = "outside the XNNPACK delegate"
IN_FLOAT = "computed in float in an integer model"


def placement(path: Path) -> Placement:
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
