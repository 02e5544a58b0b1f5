"""Saving a package so that the same model gives the same bytes, as long as the converter gives the same model."""

from __future__ import annotations

import json
import uuid
from pathlib import Path
from typing import Any

from targets.coreml.sdk import quiet

DEBUG_MAPPING = "executorch_debug_handle_mapping.json"
MANIFEST, ITEMS, ROOT = "Manifest.json", "itemInfoEntries", "rootModelIdentifier"


def save(model: Any, package: Path) -> None:
    """Save a coremltools model as a package."""
    with quiet():
        model.save(str(package))
    (package / DEBUG_MAPPING).unlink(missing_ok=True)  # for ExecuTorch only; as large as a small model
    specification = next((package / "Data").rglob("*.mlmodel"))
    specification.write_bytes(model.get_spec().SerializeToString(deterministic=True))
    manifest = package / MANIFEST
    manifest.write_text(json.dumps(_without_chance(json.loads(manifest.read_text())), indent=4) + "\n")


def _without_chance(manifest: dict[str, Any]) -> dict[str, Any]:
    """A manifest whose items are identified by their paths; coremltools draws random identifiers."""
    names = {key: str(uuid.uuid5(uuid.NAMESPACE_URL, entry["path"])) for key, entry in manifest[ITEMS].items()}
    items = {names[key]: entry for key, entry in sorted(manifest[ITEMS].items(), key=lambda item: item[1]["path"])}
    return {**manifest, ITEMS: items, ROOT: names[manifest[ROOT]]}
