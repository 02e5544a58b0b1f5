"""Options in pairs: few combinations in which each value of each option meets each value of every other."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

Options = Mapping[str, Sequence[Mapping[str, Any]]]
"""By the name of an option, its values, each as the keys of the configuration that it sets."""


def pairwise(options: Options, seed: int = 0) -> Iterator[dict[str, Any]]:
    """Few choices of one value per option, in which every pair of values occurs."""
    chance = random.Random(seed)
    names = list(options)

    def pairs(choice: Mapping[str, int]) -> set[tuple[Any, ...]]:
        return {(a, choice[a], b, choice[b]) for a, b in itertools.combinations(names, 2)}

    left = {
        (a, i, b, j)
        for a, b in itertools.combinations(names, 2)
        for i, j in itertools.product(range(len(options[a])), range(len(options[b])))
    }
    while left:
        a, i, b, j = chance.choice(sorted(left))
        tried = [{name: chance.randrange(len(options[name])) for name in names} | {a: i, b: j} for _ in range(50)]
        best = max(tried, key=lambda choice: len(pairs(choice) & left))
        left -= pairs(best)
        yield {key: value for name, at in best.items() for key, value in options[name][at].items()}
