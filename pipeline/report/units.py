"""Numbers as a person reads them. Rounding happens here, on screen, and nowhere else.

Units are SI: 1 kB is 1000 bytes. A no-break space keeps each number with its unit.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from pipeline.core import MetricInfo

NO_BREAK_SPACE = "\N{NO-BREAK SPACE}"
MINUS = "\N{MINUS SIGN}"


def significant(value: float, digits: int = 3) -> str:
    """A number to so many significant digits, never in exponent form; whole digits are all kept.

    >>> significant(0.12345), significant(9.996), significant(1234.5), significant(0)
    ('0.123', '10.0', '1234', '0')
    """
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    exponent = int(f"{value:.{digits - 1}e}".partition("e")[2])  # of the rounded number: 9.996 has two whole digits
    return f"{value:.{max(0, digits - 1 - exponent)}f}".replace("-", MINUS)


def milliseconds(nanoseconds: float) -> str:
    r"""Latencies all carry one unit, so that they compare at a glance.

    >>> milliseconds(123_400)
    '0.123\xa0ms'
    """
    return f"{significant(nanoseconds / 1e6)}{NO_BREAK_SPACE}ms"


def seconds(value: float) -> str:
    r"""A stage's duration.

    >>> seconds(1.84), seconds(91.3)
    ('1.84\xa0s', '1\xa0min 31\xa0s')
    """
    if value < 60:
        return f"{significant(value)}{NO_BREAK_SPACE}s"
    minutes, rest = divmod(round(value), 60)
    return f"{minutes}{NO_BREAK_SPACE}min {rest}{NO_BREAK_SPACE}s"


def size(count: float) -> str:
    r"""Bytes.

    >>> size(999), size(78_412), size(1_420_000)
    ('999\xa0B', '78.4\xa0kB', '1.42\xa0MB')
    """
    return _scaled(count, ("B", "kB", "MB", "GB", "TB"))


def quantity(count: float) -> str:
    r"""Parameters and multiply-accumulates.

    >>> quantity(640), quantity(61_234), quantity(20_504_576)
    ('640', '61.2\xa0k', '20.5\xa0M')
    """
    return _scaled(count, ("", "k", "M", "G", "T"))


def percent(ratio: float, decimals: int = 2) -> str:
    r"""A ratio in [0, 1].

    >>> percent(0.9263), percent(1.0, 0)
    ('92.63\xa0%', '100\xa0%')
    """
    return f"{100 * ratio:.{decimals}f}{NO_BREAK_SPACE}%".replace("-", MINUS)


def points(difference: float) -> str:
    r"""The difference of two ratios, in percentage points.

    >>> points(-0.0058), points(0.001)
    ('−0.58\xa0pp', '+0.10\xa0pp')
    """
    return f"{100 * difference:+.2f}{NO_BREAK_SPACE}pp".replace("-", MINUS)


def metric(value: float, info: MetricInfo) -> str:
    r"""A metric's value in its own unit.

    >>> metric(31.24, MetricInfo(name="psnr", title="PSNR", unit="dB")), metric(0.93, MetricInfo(name="top1", title=""))
    ('31.2\xa0dB', '93.00\xa0%')
    """
    return percent(value) if info.unit == "ratio" else _with_unit(significant(value, 4 if not info.unit else 3), info)


def change(difference: float, info: MetricInfo) -> str:
    r"""The difference of two values of a metric, with its sign.

    >>> change(-0.25, MetricInfo(name="psnr", title="PSNR", unit="dB"))
    '−0.250\xa0dB'
    """
    if info.unit == "ratio":
        return points(difference)
    sign = "+" if difference > 0 else ""
    return _with_unit(f"{sign}{significant(difference)}", info)


def _with_unit(text: str, info: MetricInfo) -> str:
    return f"{text}{NO_BREAK_SPACE}{info.unit}" if info.unit else text


def times(factor: float) -> str:
    """A factor, such as a speedup.

    >>> times(4.0325)
    '4.03×'
    """
    return f"{significant(factor)}×"


def by_name(name: str, value: object) -> str:
    r"""A value whose field's name says its unit; fields without one keep four significant digits.

    >>> by_name("duration_s", 4.4), by_name("size_bytes", 2_000), by_name("macs_before", 8_201_344), by_name("epoch", 3)
    ('4.40\xa0s', '2.00\xa0kB', '8.20\xa0M', '3')
    """
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "–"}[value]
    if not isinstance(value, int | float):
        return str(value)
    words = name.split("_")
    for word, formatted in _FORMATS.items():
        if word in words:
            return formatted(value)
    return str(value) if isinstance(value, int) else f"{value:.4g}" if abs(value) < 10_000 else f"{value:.0f}"


def heading(name: str) -> str:
    """A field's name as a heading, without the unit that `by_name` puts beside its values.

    >>> heading("duration_s"), heading("channels_after"), heading("macs")
    ('duration', 'channels after', 'macs')
    """
    words = name.split("_")
    return " ".join(words[:-1] if len(words) > 1 and words[-1] in ("ns", "s", "bytes", "db") else words)


def _scaled(count: float, units: tuple[str, ...]) -> str:
    step = 0
    while step < len(units) - 1 and abs(count) >= 999.5:
        count, step = count / 1000, step + 1
    text = f"{count:g}" if step == 0 else significant(count)
    return f"{text}{NO_BREAK_SPACE}{units[step]}".rstrip(NO_BREAK_SPACE)


_FORMATS: dict[str, Callable[[float], str]] = {
    "ratio": percent,  # before "macs": a macs_ratio is a ratio
    "top1": percent,
    "agreement": percent,
    "metric": percent,
    "ns": milliseconds,
    "s": seconds,
    "bytes": size,
    "macs": quantity,
    "parameters": quantity,
    "db": lambda value: f"{significant(value)}{NO_BREAK_SPACE}dB",
}
