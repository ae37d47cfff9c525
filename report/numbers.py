"""Numbers and texts as a reader expects them: percentages, durations, counts, sizes."""

from __future__ import annotations

import math

_PREFIXES = ((1e9, "G"), (1e6, "M"), (1e3, "k"))
_OPERATIONS = ((1e18, "EFLOP"), (1e15, "PFLOP"), (1e12, "TFLOP"), (1e9, "GFLOP"), (1e6, "MFLOP"))


def percent(share: float) -> str:
    """Return a fraction as a percentage, with more digits where it is small."""
    if not math.isfinite(share):
        return "not measured"
    scaled = 100 * share
    if scaled == 0 or scaled >= 10:
        return f"{scaled:.1f}%" if 0 < scaled < 100 else f"{scaled:.0f}%"
    return f"{scaled:.2f}%" if scaled >= 0.1 else f"{scaled:.2g}%"


def count(value: float) -> str:
    """Return a whole number with its thousands apart."""
    return f"{round(value):,}" if math.isfinite(value) else "not measured"


def short_count(value: float) -> str:
    """Return a number in three digits with k, M or G."""
    for size, letter in _PREFIXES:
        if abs(value) >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}"


def flop_unit(largest: float) -> tuple[float, str]:
    """Return the size and name of the unit for floating point operations up to `largest`."""
    return next((unit for unit in _OPERATIONS if abs(largest) >= unit[0]), _OPERATIONS[-1])


def flop_count(flops: float) -> str:
    """Return floating point operations in three digits."""
    size, name = flop_unit(flops)
    return f"{flops / size:.3g} {name}"


def duration(seconds: float) -> str:
    """Return a duration in the one or two units that matter."""
    if not math.isfinite(seconds):
        return "not measured"
    if seconds < 1:
        return f"{1000 * seconds:.3g} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min"


def decimal(value: float) -> str:
    """Return a value in four significant digits, or in powers of ten where it is tiny or huge."""
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "infinite"
    if value == 0:
        return "0"
    if not 1e-3 <= abs(value) < 1e6:
        mantissa, exponent = f"{value:.2e}".split("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    return f"{value:.4g}" if abs(value) < 1e4 else count(value)


def times(value: float, chance: float) -> str | None:
    """Return "3.2 times" for a value against chance, or None where there is no ratio."""
    if not (math.isfinite(value) and math.isfinite(chance)) or chance <= 0:
        return None
    ratio = value / chance
    return f"{ratio:.0f} times" if ratio >= 10 else f"{ratio:.1f} times"


def standard_error(share: float, num_trials: int) -> float:
    """Return the standard error of a share measured over independent trials (binomial)."""
    if num_trials <= 0 or not 0 <= share <= 1:
        return math.nan
    return math.sqrt(share * (1 - share) / num_trials)


def size(num_bytes: float) -> str:
    """Return a number of bytes in KiB, MiB or GiB."""
    for unit, factor in (("GiB", 1024**3), ("MiB", 1024**2)):
        if num_bytes >= factor:
            return f"{num_bytes / factor:.1f} {unit}"
    return f"{num_bytes / 1024:.1f} KiB"


def shorten(text: str, most: int) -> str:
    """Return a text of at most `most` characters, cut at a word with an ellipsis."""
    text = " ".join(text.split())
    if len(text) <= most:
        return text
    return text[: most - 1].rsplit(" ", 1)[0] + "\N{HORIZONTAL ELLIPSIS}"
