"""The files that pin what is installed agree with each other, and the licences of all of it are known."""

import re
from importlib import metadata
from pathlib import Path

import pytest

from tests.dependencies import (
    HASHED,
    HASHED_CUDA,
    LICENCES,
    ONLY_CUDA,
    PINS,
    ROOT,
    TORCH_CPU_VERSION,
    TORCH_CPU_WHEELS,
    direct,
    licence_of,
    read_licences,
    read_pins,
)

PERMISSIVE = re.compile(r"Apache|BSD|MIT|ISC|MPL|Mozilla|Python Software Foundation|Public Domain")
SHARED_LIBRARIES = {"psycopg": "LGPL-3.0-only", "psycopg-binary": "LGPL-3.0-only"}
"""Used as separate libraries, which the LGPL allows; docs/licences.md says so."""

pins, hashed = read_pins(PINS.read_text()), read_pins(HASHED.read_text())
licences = read_licences(LICENCES.read_text())


def test_every_pinned_version_has_hashes_when_both_files_are_read() -> None:
    assert {name: pin.version for name, pin in hashed.items()} == {name: pin.version for name, pin in pins.items()}
    assert [name for name, pin in hashed.items() if not pin.sha256] == []


def test_torch_has_the_hashes_of_both_builds() -> None:
    assert hashed["torch"].version == TORCH_CPU_VERSION
    assert set(TORCH_CPU_WHEELS.values()) < set(hashed["torch"].sha256)


def test_cuda_adds_only_what_pypis_torch_needs() -> None:
    text = HASHED_CUDA.read_text()
    assert f"\n-r {HASHED.name}\n" in text
    added = read_pins(text)
    assert [name for name in added if not ONLY_CUDA.fullmatch(name) or name in pins] == []
    assert [name for name, pin in added.items() if not pin.sha256] == []


@pytest.mark.parametrize("file", [PINS, HASHED, HASHED_CUDA], ids=lambda file: file.name)
def test_pinned_files_name_no_index(file: Path) -> None:
    lines = [line for line in file.read_text().splitlines() if not line.startswith("#")]
    assert [line for line in lines if "://" in line or line.startswith("--")] == []


def test_every_direct_dependency_is_pinned_and_its_licence_listed() -> None:
    assert [name for name in direct() if name not in pins or name not in licences] == []


def test_table_of_licences_is_current() -> None:
    assert {name: version for name, (version, _) in licences.items()} == {
        name: pin.version for name, pin in pins.items()
    }
    installed = {canonical for canonical in pins if _is_installed(canonical)}
    assert len(installed) > 100
    assert {name: licences[name][1] for name in installed} == {name: licence_of(name) for name in installed}


def test_no_licence_restricts_what_users_may_do() -> None:
    """Each is permissive, or weak copyleft that leaves edgewright's own code alone. None is the GPL or AGPL."""
    others = {name: licence for name, (_, licence) in licences.items() if not PERMISSIVE.search(licence)}
    assert others == SHARED_LIBRARIES
    assert [name for name, (_, licence) in licences.items() if re.search(r"\bA?GPL|GNU", licence)] == []


def test_files_that_security_md_names_exist() -> None:
    named = re.findall(r"`((?:tests|pipeline)/\S+\.py)`", (ROOT / "SECURITY.md").read_text())
    assert len(named) > 10
    assert [path for path in named if not (ROOT / path).is_file()] == []


def _is_installed(name: str) -> bool:
    try:
        return metadata.version(name).partition("+")[0] == pins[name].version
    except metadata.PackageNotFoundError:
        return False
