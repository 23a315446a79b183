"""The table on stdout. Standard library only."""

HEAD = (
    f"{'model':<11} {'peer':<33} {'dtype':>5} {'batch':>5} {'NFE':>4} {'arclet p50':>11} {'p99':>9} "
    f"{'peer p50':>11} {'p99':>9}   peer / arclet [95 %]"
)


def line(row):
    """One peer of one case; milliseconds of a run."""
    a, t = row["arclet"], row["theirs"]
    low, high = row["ratio_95"]
    note = f"  {row['note']}" if row.get("note") else ""
    return (
        f"{row['name']:<11} {row['peer']:<33} {row['dtype']:>5} {row['batch']:>5} {row['evaluations']:>4} "
        f"{a['p50_ms']:>11.3f} {a['p99_ms']:>9.3f} "
        f"{t['p50_ms']:>11.3f} {t['p99_ms']:>9.3f}   {row['ratio']:.3f} [{low:.3f}, {high:.3f}]{note}"
    )


def skipped_line(case, peer, why):
    """A row that could not be measured, and why; the first line of `why` only."""
    why = (str(why).strip() or type(why).__name__).splitlines()[0]
    return f"{case.model:<11} {peer:<33} {case.dtype:>5} {case.batch:>5}      skipped: {why[:120]}"


def raw_line(when, rates):
    """Matrix products by themselves, GFLOP/s; on a quiet machine all such lines say the same."""
    said = ", ".join(f"{name} {rate:.0f}" for name, rate in rates.items())
    return f"raw product 1024^3, GFLOP/s, {when}: {said}"


def extra_lines(about):
    """What `arclet bench` says beyond what this program knows, its ceilings for instance."""
    return [f"  arclet {key}: {value}" for key, value in about.items()]
