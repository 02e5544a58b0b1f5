"""What the project depends on: the pinned files with hashes, and the table of licences in ``docs/licences.md``.

``python -m tests.dependencies`` writes both again from ``constraints.txt``. It needs `uv <https://docs.astral.sh/uv>`_
on the path, and an environment with every extra.
"""

from __future__ import annotations

import re
import subprocess
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PINS, HASHED, HASHED_CUDA = (ROOT / f"constraints{kind}.txt" for kind in ("", "-hashed", "-hashed-cuda"))
LICENCES = ROOT / "docs" / "licences.md"
EXTRAS = ("all", "dev", "bench", "docs")

ONLY_CUDA = re.compile(r"nvidia-.*|cuda-.*|triton")
"""What torch's build on PyPI needs on Linux, and its CPU build does not."""

TORCH_CPU_VERSION = "2.13.0"
TORCH_CPU_WHEELS = {
    "cp311-x86_64": "6746dbcbeb526eb61330b76b41ff1b4eb848951103a892eeb080dfa2b264667b",
    "cp312-x86_64": "4ca4a9394b0c771238a4f73590fdbbc4debad85ed0fa63d026ae1b085da7d6e2",
    "cp311-aarch64": "84453b69508ec79902f899c5ed9495acb9e2bbe9fda5f1d5d6f19e3c3842e1a7",
    "cp312-aarch64": "6f307c2c32d764ffc6ff6893b801fad6d4752f3e67966cb8abf1843427c02604",
}
"""SHA-256 of torch's wheels for Linux without CUDA, by tag, as https://download.pytorch.org/whl/cpu/torch/ lists them.

PyPI does not know them. Change them together with torch's version in ``constraints.txt``."""

NOT_IN_METADATA = {"namex": "Apache-2.0", "torchao": "BSD-3-Clause"}
"""Licences that packages state in their LICENSE file or repository alone."""

_HEADING = """# Licences of the dependencies

All packages that `constraints.txt` pins, with the licence that the metadata of each one states.
`python -m tests.dependencies` writes this table; a test compares it with `constraints.txt` and with what is installed.

No dependency is under the GPL or the AGPL. psycopg is under the LGPL: it is optional (`edgewright[search]`), it is
imported as a library of its own, and edgewright contains nothing of it. certifi, hypothesis, pathspec and tqdm are
under the MPL, which covers changes to their own files only. torch's build for CUDA also installs NVIDIA's libraries,
which are under NVIDIA's own terms; the build for CPUs needs none of them.

| Package | Version | Licence | Direct dependency |
|---|---|---|---|
"""


@dataclass(frozen=True, slots=True)
class Pinned:
    """One package of a requirements file, with the SHA-256 sums that its files may have.

    pip wants the extras named: with hashes, ``coverage==7.17.3`` does not pin another package's ``coverage[toml]``.
    """

    version: str
    extras: str
    sha256: tuple[str, ...]


def main() -> None:
    """Write the files again."""
    found = read_pins(_compiled())
    torch = found["torch"]
    found["torch"] = replace(torch, sha256=(*torch.sha256, *TORCH_CPU_WHEELS.values()))
    cuda = {name for name in found if ONLY_CUDA.fullmatch(name)}
    said = "# Written by `python -m tests.dependencies`; README says how to install from it.\n"
    HASHED.write_text(said + "".join(_requirement(name, found[name]) for name in sorted(found.keys() - cuda)))
    several = "".join(_requirement(name, found[name]) for name in sorted(cuda))
    HASHED_CUDA.write_text(f"{said}-r {HASHED.name}\n{several}")
    LICENCES.write_text(_HEADING + "".join(f"{row}\n" for row in _rows()))


def read_pins(text: str) -> dict[str, Pinned]:
    """The packages of a requirements file by their normalized names."""
    entries = re.sub(r"\\\n", " ", text).splitlines()
    pins = (re.match(r"([\w.-]+)(\[.*?\])?==(\S+)(.*)", entry) for entry in entries)
    return {
        canonicalize_name(pin[1]): Pinned(pin[3], pin[2] or "", tuple(re.findall(r"--hash=sha256:(\w+)", pin[4])))
        for pin in pins
        if pin is not None
    }


def direct() -> dict[str, str]:
    """Every dependency that pyproject.toml names, and its extra; empty where every user needs it."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    groups: Mapping[str, list[str]] = {
        **project["project"]["optional-dependencies"],
        "": project["project"]["dependencies"],
        "build": project["build-system"]["requires"],
    }
    return {
        canonicalize_name(Requirement(text).name): extra
        for extra, texts in groups.items()
        for text in texts
        if not text.startswith("edgewright")
    }


def read_licences(text: str) -> dict[str, tuple[str, str]]:
    """Version and licence of each package in the table."""
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| ")]
    return {canonicalize_name(name): (version, licence) for name, version, licence, _ in rows[1:]}


def licence_of(name: str) -> str:
    """What the metadata of an installed package states: SPDX expression, classifiers or free text, in this order.

    Raises:
        PackageNotFoundError: It is not installed.
    """
    stated = metadata.metadata(name)
    classifiers = [
        line.rpartition(" :: ")[2]
        for line in stated.get_all("Classifier", ())
        if line.startswith("License ::") and not line.endswith("OSI Approved")
    ]
    text = stated.get("License", "").strip().partition("\n")[0]
    return stated.get("License-Expression") or " AND ".join(classifiers) or text or NOT_IN_METADATA[name]


def _compiled() -> str:
    """What uv resolves for Linux, where torch needs most; constraints.txt leaves it no choice of versions."""
    extras = [argument for extra in EXTRAS for argument in ("--extra", extra)]
    command = [
        "uv",
        "pip",
        "compile",
        "--quiet",
        "--no-header",
        "--no-annotate",
        "--no-strip-extras",
        "--generate-hashes",
    ]
    command += [*extras, "--constraints", PINS.name, "--python-version", "3.11", "--python-platform", "linux"]
    build = "hatchling\n"  # what builds the project itself
    return subprocess.run(
        [*command, "pyproject.toml", "-"], cwd=ROOT, input=build, capture_output=True, text=True, check=True
    ).stdout


def _requirement(name: str, pinned: Pinned) -> str:
    return (
        " \\\n    ".join(
            (f"{name}{pinned.extras}=={pinned.version}", *(f"--hash=sha256:{sha}" for sha in sorted(pinned.sha256)))
        )
        + "\n"
    )


def _rows() -> list[str]:
    needed = {name: extra or "always" for name, extra in direct().items()}
    return [
        f"| {name} | {pinned.version} | {licence_of(name)} | {needed.get(name, '')} |"
        for name, pinned in sorted(read_pins(PINS.read_text()).items())
    ]


if __name__ == "__main__":
    main()
