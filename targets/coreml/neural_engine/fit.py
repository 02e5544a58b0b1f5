"""Fit the roofline's efficiencies to published latencies, and say how well it predicts the ones held out.

``python -m targets.coreml.neural_engine.fit`` reads ``published.csv`` and ``operators.csv``, writes ``fitted.json``
and prints the errors. Models are split by a hash of their name; only training models are fitted.
"""

from __future__ import annotations

import csv
import hashlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from targets.coreml.neural_engine.latency import CHIPS, Array, Fitted, Workload, seconds, workload, write_fitted
from targets.coreml.neural_engine.networks import read_operators
from targets.coreml.neural_engine.work import StoredPrecision, Work

PUBLISHED = Path(__file__).parent / "published.csv"


@dataclass(frozen=True, slots=True)
class PublishedLatency:
    """One published latency in milliseconds, and where it stands."""

    model: str
    precision: StoredPrecision
    chip: str
    device: str
    latency_ms: float
    source: str

    @property
    def test(self) -> bool:
        """Whether the model is held out: a third of all, by a hash of the name without its input size."""
        name = self.model.removesuffix(" backbone")
        return int(hashlib.sha256(name.encode()).hexdigest()[:8], 16) % 3 == 0


def read_published(path: Path = PUBLISHED) -> list[PublishedLatency]:
    """All rows of the table."""
    with path.open(newline="") as file:
        return [PublishedLatency(**{**row, "latency_ms": float(row["latency_ms"])}) for row in csv.DictReader(file)]  # type: ignore[arg-type]


MAC_KINDS = ("conv", "depthwise", "linear", "matmul")
MOVING_KINDS = ("conv", "depthwise", "linear", "matmul", "elementwise", "activation", "reduction", "layout")
PRIOR = Fitted(
    efficiency={"conv": 0.5, "depthwise": 0.05, "linear": 0.3, "matmul": 0.1},
    activation_gb_s=dict.fromkeys(MOVING_KINDS, 200.0),
    weight_share=0.7,
    spill_share=0.5,
    operator_us=1.0,
    call_us=100.0,
    pace={},
)
"""Where the fit starts, and what it stays close to where no row says otherwise."""

SPREAD, PACE_SPREAD, NOISE = 1.0, 0.25, 0.2
"""Standard deviations of logarithms: of a constant about its prior, of a chip's pace about 1, of a published latency
about the truth (sources repeat each other within 10 to 20 %)."""


def unpack(logarithms: Array, chips: tuple[str, ...]) -> Fitted:
    """Constants from the logarithms that the solver moves."""
    factors = iter(np.exp(logarithms).tolist())
    return Fitted(
        efficiency={kind: value * next(factors) for kind, value in PRIOR.efficiency.items()},
        activation_gb_s={kind: value * next(factors) for kind, value in PRIOR.activation_gb_s.items()},
        weight_share=PRIOR.weight_share * next(factors),
        spill_share=PRIOR.spill_share * next(factors),
        operator_us=PRIOR.operator_us * next(factors),
        call_us=PRIOR.call_us * next(factors),
        pace={chip: next(factors) for chip in chips},
    )


def fit(rows: list[PublishedLatency], operators: dict[str, Counter[Work]]) -> Fitted:
    """The constants that make the rows most likely; each model weighs as one, however often it was measured."""
    from scipy.optimize import least_squares

    chips = tuple(sorted({row.chip for row in rows}))
    loads = [row_workload(row, operators) for row in rows]
    constants = len(MAC_KINDS) + len(MOVING_KINDS) + 4
    spread = np.array([SPREAD] * constants + [PACE_SPREAD] * len(chips))
    published = np.log([row.latency_ms for row in rows])
    shares = Counter(row.model for row in rows)
    weights = np.array([shares[row.model] ** -0.5 for row in rows]) / NOISE

    def residuals(logarithms: Array) -> Array:
        errors = np.log(predictions(rows, loads, unpack(logarithms, chips))) - published
        return np.concatenate([errors * weights, logarithms / spread])

    shares_of_peak = [*PRIOR.efficiency.values(), *[0.0] * len(MOVING_KINDS), PRIOR.weight_share, PRIOR.spill_share]
    most = [-np.log(share) if share else np.inf for share in shares_of_peak] + [np.inf] * (2 + len(chips))
    solution = least_squares(residuals, np.zeros(len(spread)), bounds=(-np.inf, most), loss="soft_l1")
    return unpack(solution.x, chips)


def row_workload(row: PublishedLatency, operators: dict[str, Counter[Work]]) -> Workload:
    """The FP16 program's work, stored in the row's precision."""
    changed: Counter[Work] = Counter()
    for work, count in operators[row.model].items():
        changed[work.as_precision(row.precision)] += count
    return workload(changed)


def predictions(rows: list[PublishedLatency], loads: list[Workload], values: Fitted) -> Array:
    """Milliseconds for each row."""
    return np.array([1e3 * seconds(load, CHIPS[row.chip], values) for row, load in zip(rows, loads, strict=True)])


def median_error(predicted: Array, published: Array) -> float:
    """Median of the absolute relative errors."""
    return float(np.median(np.abs(predicted / published - 1)))


def spearman(predicted: Array, published: Array) -> float:
    """Rank correlation; equal values share their mean rank."""
    from scipy.stats import spearmanr

    return float(cast(Any, spearmanr(predicted, published)).statistic)


def predicted(rows: list[PublishedLatency], operators: dict[str, Counter[Work]], values: Fitted) -> Array:
    """Milliseconds for each row, from the networks' operators."""
    return predictions(rows, [row_workload(row, operators) for row in rows], values)


def main() -> None:
    """Fit, write the constants, and print the errors."""
    operators, rows = read_operators(), read_published()
    train, test = [row for row in rows if not row.test], [row for row in rows if row.test]
    values = fit(train, operators)
    _report("train", train, predicted(train, operators, values))
    error, rank = _report("test", test, predicted(test, operators, values))
    held_out = {"rows": len(train), "test_rows": len(test), "test_error": error, "test_spearman": rank}
    write_fitted(values.model_copy(update=held_out))


def _report(part: str, rows: list[PublishedLatency], found: Array) -> tuple[float, float]:
    published = np.array([row.latency_ms for row in rows])
    error, rank = median_error(found, published), spearman(found, published)
    networks = len({row.model for row in rows})
    print(f"{part}: {len(rows)} latencies, {networks} networks, median absolute error {error:.1%}, Spearman {rank:.3f}")
    return error, rank


if __name__ == "__main__":
    main()
