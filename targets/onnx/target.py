"""The ONNX Runtime target."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.core import Model
from pipeline.recipe import OnnxConfig
from pipeline.target import Capabilities, Estimated, Lowered, OpenedFile, Placement, Session, Skipped, Variant

if TYPE_CHECKING:
    from pipeline.core.arrays import Array

REQUIRED = ("onnx", "onnx_ir", "onnxruntime", "onnxscript")
"""What lowering imports."""


class OnnxTarget:
    """Lowers to a QDQ graph; runs it in onnxruntime. See `pipeline.target.Target`."""

    name = "onnx"
    capabilities = Capabilities(
        weight_dtypes=("int8", "uint8"),
        open_sizes=True,
        source="https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html",
    )

    def __init__(self, config: OnnxConfig | None = None) -> None:
        self._config = config or OnnxConfig()

    @property
    def variants(self) -> tuple[Variant, ...]:
        return self._config.variants

    def missing_package(self) -> str | None:
        return None if all(map(importlib.util.find_spec, REQUIRED)) else "edgewright[onnx]"

    def cannot_run(self) -> str | None:
        return None

    @property
    def may_crash(self) -> bool:
        return True

    def lower(self, model: Model, out_dir: Path, *, name: str, variant: Variant | None = None) -> Lowered:
        from targets.onnx.errors import as_target_error
        from targets.onnx.lowering import lower

        with as_target_error("cannot be written as ONNX", type(model.module).__name__):
            return lower(model, self._config, out_dir, name=name, variant=variant)

    def open(self, path: Path) -> Lowered:
        from targets.onnx.session import read_interface

        return read_interface(path)

    def open_to_run(self, path: Path, *, threads: int) -> OpenedFile:
        from targets.onnx.opened import OnnxFile

        return OnnxFile(path, threads=threads)

    def estimates(self, lowered: Lowered) -> tuple[Estimated | Skipped, ...]:  # noqa: ARG002
        from targets.onnx.providers import unavailable

        return unavailable(self._config.providers)

    def load(self, lowered: Lowered, *, threads: int) -> Session:
        from targets.onnx.providers import usable
        from targets.onnx.session import OnnxSession

        return OnnxSession(lowered, threads, usable(self._config.providers))

    def cross_checks(self, lowered: Lowered, sample: tuple[Array, ...]) -> tuple[Session, ...]:  # noqa: ARG002
        return ()

    def explain(self, lowered: Lowered, model: Model) -> None:
        """Nothing: onnxruntime computes as the program does."""

    def placement(self, lowered: Lowered) -> Placement:
        from targets.onnx.placement import placement

        return placement(lowered)
