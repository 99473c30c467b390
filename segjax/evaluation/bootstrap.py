"""How sure a score is: intervals over the pictures of one run, and the spread of several runs."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

Rows = Mapping[str, np.ndarray]
Scores = Callable[[Rows], Mapping[str, np.ndarray]]

_AT_ONCE = 100  # resamples, so that the memory does not grow with their number


def intervals(
    rows: Rows, scores: Scores, *, level: float = 0.95, resamples: int = 1000, seed: int = 0
) -> dict[str, tuple[float, float]]:
    """Percentile intervals of scores by the bootstrap over pictures.

    As many pictures as there are, P, are drawn with replacement, and the scores computed of those;
    again and again. An interval holds the middle `level` of what came out. It tells how the score
    would differ on other pictures of the same kind and number; not how it would differ after
    another training (see `mean_and_deviation`), and with a few pictures it is too narrow.

    Args:
        rows: by name, what is counted of each picture, (P, …): what adds up over pictures.
        scores: sums over the pictures, (R, …) by name -> R values of each score, by name.
        level: in 0–1.
        resamples: R in all.
        seed: of the draw; the same gives the same intervals.

    Returns:
        (low, high) by name; NaN where the score is NaN in every resample, and nothing at all for
        fewer than two pictures.

    Reference: Efron, Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13.
    """
    pictures = len(next(iter(rows.values())))
    if pictures < 2:
        return {}
    rng = np.random.default_rng(seed)
    found: dict[str, list[np.ndarray]] = {}
    for start in range(0, resamples, _AT_ONCE):
        number = min(_AT_ONCE, resamples - start)
        drawn = rng.integers(pictures, size=(number, pictures))
        times = np.stack([np.bincount(row, minlength=pictures) for row in drawn]).astype(float)
        # Whole numbers below 2⁵³, which float64 adds exactly.
        sums = {name: np.tensordot(times, values, 1) for name, values in rows.items()}
        for name, values in scores(sums).items():
            found.setdefault(name, []).append(values)
    ends = 50 - 50 * level, 50 + 50 * level
    return {name: _percentiles(np.concatenate(values), ends) for name, values in found.items()}


def mean_and_deviation(runs: Sequence[Mapping[str, float]]) -> dict[str, tuple[float, float]]:
    """Mean and standard deviation of each score over several runs, as over seeds.

    The deviation is that of a sample, √(Σ (x - mean)² / (R - 1)): NaN of a single run.

    Args:
        runs: the scores of R runs by name.

    Returns:
        (mean, deviation) of each score that all of them have; NaN where it is NaN in one.
    """
    found = {}
    for name in runs[0] if runs else ():
        if all(name in run for run in runs):
            values = np.array([run[name] for run in runs], float)
            deviation = float(values.std(ddof=1)) if len(values) > 1 else float("nan")
            found[name] = float(values.mean()), deviation
    return found


def _percentiles(values: np.ndarray, ends: tuple[float, float]) -> tuple[float, float]:
    values = values[~np.isnan(values)]
    if not values.size:
        return float("nan"), float("nan")
    low, high = np.percentile(values, ends)
    return float(low), float(high)
