"""How sure a difference is: each metric of two models on the same samples, with a 95 % interval.

A share of samples is compared by Tango's score interval (1998, https://doi.org/10.1002/(SICI)1097-0258(19980430)17:8),
beside the exact McNemar test; any other metric by a bootstrap over blocks of samples, of which each resample draws the
same ones for both models.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from scipy.optimize import brentq
from scipy.stats import binomtest, bootstrap, norm
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_sum

from pipeline.core.arrays import Array
from pipeline.data.labels import Labels
from pipeline.tasks.task import MetricSpec, Predictions, Task, Tensors

CONFIDENCE = 0.95
BLOCKS = 200
"""The bootstrap's units, at most: enough for an interval, and few enough to keep."""
RESAMPLES, FEW_RESAMPLES = 999, 99
"""Of metrics whose states add up, which takes an instant, and of others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """Optimized minus original, in the metric's unit.

    Attributes:
        p_value: Of "both are equally good", two-sided; for shares of samples.
        gained, lost: Samples that only the optimized model has right, and only the original; for shares of samples.
    """

    metric: str
    value: float
    low: float
    high: float
    samples: int
    method: str
    p_value: float | None = None
    gained: int | None = None
    lost: int | None = None


def tango_interval(gained: float, lost: float, samples: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Tango's score interval of the difference of two paired shares.

    Args:
        gained: Samples that only the second model has right.
        lost: Samples that only the first has right.

    >>> low, high = tango_interval(gained=0, lost=0, samples=30)
    >>> round(low, 4), round(high, 4)
    (-0.1135, 0.1135)
    """
    difference, limit = (gained - lost) / samples, norm.ppf(0.5 + confidence / 2)

    def score(delta: float) -> float:
        """The score statistic of a true difference of ``delta``, with the constrained estimate of losses."""
        a, b = 2 * samples, -gained - lost + (2 * samples - gained + lost) * delta
        c = -lost * delta * (1 - delta)
        constrained = (math.sqrt(max(0.0, b * b - 4 * a * c)) - b) / (2 * a)
        variance = samples * (2 * constrained + delta * (1 - delta))
        return (gained - lost - samples * delta) / math.sqrt(max(variance, 1e-300))

    def crossing(end: float, target: float) -> float:
        """Where the statistic, which falls as ``delta`` grows, passes ``target`` between the estimate and an end."""
        inside = difference + math.copysign(1e-9, end)
        if abs(inside) >= 1 or (score(end * (1 - 1e-9)) - target) * (score(inside) - target) > 0:
            return end
        return float(brentq(lambda delta: score(delta) - target, inside, end * (1 - 1e-9), xtol=1e-10))

    return crossing(-1.0, limit), crossing(1.0, -limit)


class Paired:
    """What one model did on each block of samples, so that it can be compared with another on the same ones.

    Args:
        samples: In the whole set.
    """

    def __init__(self, task: Task, samples: int, *, labelled: bool) -> None:
        self._task, self._block, self.samples = task, max(1, math.ceil(samples / BLOCKS)), samples
        self.specs = task.usable(labelled=labelled)
        self.right: dict[str, list[Tensor]] = {spec.name: [] for spec in self.specs if spec.right is not None}
        self.blocks: dict[Callable[[], Metric], list[Metric]] = {
            spec.make: [] for spec in self.specs if spec.right is None
        }
        self._in_block = 0
        self._whole: dict[Callable[[], Metric], _Blocks] = {}

    def whole(self, spec: MetricSpec) -> _Blocks:
        """The blocks of a metric, once all samples are there. Metrics of one object, and comparisons, share them."""
        if spec.make not in self._whole:
            self._whole[spec.make] = _Blocks(self.blocks[spec.make])
        return self._whole[spec.make]

    @torch.no_grad()
    def update(self, inputs: Tensors, outputs: Tensors, original: Tensors, labels: Labels | None) -> None:
        """Add a batch, cut into blocks at the same samples for every model."""
        found = self._task.predict(outputs, inputs)
        expected = found if outputs is original else self._task.predict(original, inputs)
        given = {True: labels, False: expected}
        for spec in self.specs:
            if spec.right is not None:
                self.right[spec.name].append(spec.right(found, given[spec.needs_labels]))
        count, start = len(inputs[0]), 0
        while start < count and self.blocks:
            stop = min(count, start + self._block - self._in_block)
            self._add(_part(found, start, stop), {kind: _part(each, start, stop) for kind, each in given.items()})
            self._in_block = (self._in_block + stop - start) % self._block
            start = stop

    def _add(self, predictions: Predictions, given: dict[bool, Any]) -> None:
        for make, blocks in self.blocks.items():
            spec = next(spec for spec in self.specs if spec.make is make)
            if not blocks or (self._in_block == 0 and mergeable(blocks[0])):
                blocks.append(make())
            spec.update(blocks[-1], predictions, given[spec.needs_labels])


def _part(values: Any, start: int, stop: int) -> Any:
    """These samples of a batch: of a tensor, a list, or a tuple or mapping of them."""
    if values is None:
        return None
    if isinstance(values, Mapping):
        return {name: value[start:stop] for name, value in values.items()}
    return tuple(value[start:stop] for value in values) if isinstance(values, tuple) else values[start:stop]


def differences(original: Paired, optimized: Paired) -> list[Difference]:
    """The difference in every metric."""
    return [
        _bootstrapped(spec, original, optimized) if spec.right is None else _of_shares(spec, original, optimized)
        for spec in original.specs
    ]


def interval(spec: MetricSpec, paired: Paired) -> tuple[float, float, float]:
    """A model's own metric, and its 95 % interval: Wilson's for a share of samples, else of a bootstrap over blocks."""
    if spec.right is not None:
        right = torch.cat(paired.right[spec.name])
        found = binomtest(int(right.sum()), len(right)).proportion_ci(CONFIDENCE, method="wilson")
        return float(right.double().mean()), float(found.low), float(found.high)
    blocks, count = paired.whole(spec), len(paired.blocks[spec.make])
    value = spec.pick(blocks.computed(np.ones(count, np.int64)))
    random, resamples = np.random.default_rng(0), RESAMPLES if blocks.adds_up else FEW_RESAMPLES
    drawn = [random.multinomial(count, np.full(count, 1 / count)) for _ in range(resamples if count > 1 else 0)]
    found = [spec.pick(blocks.computed(times)) for times in drawn] or [value]
    low, high = np.quantile(found, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return value, min(float(low), value), max(float(high), value)


def _of_shares(spec: MetricSpec, original: Paired, optimized: Paired) -> Difference:
    before, after = (torch.cat(each.right[spec.name]) for each in (original, optimized))
    gained, lost = int((after & ~before).sum()), int((before & ~after).sum())
    low, high = tango_interval(gained, lost, original.samples)
    test = binomtest(gained, gained + lost).pvalue if gained + lost else 1.0
    return Difference(
        metric=spec.name,
        value=(gained - lost) / original.samples,
        low=low,
        high=high,
        samples=original.samples,
        method="Tango's score interval; exact McNemar test",
        p_value=float(test),
        gained=gained,
        lost=lost,
    )


def _bootstrapped(spec: MetricSpec, original: Paired, optimized: Paired) -> Difference:
    before, after = original.whole(spec), optimized.whole(spec)
    count = len(original.blocks[spec.make])

    def between(chosen: Array) -> float:
        drawn = np.bincount(chosen, minlength=count)
        return spec.pick(after.computed(drawn)) - spec.pick(before.computed(drawn))

    every = np.arange(count)
    value, resamples = between(every), RESAMPLES if before.adds_up else FEW_RESAMPLES
    difference = Difference(
        metric=spec.name,
        value=value,
        low=value,
        high=value,
        samples=original.samples,
        method="no interval: one sample" if original.samples == 1 else "no interval: its states cannot be merged",
    )
    if count < 2:
        return difference
    interval = bootstrap(
        (every,),
        between,
        vectorized=False,
        n_resamples=resamples,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return replace(
        difference,
        low=min(float(interval.low), value),
        high=max(float(interval.high), value),
        method=f"bootstrap over {count} blocks of samples, {resamples} resamples",
    )


class _Blocks:
    """One metric of each block, and what they give together, each taken so many times.

    Attributes:
        adds_up: All states are sums, as most are: a resample then takes one product, and no merging.
    """

    def __init__(self, blocks: Sequence[Metric]) -> None:
        self._blocks, self._whole = blocks, deepcopy(blocks[0])
        reductions = self._whole._reductions  # the one place where torchmetrics says how states are put together
        self.adds_up = bool(reductions) and all(each is dim_zero_sum for each in reductions.values())
        names = list(reductions) if self.adds_up else []
        self._sums = {name: torch.stack([getattr(block, name) for block in blocks]) for name in names}
        self._known: dict[bytes, Any] = {}

    def computed(self, times: Array) -> Any:
        """The metric over the samples of all blocks, block ``i`` taken ``times[i]`` times; each draw once."""
        drawn = times.tobytes()
        if drawn not in self._known:
            self._known[drawn] = self._compute(times)
        return self._known[drawn]

    def _compute(self, times: Array) -> Any:
        if self.adds_up:
            for name, each in self._sums.items():
                total = torch.tensordot(torch.from_numpy(times).double(), each.double(), dims=1)
                setattr(self._whole, name, total.to(each.dtype))
            self._whole._computed = None
            self._whole._update_count = len(times)
            return self._whole.compute()
        drawn = [block for block, count in zip(self._blocks, times, strict=True) for _ in range(count)]
        whole = deepcopy(drawn[0])
        for block in drawn[1:]:
            _merge(whole, block)
        return whole.compute()


def _merges_itself(metric: Metric) -> bool:
    return type(metric).merge_state is not Metric.merge_state


def mergeable(metric: Metric) -> bool:
    """Whether what it knows of some samples can be put together with what it knows of others."""
    return _merges_itself(metric) or bool(metric._reductions)


def _merge(whole: Metric, block: Metric) -> None:
    """Put a metric's states together with another's, as its states say; also where only its `forward` forbids it."""
    if _merges_itself(whole):
        whole.merge_state(block)
    else:
        whole._reduce_states(block.metric_state)


def samples_to_tell(difference: Difference, drop: float, allowed: float) -> int | None:
    """About how many samples would tell a drop from the one that is allowed, if they are like these.

    For shares: the fewest with as many changes each, of which Tango's interval tells. Otherwise an interval shrinks as
    the root of their number. None where no number of samples would, as both are equal.
    """
    if (distance := abs(drop - allowed)) < 1e-9:
        return None
    if difference.gained is not None and difference.lost is not None:
        return fewest_samples(difference.gained / difference.samples, difference.lost / difference.samples, allowed)
    width = max(difference.high - difference.value, difference.value - difference.low)
    return math.ceil(difference.samples * (width / distance) ** 2)


def fewest_samples(gained: float, lost: float, allowed: float) -> int | None:
    """The fewest samples with these shares of changes of which Tango's interval lies on one side of a drop."""

    def tells(samples: int) -> bool:
        low, high = tango_interval(gained * samples, lost * samples, samples)
        return -low <= allowed or -high > allowed

    enough: int | None = next((1 << power for power in range(1, 40) if tells(1 << power)), None)
    if enough is None:
        return None
    few = enough // 2
    while enough - few > max(1, enough // 1000):
        middle = (few + enough) // 2
        few, enough = (few, middle) if tells(middle) else (middle, enough)
    return enough
