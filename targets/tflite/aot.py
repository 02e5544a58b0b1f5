"""NPUs of Android phones: LiteRT's ahead-of-time compiler (https://ai.google.dev/edge/litert/next/npu).

Each vendor's compiler is a package of its own, which is not among our dependencies.
"""

from __future__ import annotations

import importlib
import importlib.util
from importlib.metadata import version
from pathlib import Path

from pipeline.core import RecipeError
from pipeline.target import Skipped
from targets.tflite.sdk import quiet

VENDORS = ("qualcomm", "mediatek", "google_tensor")


def compile_ahead(model: Path, wanted: str) -> Skipped:
    """Compile a model for one chip, such as ``qualcomm:SM8650``, into the folder of that name next to it.

    Compiling gives no latency, so the record always says what is missing for one: the vendor's compiler, or the phone.
    """
    vendor, chip = parse(wanted)
    runtime, device = f"ai-edge-litert {version('ai-edge-litert')} AOT", f"{vendor} {chip}"
    sdk = f"ai_edge_litert_sdk_{vendor}"
    if importlib.util.find_spec(sdk) is None:
        return Skipped(runtime=runtime, device=device, reason=f"not installed: pip install {sdk.replace('_', '-')}")
    folder = model.parent / f"{vendor}_{chip}"
    with quiet():
        from ai_edge_litert.aot.aot_compile import aot_compile

        chips = importlib.import_module(f"ai_edge_litert.aot.vendors.{vendor}.target")
        result = aot_compile(str(model), output_dir=folder, target=chips.Target(chips.SocModel(chip)))
    if result.failed_backends:
        reason = f"the compiler failed: {str(result.failed_backends[0][1]).strip().splitlines()[-1]}"
    else:
        result.export(folder, model.stem)
        placed = " ".join(str(result.models[0].partition_stats).split())
        reason = f"compiled into {folder.name} ({placed}); a phone has to time it"
    return Skipped(runtime=runtime, device=device, reason=reason)


def parse(wanted: str) -> tuple[str, str]:
    """Vendor and chip of ``vendor:chip``.

    Raises:
        RecipeError: LiteRT has no such vendor or chip; names those it has.
    """
    vendor, _, chip = wanted.partition(":")
    if vendor not in VENDORS:
        raise RecipeError(f"no such vendor {vendor!r}", where="targets.tflite.aot", fix=f"use {', '.join(VENDORS)}")
    chips = importlib.import_module(f"ai_edge_litert.aot.vendors.{vendor}.target").SocModel
    if chip not in set(chips):
        raise RecipeError(f"no such chip {chip!r}", where="targets.tflite.aot", fix=f"use {', '.join(chips)}")
    return vendor, chip
