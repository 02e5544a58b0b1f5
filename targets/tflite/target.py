"""The TFLite target."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from pipeline.core import ModelArtifact
from pipeline.recipe import TfliteConfig
from pipeline.target import Capabilities, Estimated, Lowered, Placement, Session, Skipped, Variant
from targets.tflite.capabilities import CAPABILITIES


class TfliteTarget:
    """Lowers to ``.tflite``; runs it in LiteRT with the XNNPACK delegate. See `pipeline.target.Target`."""

    name = "tflite"
    capabilities: Capabilities = CAPABILITIES

    def __init__(self, config: TfliteConfig | None = None) -> None:
        self._config = config or TfliteConfig()

    @property
    def variants(self) -> tuple[Variant, ...]:
        return self._config.variants

    def missing_package(self) -> str | None:
        needed = ("litert_torch", "ai_edge_litert")
        return None if all(map(importlib.util.find_spec, needed)) else "edgewright[tflite]"

    def cannot_run(self) -> str | None:
        return None if importlib.util.find_spec("ai_edge_litert") else "ai-edge-litert is not installed"

    def lower(self, artifact: ModelArtifact, out_dir: Path, *, name: str, variant: Variant | None = None) -> Lowered:
        from targets.tflite.lowering import lower

        assert variant is None  # none is offered yet
        return lower(artifact, out_dir, name=name, goal=self._config.optimize_for)

    def open(self, path: Path) -> Lowered:
        from targets.tflite.session import read_interface

        return read_interface(path)

    def estimates(self, lowered: Lowered) -> tuple[Estimated | Skipped, ...]:
        from targets.tflite.vela import estimate

        return tuple(estimate(lowered.path, configuration) for configuration in self._config.npu)

    def load(self, lowered: Lowered, *, threads: int) -> Session:
        from targets.tflite.session import LitertSession

        return LitertSession(lowered.path, threads=threads)

    def cross_checks(self, lowered: Lowered) -> tuple[Session, ...]:  # noqa: ARG002
        return ()

    def placement(self, lowered: Lowered) -> Placement:
        from targets.tflite.placement import placement

        return placement(lowered.path)
