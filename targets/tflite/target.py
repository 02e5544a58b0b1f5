"""The TFLite target."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.core import Model, TargetError
from pipeline.machine.processor import cpu_name
from pipeline.recipe import TfliteConfig
from pipeline.target import Capabilities, Estimated, Latency, Lowered, OpenedFile, Placement, Session, Skipped, Variant
from targets.tflite.sdk import plain_errors

if TYPE_CHECKING:
    from pipeline.core.arrays import Array

PLAIN_KERNELS = "LiteRT's plain kernels"
SLOW_S = 0.02
"""Seconds of one sample in the reference kernels above which they are run only where the recipe asks for it."""


class TfliteTarget:
    """Lowers to ``.tflite``; runs it in LiteRT with the XNNPACK delegate. See `pipeline.target.Target`."""

    name = "tflite"
    capabilities = Capabilities(
        weight_dtypes=("int8",), source="https://ai.google.dev/edge/litert/models/quantization_spec"
    )

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

    @property
    def may_crash(self) -> bool:
        return True

    @plain_errors("it cannot be written as TFLite")
    def lower(self, model: Model, out_dir: Path, *, name: str, variant: Variant | None = None) -> Lowered:
        from targets.tflite.lowering import lower

        return lower(model, self._config, out_dir, name=name, variant=variant)

    @plain_errors("LiteRT cannot load it")
    def open(self, path: Path) -> Lowered:
        from targets.tflite.session import read_interface

        return read_interface(path)

    def open_to_run(self, path: Path, *, threads: int) -> OpenedFile:
        from targets.tflite.opened import TfliteFile

        return TfliteFile(path, threads=threads)

    @plain_errors("no estimate for another device")
    def estimates(self, lowered: Lowered) -> tuple[Latency, ...]:
        from targets.tflite.android import time_on_phone
        from targets.tflite.aot import compile_ahead
        from targets.tflite.lowering import for_npu
        from targets.tflite.placement import read_before
        from targets.tflite.vela import estimate

        config, model = self._config, for_npu(lowered.path)
        return (
            *(_with_before(estimate(model, npu), read_before(lowered.path, npu)) for npu in config.npu),
            *(compile_ahead(model, chip) for chip in config.aot),
            *(() if config.android is None else (time_on_phone(lowered.path, config.android),)),
        )

    @plain_errors("LiteRT cannot load it")
    def load(self, lowered: Lowered, *, threads: int) -> Session:
        from targets.tflite.session import LitertSession

        return LitertSession(lowered.path, threads=threads)

    def cross_checks(self, lowered: Lowered, sample: tuple[Array, ...]) -> tuple[Session | Skipped, ...]:
        from targets.tflite.lowering import for_npu
        from targets.tflite.session import ReferenceKernelSession

        if lowered.variant != "int8" or self._config.reference_kernels is False:
            return ()
        try:
            with plain_errors("they do not run it"):
                session = ReferenceKernelSession(for_npu(lowered.path))
                seconds = session.seconds_per_sample(sample)
        except TargetError as error:
            return (Skipped(runtime=PLAIN_KERNELS, device=cpu_name(), reason=error.problem),)
        if self._config.reference_kernels is None and seconds > SLOW_S:
            pace = f"they take {seconds * 1e3:.0f} ms a sample, more than {SLOW_S * 1e3:.0f}"
            reason = f"{pace}; reference_kernels: true runs them"
            return (Skipped(runtime=session.runtime, device=session.device, reason=reason),)
        return (session,)

    @plain_errors("its tensors cannot be compared")
    def explain(self, lowered: Lowered, model: Model) -> str | None:
        """Kernels that round twice: given the program's own integers, no operator is off by more than one step."""
        from targets.tflite.parity import layers

        if lowered.variant != "int8":
            return None
        one = tuple(value[:1] for value in model.examples)
        found = layers(model.module, lowered.path, one, reference_kernels=False)
        if not found or any(layer.max_steps > 1 for layer in found):
            return None
        return f"kernels round twice; none of {len(found)} integer tensors is more than one step off by itself"

    @plain_errors("its operators cannot be listed")
    def placement(self, lowered: Lowered) -> Placement:
        from targets.tflite.placement import placement

        return placement(lowered.path)


def _with_before(latency: Estimated | Skipped, before: Placement | None) -> Estimated | Skipped:
    """An estimate whose placement also says where the operators would run without our forms."""
    if not isinstance(latency, Estimated) or latency.placement is None:
        return latency
    return latency.model_copy(update={"placement": latency.placement.model_copy(update={"before": before})})
