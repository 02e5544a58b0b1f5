"""README's table of architectures: quantizes each network, lowers it to every target, and writes the rows.

The networks are those of `tests.networks.architectures`.

``python -m tests.architecture_table`` measures all of them; with names, those rows only.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import targets
from pipeline.core import EdgewrightError, Model
from pipeline.recipe import Budget, QuantizeConfig
from pipeline.stages.quantize import quantize
from tests.networks.architectures import ARCHITECTURES, Architecture

README = Path(__file__).parents[1] / "README.md"
START, END = "<!-- architectures: python -m tests.architecture_table -->", "<!-- /architectures -->"
TARGETS = ("onnx", "coreml", "tflite")
HEADER = f"| Network | INT8 share of MACs | SQNR | Seconds | {' | '.join(TARGETS)} |\n|---|---|---|---|---|---|---|"


def main(names: list[str]) -> None:
    """Measure some architectures, or all, and put their rows into README."""
    rows = read_rows(README.read_text())
    for name in names or ARCHITECTURES:
        rows[name] = row(ARCHITECTURES[name])
        print(rows[name], flush=True)
        text = README.read_text()
        before, rest = text.split(START)
        after = rest.split(END)[1]
        ordered = [rows[known] for known in ARCHITECTURES if known in rows]
        README.write_text(f"{before}{START}\n{HEADER}\n{chr(10).join(ordered)}\n{END}{after}")


def read_rows(text: str) -> dict[str, str]:
    """The rows of a README by the network's name."""
    lines = text.split(START)[1].split(END)[0].strip().splitlines()[2:]
    return {line.split("|")[1].strip(): line for line in lines}


def row(architecture: Architecture) -> str:
    """One row: the quantize stage with its defaults, judged on its held-out samples; seconds are the stage's own."""
    started = time.process_time()
    int8 = quantize(
        architecture.model(),
        QuantizeConfig(mixed_precision=False),
        architecture.samples(64),
        budget=Budget(metric="agreement"),
        held_out=architecture.samples(64, seed=2),
    )
    seconds = time.process_time() - started
    details = int8.history[-1].details
    cells = [
        architecture.name,
        f"{details['int8_macs_ratio']:.0%}",
        f"{details['held_out']['sqnr_db']:.1f} dB",
        f"{seconds:.0f}",
        *(lowers(int8, name) for name in TARGETS),
    ]
    return f"| {' | '.join(cells)} |"


def lowers(int8: Model, name: str) -> str:
    """``ok``, or why the target cannot hold it."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            targets.get(name).lower(int8, Path(folder), name="model")
        except EdgewrightError as error:
            return error.problem.replace("|", "/").splitlines()[0]
    return "ok"


if __name__ == "__main__":
    main(sys.argv[1:])
