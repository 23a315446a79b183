"""One case: `arclet` and its peers, results first, then times in turns."""

import numpy as np

import engines
import ours
import peers
import table
from budget import Budget, within
from checks import check, errors
from stats import median, paired_ratio, percentile
from turns import LONG_RUN, blocks_in_turns

def summary(times):
    return {
        "p50_ms": percentile(times, 0.5),
        "p90_ms": percentile(times, 0.9),
        "p99_ms": percentile(times, 0.99),
        "min_ms": min(times),
    }


def measure(case, args, folder):
    """(rows, skipped rows) of one case."""
    noise = np.random.default_rng(20).standard_normal((case.batch, 1, case.side, case.side), dtype=np.float32)
    noise_file = folder / "noise.npy"
    np.save(noise_file, noise)
    budget = Budget(args.limit)

    def images(made):
        made.run()
        return made.images()

    def eager(dtype):
        start = peers.Case(case.model, noise, case.steps, case.time, case.guidance)
        return images(peers.Loop(start, case.device, dtype).prepare(None, False))

    want = eager("f32")
    eager_rms = errors(eager(case.dtype), want)[1]
    arclet = ours.Arclet(args.arclet, case, noise_file, args.threads)
    our_errors = check("arclet", case.dtype, arclet.images(folder / "images.npy"), want, eager_rms)
    rows, skipped = [], []
    all_engines = engines.of(case, noise, args.threads, folder)
    with arclet:
        warm = arclet.run(1)
        if warm[0] < LONG_RUN and args.warmup > 1:
            arclet.run(args.warmup - 1)
        for i, engine in enumerate(all_engines):
            made = None
            why = engine.lacks()
            if not why:
                try:
                    with within(budget.left()):
                        made, note = engine.make()
                        their_errors = check(engine.name, case.dtype, images(made), want, eager_rms)
                        for _ in range(args.warmup):
                            made.run()
                # Whatever another program does wrong, its row alone is lost.
                except Exception as error:
                    why = error
            if why:
                skipped.append(
                    {
                        "name": case.model,
                        "peer": engine.name,
                        "dtype": case.dtype,
                        "batch": case.batch,
                        "why": str(why),
                        "absent": bool(engine.lacks()),
                    }
                )
                print(table.skipped_line(case, engine.name, why), flush=True)
                continue
            share = budget.share(len(all_engines) - i)
            blocks = blocks_in_turns(
                arclet.run, lambda n: [made.run() for _ in range(n)], args.rounds, args.runs, share
            )
            rows.append(row(case, engine.name, note, arclet, blocks, args.warmup, our_errors, their_errors))
            print(table.line(rows[-1]), flush=True)
        for text in table.extra_lines(arclet.extra()):
            print(text)
    return rows, skipped


def row(case, peer, note, arclet, blocks, warm_ups, our_errors, their_errors):
    """What is kept of one peer of one case."""
    ratio, low, high = paired_ratio(blocks[True], blocks[False])
    flat = {turn: [t for block in b for t in block] for turn, b in blocks.items()}
    about = arclet.about
    return {
        "name": case.model,
        "peer": peer,
        "note": note,
        "device": about["device"],
        "dtype": case.dtype,
        "batch": case.batch,
        "guidance": case.guidance,
        "steps": case.steps,
        "time": case.time,
        "evaluations": about["evaluations"],
        "warm_ups": warm_ups,
        "runs": len(flat[True]),
        "arclet": {**summary(flat[True]), **our_errors, "gate": about["gate"], **arclet.extra()},
        "theirs": {**summary(flat[False]), **their_errors},
        "ratio": ratio,
        "ratio_95": [low, high],
        "block_medians_ms": {
            "arclet": [median(b) for b in blocks[True]],
            "theirs": [median(b) for b in blocks[False]],
        },
    }
