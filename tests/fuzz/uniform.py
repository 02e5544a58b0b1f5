"""Hypothesis with evenly drawn choices: every network of a campaign is independent, and known by seed and index.

Hypothesis's own generator repeats and varies what it has drawn, and likes small values: good at finding corner cases
of one function, but most networks would be near copies of a few. This is a backend
(https://hypothesis.readthedocs.io/en/latest/reference/internals.html) that draws evenly.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.internal.conjecture.providers import AVAILABLE_PROVIDERS, PrimitiveProvider
from hypothesis.strategies import SearchStrategy

from tests.fuzz.spec import Network


def _provider(seed: int, first: int) -> type[PrimitiveProvider]:
    class Uniform(PrimitiveProvider):
        index = first - 1

        def per_test_case_context_manager(self) -> AbstractContextManager[None]:
            type(self).index += 1
            self.random = random.Random(f"{seed}:{self.index}")
            return nullcontext()

        def draw_boolean(self, p: float = 0.5) -> bool:
            return self.random.random() < p

        def draw_integer(self, min_value: int | None = None, max_value: int | None = None, **_: Any) -> int:
            low = -(2**31) if min_value is None else min_value
            return self.random.randint(low, 2**31 if max_value is None else max_value)

        def draw_float(self, **_: Any) -> float:
            raise NotImplementedError("no network has a float to draw")

        draw_string = draw_bytes = draw_float

    return Uniform


def for_each(
    strategy: SearchStrategy[Network],
    test: Callable[[Network], None],
    *,
    seed: int,
    first: int = 0,
    count: int = 1,
) -> None:
    """Call a test with ``count`` networks of a seed, from number ``first`` on.

    Hypothesis begins with the simplest network of all, which is not counted and not tested.
    """
    name = f"uniform-{seed}-{first}"
    AVAILABLE_PROVIDERS[name] = _provider(seed, first - 1)
    quiet = settings(
        backend=name, max_examples=count + 1, phases=(Phase.generate,), deadline=None, database=None, print_blob=False,
        suppress_health_check=list(HealthCheck), report_multiple_bugs=False,
    )  # fmt: skip
    try:
        quiet(given(strategy)(_but_the_first(test)))()
    finally:
        del AVAILABLE_PROVIDERS[name]


def _but_the_first(test: Callable[[Network], None]) -> Callable[[Network], None]:
    calls = 0

    def run(network: Network) -> None:
        nonlocal calls
        calls += 1
        if calls > 1:
            test(network)

    return run
