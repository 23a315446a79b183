"""Two programs in turns. Standard library only."""

import itertools

from stats import abba, median

# Rounds of A B B A that an interval needs, whatever the time.
LEAST_ROUNDS = 2
# A turn is one run where runs are longer than this, in milliseconds.
LONG_RUN = 500.0


def blocks_in_turns(run_ours, run_theirs, rounds, runs, budget):
    """Times of both in blocks that were measured next to each other: at most `rounds` rounds of `runs` runs a turn,
    fewer when the budget is spent."""
    blocks = {True: [], False: []}
    for done in itertools.count(1):
        for our_turn in abba(1):
            blocks[our_turn].append((run_ours if our_turn else run_theirs)(runs))
        if median(blocks[True][0] + blocks[False][0]) > LONG_RUN:
            runs = 1
        if done >= rounds or (done >= LEAST_ROUNDS and budget.left() <= 0):
            return blocks
