"""Random changes of bytes and of JSON: what a damaged disk, or somebody with bad intent, makes of a file."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Iterator
from typing import Any

EXPRESSIONS = (
    "Symbol('s77', positive=True, integer=True)",
    "Symbol('u0', integer=True)",
    "Symbol('s77', positive=True, negative=True)",
    "Mul(Integer(9999999999), Symbol('s77', integer=True))",
    "FloorDiv(Symbol('s77', positive=True, integer=True), Integer(0))",
    "Mod(Integer(5), Symbol('s77'))",
    "Pow(Integer(2), Pow(Integer(10), Integer(10)))",
    "Rational(1, 0)",
    "Float('nan', precision=53)",
    "And(true, false)",
    "(" * 300 + "Integer(1)" + ")" * 300,
    f"Max({', '.join(f'Symbol({chr(39)}s{i}{chr(39)})' for i in range(60))})",
)
ODD_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2**31, 2**62, 2**63, -(2**63) - 1, 10**30, 1.5, float("inf"), float("nan")),
    *("", "x", "a.b", "..", "forward", "__class__", "_guards_fn", "torch.os.system", "Infinity", "\0", "é" * 600),
    *("L['x'].size()[9] == 0", "1 % 0 == 1", "L['x'].size()[0] // 0 == 1", "9 ** 9 ** 9 > 1"),
    *([], {}, [[]], [1] * 1000, {"as_int": -1}, {"as_int": 2**62}, {"as_none": True}),
)


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every container, with a key or an index in it."""
    if isinstance(value, dict | list):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield value, key
            yield from _places(item)


def mutate_json(value: Any, rng: random.Random) -> None:
    """Change, remove, copy or move a few parts in place; half of the time parts keep their type."""
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        places = list(_places(value))
        if not places:
            return
        container, key = rng.choice(places)
        old = container[key]
        alike = [other[index] for other, index in places if type(other[index]) is type(old)]
        match rng.randrange(8):
            case 0 | 1 | 2:
                container[key] = copy.deepcopy(rng.choice(alike))
            case 3 if isinstance(old, str) and "Symbol" in old:
                container[key] = rng.choice(EXPRESSIONS)
            case 3 if isinstance(old, int) and not isinstance(old, bool):
                container[key] = rng.choice((old + 1, old - 1, -old, old * 10**6))
            case 4 if isinstance(old, str) and old[:1] in ("[", "{"):
                inner = json.loads(old) if old[-1:] in ("]", "}") else []
                mutate_json(inner, rng)
                container[key] = json.dumps(inner)
            case 5:
                del container[key]
            case 6 if isinstance(container, list):
                container.insert(rng.randrange(len(container) + 1), copy.deepcopy(old))
            case _:
                container[key] = copy.deepcopy(rng.choice(ODD_VALUES))


def mutate_bytes(data: bytes, rng: random.Random) -> bytes:
    """Flip, remove, insert, cut off or repeat a few bytes."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8, 64))):
        place, length = rng.randrange(len(changed) + 1), rng.choice((1, 2, 64, 1000))
        match rng.randrange(6):
            case 0 | 1:
                changed[place : place + 1] = rng.randbytes(1)
            case 2:
                del changed[place : place + length]
            case 3:
                changed[place:place] = rng.randbytes(length)
            case 4:
                del changed[max(place, 1) :]
            case 5:
                source = rng.randrange(len(changed) + 1)
                changed[place : place + length] = changed[source : source + length]
    return bytes(changed)
