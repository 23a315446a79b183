"""Percentiles, and ratios of two programs that were measured in turns. Standard library only."""

import math
import random


def percentile(times, p):
    """Nearest rank, as `arclet bench` computes it."""
    ordered = sorted(times)
    return ordered[min(max(math.ceil(p * len(ordered)), 1), len(ordered)) - 1]


def median(values):
    """The middle value, or the mean of the middle two."""
    ordered = sorted(values)
    half = len(ordered) // 2
    return ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2


def paired_ratio(ours, theirs, resamples=10000, seed=0):
    """How many times as long `theirs` takes as `ours`: (ratio, low, high).

    Each argument is a list of blocks of times in milliseconds; block i of both was measured next to each other. The
    ratio is the geometric mean over pairs of the ratio of the blocks' medians; (low, high) is its 95 % interval from a
    bootstrap over pairs, which are what is independent: the runs of one block share a clock speed."""
    if not ours or len(ours) != len(theirs):
        raise ValueError(f"{len(ours)} and {len(theirs)} blocks are no pairs")
    logs = [math.log(median(t) / median(o)) for o, t in zip(ours, theirs)]
    rng = random.Random(seed)
    means = sorted(sum(rng.choices(logs, k=len(logs))) / len(logs) for _ in range(resamples))
    low, high = means[int(0.025 * resamples)], means[min(int(0.975 * resamples), resamples - 1)]
    return math.exp(sum(logs) / len(logs)), math.exp(low), math.exp(high)


def abba(rounds):
    """Whose turn it is: True is ours. A B B A, so that a drift that is linear in time cancels in each round."""
    return [ours for _ in range(rounds) for ours in (True, False, False, True)]
