"""Progress of long work on standard error: a bar with ETA and figures on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

console = Console(stderr=True, highlight=False)


@contextmanager
def announced(title: str) -> Iterator[None]:
    """Say what begins, and how long it took."""
    console.print(title)
    started = time.monotonic()
    yield
    console.print(f"  done in {time.monotonic() - started:.1f} s")


class Progress:
    """One bar: ``with Progress("distill", total=100) as bar: bar.advance(loss=0.3)``."""

    seconds_between_lines = 15.0

    def __init__(self, label: str, *, total: int, enabled: bool = True) -> None:
        self._label, self._total, self._done = label, total, 0
        self._figures: dict[str, float] = {}
        self._live = enabled and sys.stderr.isatty()
        self._plain = enabled and not self._live
        self._started = self._printed = time.monotonic()
        self._bar = RichProgress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[figures]}"),
            console=console,
            disable=not self._live,
        )
        self._task = self._bar.add_task(label, total=total, figures="")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._bar.stop()
        if self._plain and kind is None:
            self._print_line()

    def advance(self, steps: int = 1, **figures: float) -> None:
        """Count finished steps, and show figures such as the loss."""
        self._done += steps
        self._figures.update(figures)
        self._bar.update(self._task, advance=steps, figures=self._text())
        if self._plain and time.monotonic() - self._printed > self.seconds_between_lines:
            self._print_line()

    def note(self, **figures: float) -> None:
        """Show figures without counting a step."""
        self.advance(0, **figures)

    def _text(self) -> str:
        return " ".join(f"{name} {value:.4g}" for name, value in self._figures.items())

    def _print_line(self) -> None:
        self._printed = time.monotonic()
        elapsed = self._printed - self._started
        eta = elapsed / max(self._done, 1) * (self._total - self._done)
        console.print(f"{self._label} {self._done}/{self._total} {elapsed:.0f} s, {eta:.0f} s left {self._text()}")
