"""A child process that examines networks, so that an abort or a hang costs one network and not the campaign."""

from __future__ import annotations

import multiprocessing
import os
import resource
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psutil

from tests.fuzz.blocks.kind import DoesNotFit
from tests.fuzz.findings import Finding
from tests.fuzz.spec import Network

STAGE_SECONDS = 10.0
"""CPU time that a stage may take on a network that runs in milliseconds."""
WARM_UP = 6
"""Times as much where a process starts, and where it first exports to a target, which imports its SDK."""
WALL = 12
"""Times as much of the clock, for what waits instead of computing."""
MEMORY_BYTES = 16 << 30
"""Address space of the child: TensorFlow maps much more than it uses."""
NETWORKS = 150
"""Networks per process: SDKs leak."""


@dataclass(frozen=True)
class Examined:
    """What came of a network: findings, operators of its canonical graph, and seconds per stage."""

    findings: tuple[Finding, ...]
    operators: tuple[str, ...]
    seconds: float


def serve(connection: Connection, log: str) -> None:
    """The child's loop: takes a network's text and names of oracles; sends stages as they begin, findings as
    they are made, and the operators of the canonical graph at the end."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    connection.send(("stage", "import"))
    import warnings

    import torch

    from tests.fuzz.oracles import examine
    from tests.fuzz.shortcuts import take_shortcuts

    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    take_shortcuts()
    while True:
        try:
            text, oracles = connection.recv()
        except EOFError:
            return
        started = time.process_time()
        try:
            network = Network.from_text(text)
            operators = examine(
                network,
                oracles,
                announce=lambda stage: connection.send(("stage", stage)),
                tell=lambda finding: connection.send(("finding", finding)),
            )
            connection.send(("done", (tuple(operators), time.process_time() - started)))
        except DoesNotFit as error:  # weights depend on a block's place, which moves where others are left out
            connection.send(("finding", Finding("build", "refused", "does not fit", str(error))))
            connection.send(("done", ((), time.process_time() - started)))
        except Exception as error:  # of the fuzzer itself
            import traceback

            connection.send(("failed", f"{error!r}\n{traceback.format_exc()}"))


class Worker:
    """Starts the child when it is needed, watches its stages, and replaces it after an abort or a hang.

    Args:
        serve: The child's loop.
        stage_seconds: CPU time that a stage may take.
    """

    def __init__(self, serve: Callable[[Connection, str], None] = serve, stage_seconds: float = STAGE_SECONDS) -> None:
        self._serve, self._stage_seconds = serve, stage_seconds
        self._process: Any = None
        self._connection: Connection | None = None
        self._log = Path(tempfile.mkstemp(prefix="fuzz-", suffix=".log")[1])
        self._examined = 0
        self._cold: set[str] = set()

    def examine(self, network: Network, oracles: Sequence[str]) -> Examined:
        """Put a network to oracles in the child.

        Raises:
            RuntimeError: The fuzzer itself failed.
        """
        if self._process is not None and self._examined >= NETWORKS:
            self.close()
        if self._process is None:
            self._start()
        assert self._connection is not None
        connection, process = self._connection, psutil.Process(self._process.pid)
        connection.send((network.text(), tuple(oracles)))
        self._examined += 1
        findings: list[Finding] = []
        stage, began, started = "start", _cpu(process), time.monotonic()
        while True:
            try:
                if connection.poll(0.2):
                    kind, content = connection.recv()
                    match kind:
                        case "done":
                            return Examined(tuple(findings), *content)
                        case "failed":
                            raise RuntimeError(f"on {network.text()}: {content}")
                        case "finding":
                            findings.append(content)
                        case "stage":
                            self._cold.discard(stage)
                            stage, began, started = content, _cpu(process), time.monotonic()
                    continue
            except (EOFError, ConnectionResetError, BrokenPipeError):
                return Examined((*findings, self._abort(stage)), (), 0.0)
            computed, waited = _cpu(process) - began, time.monotonic() - started
            allowed = self._stage_seconds * (WARM_UP if stage in self._cold else 1)
            if computed > allowed or waited > WALL * allowed:
                self._kill()
                detail = f"{computed:.0f} s of CPU time, {waited:.0f} s of the clock"
                hang = Finding(_oracle_of(stage), "hang", f"in {stage}", detail)
                return Examined((*findings, hang), (), computed)

    def close(self) -> None:
        """End the child."""
        if self._process is not None:
            self._kill()

    def _start(self) -> None:
        context = multiprocessing.get_context("forkserver")  # imports once; each child is there at once
        context.set_forkserver_preload(["tests.fuzz.oracles"])
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=self._serve, args=(theirs, str(self._log)), daemon=True)
        self._process.start()
        theirs.close()
        self._examined = 0
        self._cold = {"start", "import", *(f"export {target}" for target in ("onnx", "tflite", "coreml"))}

    def _abort(self, stage: str) -> Finding:
        self._process.join(5)
        code = self._process.exitcode
        said = [line for line in self._log.read_text(errors="replace").splitlines() if line.strip()]
        self._kill()
        detail = f"exit code {code}: {' | '.join(said[-3:])[-400:]}"
        return Finding(_oracle_of(stage), "abort", f"in {stage}", detail)

    def _kill(self) -> None:
        self._process.kill()
        self._process.join()
        self._process = None
        if self._connection is not None:
            self._connection.close()


def _oracle_of(stage: str) -> str:
    """The oracle that a stage belongs to: ``run onnx int8, onnxruntime`` to ``onnx int8, onnxruntime``."""
    known = {"load": "load", "canonical graph": "canonical", "quantize": "program", "prune": "prune"}
    return known.get(stage, stage.removeprefix("run ").removeprefix("export "))


def _cpu(process: psutil.Process) -> float:
    """CPU seconds of a process and its children."""
    try:
        times = process.cpu_times()
    except psutil.Error:
        return 0.0
    return float(times.user + times.system + times.children_user + times.children_system)
