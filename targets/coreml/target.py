"""The Core ML target."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from pipeline.core import Model
from pipeline.recipe import CoremlConfig
from pipeline.target import Capabilities, Latency, Lowered, OpenedFile, Placement, Session, Skipped, Variant

if TYPE_CHECKING:
    from pipeline.core.arrays import Array
    from targets.coreml.interpreter.execute import Precision


EXACT_DB = 60.0
"""SQNR in FP32 arithmetic from which a package computes what it should."""


class CoremlTarget:
    """Lowers to an ML Program; runs it in Core ML on macOS and in the reference interpreter elsewhere.

    See `pipeline.target.Target`.
    """

    name = "coreml"
    capabilities = Capabilities(
        weight_dtypes=("int8", "uint8"),
        source="https://apple.github.io/coremltools/docs-guides/source/opt-quantization-overview.html",
    )

    def __init__(self, config: CoremlConfig | None = None) -> None:
        self._config = config or CoremlConfig()

    @property
    def variants(self) -> tuple[Variant, ...]:
        return self._config.variants

    def missing_package(self) -> str | None:
        return None if importlib.util.find_spec("coremltools") else "edgewright[coreml]"

    def cannot_run(self) -> str | None:
        return None

    @property
    def may_crash(self) -> bool:
        return sys.platform == "darwin"

    def lower(self, model: Model, out_dir: Path, *, name: str, variant: Variant | None = None) -> Lowered:
        from targets.coreml.conversion import errors
        from targets.coreml.lowering import lower

        with errors(name):
            return lower(model, self._config, out_dir, name=name, variant=variant)

    def open(self, path: Path) -> Lowered:
        from targets.coreml.session import read_interface

        return read_interface(path)

    def open_to_run(self, path: Path, *, threads: int) -> OpenedFile:
        from targets.coreml.opened import CoremlFile, InterpretedFile

        if sys.platform != "darwin":
            return InterpretedFile(path)
        return CoremlFile(self.load(self.open(path), threads=threads), path)

    def estimates(self, lowered: Lowered) -> tuple[Latency, ...]:
        """Also, on macOS, what each choice of compute units takes on this Mac."""
        from targets.coreml.neural_engine import estimates

        return (*_on_this_mac(lowered), *estimates(lowered.path, lowered.batch_size or 1))

    def load(self, lowered: Lowered, *, threads: int) -> Session:  # noqa: ARG002  # Core ML has no thread setting
        from targets.coreml.session import CoremlSession, InterpreterSession

        return (
            CoremlSession(lowered, self._config.compute_units)
            if sys.platform == "darwin"
            else InterpreterSession(lowered)
        )

    def cross_checks(self, lowered: Lowered, sample: tuple[Array, ...]) -> tuple[Session, ...]:  # noqa: ARG002
        """The interpreter in FP32, and beside Core ML itself also in FP16."""
        from targets.coreml.session import InterpreterSession

        others: tuple[Precision, ...] = ("float16", "float32") if sys.platform == "darwin" else ("float32",)
        return tuple(InterpreterSession(lowered, precision=precision) for precision in others)

    def explain(self, lowered: Lowered, model: Model) -> str | None:
        """FP16 arithmetic, else FP16 constants: the same package in FP32 follows the model."""
        from pipeline.models.noise import rounding_noise_db, within_noise
        from pipeline.tasks.comparison import sqnr_db
        from pipeline.tasks.prediction import outputs_of, session_predictor
        from targets.coreml.session import InterpreterSession

        if self._config.precision == "float32":
            return None
        expected, noise = outputs_of(model.module, model.examples), rounding_noise_db(model.module, model.examples)
        with TemporaryDirectory(dir=lowered.path.parent, prefix=".float32-") as folder:
            for package in self._in_fp32(lowered, model, Path(folder)):
                outputs = session_predictor(InterpreterSession(package, precision="float32"))(model.examples)
                reached = list(map(sqnr_db, expected, outputs))
                if min(reached) >= EXACT_DB:
                    return f"FP16 arithmetic; in FP32 the package reaches {EXACT_DB:g} dB and more"
                if all(map(within_noise, reached, noise)):
                    return f"FP16 arithmetic; in FP32 it reaches {min(reached):.1f} dB, and the order of sums decides"
        return None

    def _in_fp32(self, lowered: Lowered, model: Model, folder: Path) -> Iterator[Lowered]:
        """The package itself and, where its constants matter, one whose constants are in FP32, too."""
        from targets.coreml.lowering import lower

        yield lowered
        known = {} if lowered.batch_size is None else {"batch_sizes": (lowered.batch_size,)}  # others failed
        config = self._config.model_copy(update={"precision": "float32", **known})
        yield lower(model, config, folder, name="model")

    def placement(self, lowered: Lowered) -> Placement | None:
        if sys.platform == "darwin":
            from targets.coreml.neural_engine import compute_plan

            return compute_plan.placement(lowered.path)
        from targets.coreml.neural_engine import placement

        return placement(lowered.path)


def _on_this_mac(lowered: Lowered) -> tuple[Latency, ...]:
    if sys.platform != "darwin":
        return (Skipped(runtime="Core ML", device="every compute unit", reason="Core ML runs only on macOS"),)
    from targets.coreml.compute_units import measure

    return measure(lowered)
