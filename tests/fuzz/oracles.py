"""All oracles, by group, and how a network is put to them."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from tests.fuzz import graph_oracles, target_oracles
from tests.fuzz.findings import Finding, of_exception
from tests.fuzz.networks import build
from tests.fuzz.prune_oracle import pruning
from tests.fuzz.spec import Network
from tests.fuzz.subject import Subject

Oracle = Callable[[Subject], Iterator[Finding]]

ORACLES: dict[str, Oracle] = {
    "load": graph_oracles.load,
    "canonical": graph_oracles.canonical,
    "program": graph_oracles.program,
    "onnx": target_oracles.files_of("onnx"),
    "tflite": target_oracles.files_of("tflite"),
    "coreml": target_oracles.files_of("coreml"),
    "prune": pruning,
}

GROUPS: dict[str, tuple[str, ...]] = {
    "graph": ("load", "canonical", "program"),
    "targets": ("load", "canonical", "program", "onnx", "tflite", "coreml"),
    "prune": ("load", "prune"),
    "all": tuple(ORACLES),
}

NEEDS = {"canonical": "load", "program": "canonical", "onnx": "program", "tflite": "program", "coreml": "program"}
"""An oracle is not asked where the one that it builds on was refused or failed with an exception."""


def operators_of(subject: Subject) -> list[str]:
    """The operators of the canonical graph."""
    return sorted({str(node.target) for node in subject.canonical.graph.nodes if node.op == "call_function"})


def examine(
    network: Network,
    oracles: Sequence[str],
    *,
    announce: Callable[[str], None],
    tell: Callable[[Finding], None],
) -> list[str]:
    """Put a network to oracles.

    Args:
        announce: Is told of every stage that begins.
        tell: Is told of every finding.

    Returns:
        The operators of the canonical graph; none where there is no such graph.
    """
    unreached: set[str] = set()
    operators: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        announce("build")
        subject = Subject(build(network), Path(folder), announce)
        for name in oracles:
            if NEEDS.get(name) in unreached:
                unreached.add(name)
                continue
            try:
                for finding in ORACLES[name](subject):
                    tell(finding)
            except Exception as error:  # that nothing but a refusal comes out is what is tested
                tell(of_exception(name, error))
                unreached.add(name)
            if name == "canonical" and name not in unreached:
                operators = operators_of(subject)
    return operators
