"""``edgewright doctor``: what is installed, what this machine is, and what can be measured on it."""

from __future__ import annotations

import platform
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pipeline.cli.output import Json, say
from pipeline.machine.survey import Machine, survey
from pipeline.report import units

NAME = "edgewright"
SHOWN = ("torch", "numpy", "onnxruntime", "coremltools", "ai-edge-litert", "litert-torch", "transformers")
"""Packages whose versions are shown, where they are installed."""
LEFT_OUT = frozenset({"all", "dev", "bench", "docs"})
"""Extras that only developers install, or that stand for others."""
_REQUIREMENT = re.compile(r"""([A-Za-z0-9._-]+)[^;]*(?:;.*extra\s*==\s*["']([\w-]+)["'])?""")


@dataclass(frozen=True, slots=True, kw_only=True)
class Extra:
    """One of edgewright's extras: which of its packages are missing, and the line that installs them."""

    name: str
    missing: tuple[str, ...]
    install: str


def doctor(json: Json = False) -> None:
    """Show versions, extras, runtimes and hardware: what can be measured here, and what installs the rest.

    For example:

        edgewright doctor
        edgewright doctor --json
    """
    machine, extras = survey(), list(_extras())
    installed = {extra.name for extra in extras if not extra.missing}
    measured = measurable(machine, installed)
    document = {
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in (NAME, *SHOWN)},
        "extras": [asdict(extra) for extra in extras],
        "onnxruntime_providers": _providers(),
        "machine": asdict(machine),
        "measurable": measured,
    }
    say(_text(document, machine, extras, measured), document, as_json=json)


def _extras() -> Iterator[Extra]:
    """The extras of the installed package, by its own metadata."""
    found: dict[str, list[str]] = {}
    try:
        lines = requires(NAME) or []
    except PackageNotFoundError:
        lines = []
    for line in lines:
        match = _REQUIREMENT.match(line)
        if match and match[2] and match[2] not in LEFT_OUT and match[1] != NAME:
            found.setdefault(match[2], []).append(match[1])
    for name, packages in found.items():
        missing = tuple(package for package in packages if _version(package) is None)
        yield Extra(name=name, missing=missing, install=f"pip install '{NAME}[{name}]'")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _providers() -> list[str]:
    """Execution providers of the installed onnxruntime, by its files: to import it would take too long."""
    spec = find_spec("onnxruntime")
    if spec is None or not spec.submodule_search_locations:
        return []
    folder = Path(spec.submodule_search_locations[0]) / "capi"
    names = [file.stem.split("providers_")[1] for file in folder.glob("*onnxruntime_providers_*")]
    return ["cpu", *sorted(name for name in set(names) if name != "shared")]


def measurable(machine: Machine, extras: set[str]) -> dict[str, str]:
    """Per target, what a run finds out on this machine, and what is missing for the rest."""
    missing = {name: f"nothing: pip install '{NAME}[{name}]'" for name in ("onnx", "coreml", "tflite")}
    found = {
        "onnx": "accuracy and latency on this CPU",
        "coreml": "accuracy and latency on this Mac"
        if machine.mac
        else "accuracy by the reference interpreter, and estimates; latency needs a Mac",
        "tflite": "accuracy and latency on this CPU, and estimates for Arm's NPUs",
    }
    if machine.phones:
        found["tflite"] += f"; latency on the phones {', '.join(machine.phones)}"
    return {name: found[name] if name in extras else missing[name] for name in found}


def _text(document: dict[str, Any], machine: Machine, extras: Sequence[Extra], measured: dict[str, str]) -> str:
    versions = [f"{name} {found}" for name, found in document["packages"].items() if found]
    vector = ", ".join(machine.cpu_features) or "none that integer kernels use"
    rows = [
        ("packages", f"python {document['python']}, {', '.join(versions)}"),
        *(("extra", f"{extra.name:12}{_state(extra)}") for extra in extras),
        ("providers", f"onnxruntime: {', '.join(document['onnxruntime_providers']) or 'not installed'}"),
        ("system", machine.os),
        ("cpu", f"{machine.cpu}, cores: {machine.cores}; {vector}"),
        ("memory", f"{units.size(machine.memory_available_bytes)} of {units.size(machine.memory_bytes)} are free"),
        ("disk", f"{units.size(machine.disk_free_bytes)} free in this folder"),
        ("gpu", ", ".join(machine.gpu) or machine.gpu_note),
        ("phones", "; ".join(filter(None, (", ".join(machine.phones), machine.phones_note)))),
        *(("measured", f"{name:12}{what}") for name, what in measured.items()),
    ]
    if machine.gpu and "+cpu" in (document["packages"]["torch"] or ""):
        rows.append(("note", "torch is built for the CPU only, so training does not use the GPU"))
    return "\n".join(f"{title:11}{text}" for title, text in rows)


def _state(extra: Extra) -> str:
    return f"missing {', '.join(extra.missing)}: {extra.install}" if extra.missing else "installed"
