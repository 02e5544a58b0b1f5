"""Which tensors of a file are a network's weights: those whose names and shapes fit, wherever in the file they are.

Training scripts nest the weights under keys (``state_dict``, ``ema``), and wrappers put words before or into the names
(``module.``, ``_orig_mod.``, ``model.``). Both are words in front of the names that the network knows, so one search
finds them: the words before the names that fit.
"""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from pipeline.models.checkpoints.weights_file import StandIn

MAX_CANDIDATES = 256
MAX_DEPTH = 4
"""Dictionaries in dictionaries, in which weights are looked for."""

WRAPPERS = ("_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
"""Words that torch's own wrappers put anywhere into a name."""

_ALIKE = 0.45
"""How like a missing name another one of the same shape must be (`difflib`) to be named beside it."""

WEIGHT_NORM = {"weight_g": "parametrizations.weight.original0", "weight_v": "parametrizations.weight.original1"}
"""What torch's older weight norm calls its two tensors, and what the newer one does."""

_COUNTER = "num_batches_tracked"
"""A batch norm's count of training steps, which no result depends on, and which old files lack."""
_OWN_STATE = "_extra_state"
"""What a module keeps by code of its own."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor in a file: its name with the keys before it, and the keys of the dictionary that holds it."""

    name: str
    keys: str
    tensor: Tensor


@dataclass(frozen=True, slots=True)
class Candidate:
    """Tensors of a file that may be the network's weights.

    Attributes:
        prefix: The words in front of the network's names.
        added: Words that all of the network's names start with, and the file's do not.
        weights: By the network's names.
        unexpected: Tensors of the same dictionary and prefix that the network has no place for.
        left_out: Names of other tensors in the same dictionary.
    """

    prefix: str
    added: str
    weights: dict[str, Tensor]
    unexpected: dict[str, Tensor]
    left_out: tuple[str, ...]

    def problems(self, expected: Mapping[str, Tensor]) -> list[str]:
        """Why these are not the network's weights, name by name; empty where they are."""
        missing = [name for name in expected if name not in self.weights and not name.endswith(_COUNTER)]
        unexpected = dict(self.unexpected)
        found = []
        for name in missing:
            near = _nearest(name, expected[name], unexpected)
            also = f", where the file has {near}" if near else ""
            found.append(f"missing {name} {_size(expected[name])}{also}")
            unexpected.pop(near, None)
        found += [f"unexpected {name} {list(tensor.shape)}" for name, tensor in unexpected.items()]
        for name, tensor in self.weights.items():
            found += _misfits(name, tensor, expected[name])
        return found or list(self._torn(expected))

    def _torn(self, expected: Mapping[str, Tensor]) -> Iterator[str]:
        """Weights that differ in the file, and that the network has as one."""
        for first, *others in _tied(expected):
            for name in others:
                if not _equal(self.weights[first], self.weights[name]):
                    yield f"{name} differs from {first}, and the factory builds them as one tensor"


def tensors_in(content: Any, keys: str = "", depth: int = 0, seen: set[int] | None = None) -> Iterator[Stored]:
    """The tensors in a dictionary and in the dictionaries in it, or in a list of dictionaries.

    >>> [each.name for each in tensors_in({"ema": {"0.weight": torch.ones(2)}, "epoch": 3})]
    ['ema.0.weight']
    """
    seen = set() if seen is None else seen
    if depth > MAX_DEPTH or not isinstance(content, Mapping | list | tuple) or id(content) in seen:
        return
    seen.add(id(content))
    for key, value in content.items() if isinstance(content, Mapping) else enumerate(content):
        name = f"{keys}.{key}" if keys else str(key)
        if isinstance(value, Tensor) and isinstance(key, str):
            yield Stored(name, keys, value)
        elif isinstance(key, str) or (depth == 0 and isinstance(value, Mapping)):
            yield from tensors_in(value, name, depth + 1, seen)


def objects_in(content: Any, depth: int = 0) -> Iterator[str]:
    """The names of the classes of objects in a file that were not read."""
    if isinstance(content, StandIn) or (isinstance(content, type) and issubclass(content, StandIn)):
        yield content.of
    elif depth <= MAX_DEPTH and isinstance(content, Mapping | list | tuple):
        for value in content.values() if isinstance(content, Mapping) else content:
            yield from objects_in(value, depth + 1)


def fitting(stored: list[Stored], expected: Mapping[str, Tensor]) -> list[Candidate]:
    """All that fit the network, each once; those that need the fewest changes of names."""
    for variant in _variants(stored, expected):
        found: list[Candidate] = []
        for candidate in variant:
            if not candidate.problems(expected) and not any(_same(candidate, other) for other in found):
                found.append(candidate)
        if found:
            return found
    return []


def nearest(stored: list[Stored], expected: Mapping[str, Tensor]) -> Candidate:
    """The candidate that has most of the network's names; where none has any, the largest dictionary of the file."""
    candidates = [candidate for variant in _variants(stored, expected) for candidate in variant]
    if candidates:
        return max(candidates, key=lambda each: (len(each.weights), -len(each.unexpected)))
    largest = Counter(each.keys for each in stored).most_common(1)
    keys = largest[0][0] if largest else ""
    unexpected = {_below(each.name, keys): each.tensor for each in stored if each.keys == keys}
    return Candidate(keys, "", {}, unexpected, ())


def _variants(stored: list[Stored], expected: Mapping[str, Tensor]) -> Iterator[list[Candidate]]:
    """Candidates by how their names are read: as they are; without wrappers' words; with words that the file lacks.

    Names of torch's older weight norm count as those of the newer one, where the network has that.
    """
    known = {word for name in expected for word in name.split(".")}
    words = [word for word in WRAPPERS if word not in known]
    words_of = {old: new for old, new in WEIGHT_NORM.items() if any(name.endswith(new) for name in expected)}
    plain = [
        Stored(_renamed(_without(each.name, words), words_of), _without(each.keys, words), each.tensor)
        for each in stored
    ]
    common = _common_words([name for name in expected if not name.endswith(_OWN_STATE)])
    for names in (stored, plain) if plain != stored else (stored,):
        for count in range(len(common) + 1):
            yield list(_candidates(names, expected, ".".join(common[:count])))


def _renamed(name: str, words: Mapping[str, str]) -> str:
    """A name with its last word replaced, where that is one of these."""
    before, dot, last = name.rpartition(".")
    return f"{before}{dot}{words.get(last, last)}"


def _without(name: str, words: list[str]) -> str:
    return ".".join(word for word in name.split(".") if word not in words)


def _common_words(names: list[str]) -> list[str]:
    """The words that all names start with; at least one word of each name is left.

    >>> _common_words(["bert.a.x", "bert.b.x"])
    ['bert']
    """
    if not names:
        return []
    split = [name.split(".")[:-1] for name in names]
    first = split[0]
    count = next((i for i, word in enumerate(first) if any(other[i : i + 1] != [word] for other in split)), len(first))
    return first[:count]


def _candidates(stored: list[Stored], expected: Mapping[str, Tensor], added: str) -> Iterator[Candidate]:
    """The words in front of most of the names that the network has, and what is below them."""
    short = {_below(name, added): name for name in expected}
    prefixes: Counter[str] = Counter()
    for each in stored:
        words = each.name.split(".")
        for start in range(len(words)):
            if ".".join(words[start:]) in short:
                prefixes[".".join(words[:start])] += 1
    for prefix, _ in prefixes.most_common(MAX_CANDIDATES):
        yield _candidate(stored, expected, short, prefix, added)


def _candidate(
    stored: list[Stored], expected: Mapping[str, Tensor], short: dict[str, str], prefix: str, added: str
) -> Candidate:
    below = {_below(each.name, prefix): each for each in stored if not prefix or each.name.startswith(f"{prefix}.")}
    weights = {short[name]: each.tensor for name, each in below.items() if name in short}
    homes = {each.keys for name, each in below.items() if name in short}
    unexpected = {
        name: each.tensor
        for name, each in below.items()
        if each.keys in homes and name not in short and _may_be_a_weight(each)
    }
    used = {below[name].name for name in (*unexpected, *(name for name in below if name in short))}
    left_out = tuple(
        each.name
        for each in stored
        if each.keys in homes and each.name not in used and not each.name.endswith(_COUNTER)
    )
    for names in _tied(expected):  # a tied weight is stored once, under any of its names
        given = next((weights[name] for name in names if name in weights), None)
        if given is not None:
            weights.update({name: given for name in names if name not in weights})
    return Candidate(prefix, added, weights, unexpected, left_out)


def _tied(expected: Mapping[str, Tensor]) -> list[list[str]]:
    """The names of each tensor that the network has under several."""
    names: dict[tuple[int, torch.Size], list[str]] = {}
    for name, tensor in expected.items():
        if not is_lazy(tensor) and tensor.numel():
            names.setdefault((tensor.data_ptr(), tensor.shape), []).append(name)
    return [group for group in names.values() if len(group) > 1]


def _may_be_a_weight(each: Stored) -> bool:
    """Whether a tensor may be a weight: counters, indices and a module's own state are not."""
    return (each.tensor.is_floating_point() or each.tensor.is_complex()) and not each.name.endswith(_OWN_STATE)


def _below(name: str, prefix: str) -> str:
    return name.removeprefix(f"{prefix}.") if prefix else name


def _same(one: Candidate, other: Candidate) -> bool:
    return all(_equal(tensor, other.weights[name]) for name, tensor in one.weights.items() if name in other.weights)


def _equal(one: Tensor, other: Tensor) -> bool:
    return one is other or (one.dtype == other.dtype and torch.equal(one, other))


def _nearest(name: str, tensor: Tensor, unexpected: Mapping[str, Tensor]) -> str:
    """The name in the file that is most like a missing one, among tensors of its shape; empty where none is."""
    alike = [other for other, found in unexpected.items() if is_lazy(tensor) or found.shape == tensor.shape]
    return next(iter(difflib.get_close_matches(name, alike, n=1, cutoff=_ALIKE)), "")


def _misfits(name: str, tensor: Tensor, built: Tensor) -> list[str]:
    """What is wrong with one weight. Its values are looked at only where its size is the network's."""
    found = []
    lazy = is_lazy(built)
    if not lazy and tensor.shape != built.shape:
        found.append(f"{name} is {list(tensor.shape)} where the factory builds {list(built.shape)}")
    if tensor.is_meta or tensor.is_quantized or tensor.layout != torch.strided or tensor.is_nested:
        kind = "meta" if tensor.is_meta else "quantized" if tensor.is_quantized else str(tensor.layout)
        return [*found, f"{name} is no plain tensor of numbers ({kind})"]
    if not lazy and (tensor.is_floating_point(), tensor.is_complex()) != (
        built.is_floating_point(),
        built.is_complex(),
    ):
        found.append(f"{name} is {dtype_of(tensor)} where the factory builds {dtype_of(built)}")
    elif not found and tensor.is_floating_point() and not _finite(tensor):
        found.append(f"{name} holds NaN or infinity")
    return found


def _finite(tensor: Tensor) -> bool:
    return bool(torch.isfinite(tensor.float() if tensor.itemsize == 1 else tensor).all())


def _size(tensor: Tensor) -> str:
    return "of a lazy layer" if is_lazy(tensor) else str(list(tensor.shape))


def dtype_of(tensor: Tensor) -> str:
    """``float32``, ``int64`` …"""
    return str(tensor.dtype).removeprefix("torch.")
