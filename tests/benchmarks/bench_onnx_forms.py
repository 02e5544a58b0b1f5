"""The forms that the ONNX lowering could give an operator, timed against each other in one run.

    python tests/benchmarks/bench_onnx_forms.py [--threads 1 2] [--results tests/benchmarks/results/onnx_forms.md]

Every form is a model of its own from integers to integers, as the operator stands in a quantized network. The first of
each is what `targets/onnx` writes; `integer` and `float` tell on what its kernels compute. Nanoseconds are per value.
"""

from __future__ import annotations

import argparse
import math
import statistics
from pathlib import Path

import numpy as np
import onnx
import onnxruntime

from pipeline.machine.processor import cpu_name
from pipeline.machine.timing import Candidate, interleave
from targets.onnx.session import session_options

CONSTANTS = """
<float s = {0.05}, uint8 z = {60}, float t = {0.04}, uint8 k = {10}, float gate = {0.00390625}, uint8 none = {0},
 uint8 twice = {120}, float one = {1.0}>
"""
HEADER = '<ir_version: 10, opset_import: ["" : 21, "com.microsoft" : 1]>'
QUICK_GELU = "f = com.microsoft.QuickGelu <alpha = 1.0> (d)"
FORMS: dict[str, dict[str, str]] = {
    "SiLU": {
        "integer: table and product": """
            d = DequantizeLinear (x, s, z)  a = Sigmoid (d)  b = QuantizeLinear (a, gate, none)
            c = DequantizeLinear (b, gate, none)  f = Mul (d, c)  y = QuantizeLinear (f, t, k)""",
        "float: QuickGelu": f"d = DequantizeLinear (x, s, z)  {QUICK_GELU}  y = QuantizeLinear (f, t, k)",
    },
    "hardswish": {
        "integer: product of clipped integers": """
            d = DequantizeLinear (x, s, z)  b = Clip (x, , twice)  c = DequantizeLinear (b, gate, none)
            f = Mul (d, c)  y = QuantizeLinear (f, t, k)""",
        "float: HardSwish": "d = DequantizeLinear (x, s, z)  f = HardSwish (d)  y = QuantizeLinear (f, t, k)",
    },
    "softmax over the last axis": {
        "float: Softmax": """
            d = DequantizeLinear (x, one, z)  e = Mul (d, s)  f = Softmax <axis = -1> (e)
            y = QuantizeLinear (f, gate, none)""",
        "integer: QLinearSoftmax": """
            d = DequantizeLinear (x, s, z)  f = Softmax <axis = -1> (d)  y = QuantizeLinear (f, gate, none)""",
    },
    "GELU": {
        "float: Gelu": """
            d = DequantizeLinear (x, s, z)  f = com.microsoft.Gelu (d)  y = QuantizeLinear (f, t, k)""",
    },
}
SHAPES = {
    "SiLU": ((1, 96, 112, 112), (1, 672, 14, 14), (8, 96, 112, 112)),
    "hardswish": ((1, 16, 112, 112), (1, 672, 14, 14), (8, 16, 112, 112)),
    "softmax over the last axis": ((1, 3, 197, 197),),
    "GELU": ((1, 1, 197, 768),),
}


def model(form: str, shape: tuple[int, ...]) -> bytes:
    """A form as a model ``uint8 x -> uint8 y`` of one shape."""
    sizes = ", ".join(map(str, shape))
    body = "\n".join(form.split("  "))
    text = f"{HEADER}\nform (uint8[{sizes}] x) => (uint8[{sizes}] y)\n{CONSTANTS}{{\n{body}\n}}"
    return onnx.parser.parse_model(text).SerializeToString()


def nanoseconds(operator: str, shape: tuple[int, ...], threads: int, seconds: float) -> dict[str, float]:
    """The median time per value of every form, taken in turns."""
    values = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)

    def candidate(label: str, form: str) -> Candidate:
        session = onnxruntime.InferenceSession(
            model(form, shape), session_options(threads), providers=["CPUExecutionProvider"]
        )
        return Candidate(runtime=label, device="cpu", call=lambda: session.run(None, {"x": values}))

    forms = FORMS[operator]
    taken = interleave([candidate(*form) for form in forms.items()], seconds_per_candidate=seconds)
    return {
        label: statistics.median(samples) / math.prod(shape) for label, (_, samples) in zip(forms, taken, strict=True)
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--seconds", type=float, default=0.5, help="measuring time per form")
    parser.add_argument("--results", type=Path, help="Markdown file to write the table to")
    arguments = parser.parse_args()
    lines = [
        f"# Forms of operators in ONNX Runtime {onnxruntime.__version__}, {cpu_name()}",
        "\nWritten by `bench_onnx_forms.py`; the form that our files hold is the first of each operator.\n",
        "| operator | shape | threads | form | ns per value | to the first |",
        "|---|---|---:|---|---:|---:|",
    ]
    for operator, shapes in SHAPES.items():
        for shape in shapes:
            for threads in arguments.threads:
                found = nanoseconds(operator, shape, threads, arguments.seconds)
                first = next(iter(found.values()))
                size = "x".join(map(str, shape))
                lines += [
                    f"| {operator} | {size} | {threads} | {label} | {value:.3f} | {value / first:.2f} |"
                    for label, value in found.items()
                ]
    print("\n".join(lines))
    if arguments.results:
        arguments.results.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
