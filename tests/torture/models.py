"""Open and run damaged model files, and count what comes of it.

``python -m tests.torture.models --count 10000 --seed 0`` makes so many mutations of small ``.onnx``, ``.tflite`` and
``.mlpackage`` files. Each is run and its operators are placed, as `pipeline.execution.deployed` does in its child: in
a fork of a process that has loaded the runtime already, under limits of time and memory. The user must get arrays or
one error. Crashes, exhausted memory and exceeded time stay in the child; they are counted, and are no failures.
A failure is an exception that is no refusal, or an error that cannot be read.

``--index 17 --keep FOLDER`` writes one mutation, to look into it.
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import select
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.torture.mutations import mutate
from tests.torture.originals import FORMATS, write_originals

SECONDS = 5
MEMORY_BYTES = 1 << 30
GRACE_S = 3
"""How much later than its limit a child may end; the machine may be busy."""


@dataclass
class Tally:
    """What came of the mutations: how many ended in which way, and what was wrong with which."""

    ended: Counter[str] = field(default_factory=Counter)
    failed: list[str] = field(default_factory=list)
    peak_bytes: int = 0
    slowest_s: float = 0

    def __str__(self) -> str:
        tried = self.ended.total()
        ways = ", ".join(f"{count} {way}" for way, count in self.ended.most_common())
        return (
            f"{tried} tried, {tried - len(self.failed)} held, {len(self.failed)} failed: {ways}; "
            f"peak {self.peak_bytes / 2**20:.0f} MiB, slowest {self.slowest_s:.1f} s"
        )


def torture(suffix: str, indices: Sequence[int], seed: int, tally: Tally) -> Iterator[int]:
    """Try mutations of one format; yields after each, so that a caller can stop."""
    with tempfile.TemporaryDirectory(prefix="edgewright-torture-") as scratch:
        originals = write_originals(Path(scratch), suffix)
        _load_runtime(suffix)
        for index in indices:
            rng = random.Random(f"{seed} {suffix} {index}")
            original, samples = rng.choice(originals)
            with tempfile.TemporaryDirectory(dir=scratch) as folder:
                damaged = Path(folder) / f"damaged{suffix}"
                done = mutate(original, damaged, rng)
                way, problem = _try(damaged, samples, Path(folder), tally)
            tally.ended[way] += 1
            if problem:
                tally.failed.append(f"--format {suffix} --seed {seed} --index {index} ({done}): {problem}")
            yield index


def _load_runtime(suffix: str) -> None:
    """Import what opening a file of that kind imports, so that no fork has to."""

    if suffix == ".onnx":
        import targets.onnx.opened
        import targets.onnx.placement
    elif suffix == ".tflite":
        import targets.tflite.opened
        import targets.tflite.placement
    else:
        from coremltools.proto import Model_pb2  # noqa: F401

        import targets.coreml.neural_engine
        import targets.coreml.opened  # noqa: F401


def _try(damaged: Path, samples: Path, folder: Path, tally: Tally) -> tuple[str, str | None]:
    """How one file ended, and what was wrong with that."""
    before = sorted(os.listdir(folder.parent))  # noqa: PTH208  names alone
    started = time.monotonic()
    reading, writing = os.pipe()
    number = os.fork()
    if number == 0:
        os.close(reading)
        _in_child(damaged, samples, folder, writing)
    os.close(writing)
    report = _listen(reading, SECONDS + GRACE_S)
    if report is None:
        os.kill(number, signal.SIGKILL)
    _, status, usage = os.wait4(number, 0)
    took = time.monotonic() - started
    tally.peak_bytes = max(tally.peak_bytes, usage.ru_maxrss << 10)
    tally.slowest_s = max(tally.slowest_s, took)
    if sorted(os.listdir(folder.parent)) != before:  # noqa: PTH208
        return "wrote outside", "wrote outside its folder"
    if report is None:
        return "stopped for its time", None
    if os.WIFSIGNALED(status):
        stopped = os.WTERMSIG(status) in (signal.SIGXCPU, signal.SIGALRM)
        return ("stopped for its time" if stopped else f"crashed ({signal.Signals(os.WTERMSIG(status)).name})"), None
    way, _, problem = report.partition("\n")
    return way or f"exited ({os.WEXITSTATUS(status)})", problem or None


def _listen(pipe: int, seconds: float) -> str | None:
    """All that the child says until it closes the pipe; None where it does not in time."""
    deadline, said = time.monotonic() + seconds, b""
    with os.fdopen(pipe, "rb", buffering=0) as opened:
        while True:
            ready, _, _ = select.select([opened], [], [], max(0, deadline - time.monotonic()))
            if not ready:
                return None
            piece = opened.read(1 << 16)
            if not piece:
                return said.decode(errors="replace")
            said += piece


def _in_child(damaged: Path, samples: Path, folder: Path, pipe: int) -> None:
    """Run and place the file as `deployed` does in its bounded process, tell how that ended, and exit."""
    os.set_inheritable(pipe, False)
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 1)
    os.dup2(nothing, 2)
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    for kind, limit in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_CPU, SECONDS),
        (resource.RLIMIT_FSIZE, MEMORY_BYTES),
        (resource.RLIMIT_AS, mapped + MEMORY_BYTES),
    ):
        resource.setrlimit(kind, (limit, limit))
    signal.alarm(SECONDS)
    os.chdir(folder)
    try:
        said = _outcome(damaged, samples, folder)
    except MemoryError:
        said = "out of memory"
    os.write(pipe, said.encode(errors="replace"))
    os._exit(0)


def _outcome(damaged: Path, samples: Path, folder: Path) -> str:
    """``ran`` or ``refused``, and on the next line what is wrong with that."""
    from pipeline.core import EdgewrightError
    from pipeline.data.archive import write_archive
    from pipeline.execution.deployed import placement_of, run_file

    way = "ran"
    for call in (lambda: write_archive(folder / "out.npz", run_file(damaged, samples)), lambda: placement_of(damaged)):
        try:
            call()
        except MemoryError:
            raise
        except EdgewrightError as error:
            way = "refused"
            if not error.problem.strip():
                return f"{way}\nan error without a text"
        except Exception as error:
            frame = traceback.extract_tb(error.__traceback__)[-1]
            place = f"{Path(frame.filename).name}:{frame.lineno}"
            return f"raised\n{type(error).__name__} in {place}: {' '.join(str(error).split())[:200]}"
    return way


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; its exit status is 1 where anything failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.torture.models", description=__doc__)
    parser.add_argument("--count", type=int, default=1000, help="mutations, over all formats")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--format", choices=FORMATS, help="only this one")
    parser.add_argument("--index", type=int, help="only this mutation")
    parser.add_argument("--keep", type=Path, help="with --format and --index: write the mutation into this folder")
    options = parser.parse_args(arguments)
    formats = [options.format] if options.format else FORMATS
    if options.keep:
        options.keep.mkdir(exist_ok=True)
        rng = random.Random(f"{options.seed} {options.format} {options.index}")
        original, _ = rng.choice(write_originals(options.keep, options.format))
        print(mutate(original, options.keep / f"damaged{options.format}", rng))
        return 0
    failed: list[str] = []
    for suffix in formats:
        tally = Tally()
        share = options.count // len(formats)
        indices = range(share) if options.index is None else [options.index]
        for index in torture(suffix, indices, options.seed, tally):
            if index % 500 == 499:
                print(suffix, tally, flush=True)
        print(suffix, tally, flush=True)
        failed += tally.failed
    for line in failed:
        print("FAILED", line)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
