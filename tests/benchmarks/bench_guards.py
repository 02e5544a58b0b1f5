"""What it costs that every step checks itself: seconds in the guards, and their share of a whole run.

    python tests/benchmarks/bench_guards.py [demo|mobilenet_v2]

The demo is run as `edgewright demo` runs it, with an empty store. MobileNetV2 at 224x224 is pruned to two thirds of its
MACs, quantized, and exported to all three targets. A guard that calls another is counted once.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import os
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import calibration_data.fashion_mnist
import targets
from pipeline import Budget, PruneConfig, QuantizeConfig, export, from_dataset, prune, quantize, read_recipe, run
from pipeline.execution import prepare
from pipeline.stages.export import stage as export_stage
from pipeline.stages.prune.guard import Guard
from pipeline.stages.quantize import stage as quantize_stage
from pipeline.stages.quantize.graph import canonical
from tests.networks import full_size

GUARDS: tuple[tuple[Any, str], ...] = (
    (prepare, "require_function"),
    (quantize_stage, "require_function"),
    (canonical, "difference_db"),
    (Guard, "__init__"),
    (Guard, "fault_of"),
    (export_stage, "verify"),
)
"""Where each guard is called from, and by which name."""


class Clock:
    """Seconds spent in functions, by name; nested calls count for the outermost."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()
        self._inside = False

    def around(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def timed(*arguments: Any, **keywords: Any) -> Any:
            if self._inside:
                return function(*arguments, **keywords)
            self._inside, started = True, time.perf_counter()
            try:
                return function(*arguments, **keywords)
            finally:
                self._inside = False
                self.seconds[name] += time.perf_counter() - started

        return timed


def main() -> None:
    """Time both, or the one that is asked for."""
    arguments = argparse.ArgumentParser(description=__doc__)
    runs = {"demo": demo, "mobilenet_v2": mobilenet_v2}
    arguments.add_argument("run", nargs="?", choices=runs)
    asked: str | None = arguments.parse_args().run
    for name in [asked] if asked else runs:
        clock = Clock()
        with contextlib.ExitStack() as stack:
            for owner, attribute in GUARDS:
                original = getattr(owner, attribute)
                label = f"{owner.__name__.removeprefix('pipeline.')}.{attribute}"
                setattr(owner, attribute, clock.around(label, original))
                stack.callback(setattr, owner, attribute, original)
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            started = time.perf_counter()
            with contextlib.redirect_stderr(stack.enter_context(Path(os.devnull).open("w"))):
                runs[name](folder)
            whole = time.perf_counter() - started
        guards = sum(clock.seconds.values())
        print(f"{name}: {guards:.1f} s of {whole:.1f} s in guards, {guards / whole:.1%}")
        for label, seconds in clock.seconds.most_common():
            print(f"  {seconds:6.1f} s  {label}")


def demo(folder: Path) -> None:
    """The embedded recipe, from the first stage on."""
    recipe = Path(calibration_data.fashion_mnist.__file__).parent / "recipe.yaml"
    run(read_recipe(recipe), folder / "out", root=recipe.parent, store=folder / "store")


def mobilenet_v2(folder: Path) -> None:
    """One published network of the size that phones run."""
    model = full_size.build("mobilenet_v2")
    data = from_dataset([(image,) for image in full_size.images(32)], model.inputs)
    pruned = prune(model, PruneConfig(macs_ratio=0.67), data)
    quantized = quantize(
        pruned, QuantizeConfig(observers=("minmax",)), data, budget=Budget(metric="agreement", max_drop=1)
    )
    for exported in export(quantized, [targets.get(name) for name in ("onnx", "tflite", "coreml")], folder):
        assert exported.status == "ok", exported.reason


if __name__ == "__main__":
    main()
