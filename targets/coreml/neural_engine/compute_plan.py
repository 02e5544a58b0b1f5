"""Where Core ML itself would run each operator, on macOS: ``MLComputePlan`` instead of rules.

https://developer.apple.com/documentation/coreml/mlcomputeplan-1w21n
"""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.target import Fallback, Placement
from targets.coreml.interpreter.package import read_package
from targets.coreml.interpreter.program import read_program
from targets.coreml.neural_engine.rules import IN_FLOAT
from targets.coreml.neural_engine.work import FOLDED, computed_in_float
from targets.coreml.sdk import coremltools, quiet


def placement(package: Path) -> Placement:
    """The plan of this Mac for a package, with the CPU and the Neural Engine to choose from."""
    ct = coremltools()
    with quiet():
        from coremltools.models.compute_plan import MLComputePlan

        compiled = ct.models.utils.compile_model(str(package))
        plan = MLComputePlan.load_from_path(compiled, compute_units=ct.ComputeUnit.CPU_AND_NE)
    total, leaving = 0, Counter[tuple[str, str]]()
    for operation in _walk(plan.model_structure.program.functions["main"].block):
        name = operation.operator_name.rsplit(".", 1)[-1]
        usage = plan.get_compute_device_usage_for_mlprogram_operation(operation)
        if usage is None or name == "const" or name.startswith(FOLDED):
            continue
        total += 1
        if not _is_engine(usage.preferred_compute_device):
            can = any(map(_is_engine, usage.supported_compute_devices))
            leaving[name, "Core ML prefers the CPU" if can else "Core ML does not offer the Neural Engine"] += 1
    program = read_program(read_package(package))
    in_float = Counter((operation.type, IN_FLOAT) for operation in computed_in_float(program))
    return Placement(
        operators=total,
        accelerated=total - leaving.total(),
        fallback=tuple(
            Fallback(op=op, count=count, reason=why)
            for (op, why), count in (*leaving.most_common(), *in_float.most_common())
        ),
        source=f"MLComputePlan on macOS {platform.mac_ver()[0]}",
    )


def _is_engine(device: Any) -> bool:
    return type(device).__name__ == "MLNeuralEngineComputeDevice"


def _walk(block: Any) -> Iterator[Any]:
    for operation in block.operations:
        yield operation
        for inner in operation.blocks:
            yield from _walk(inner)
