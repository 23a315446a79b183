#!/usr/bin/env python3
"""Measures `arclet` and other engines in turns: one machine, one run, same weights, noise and times. See README.md."""

import argparse
import json
import os
import re
import sys
import tempfile
from pathlib import Path

import machine
import table
import workloads

RESULTS = machine.ROOT / "benches" / "results"
DTYPES = ["f32", "f16", "bf16"]


def arguments(given=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--arclet",
        default=str(machine.ROOT / "target" / "release" / "arclet"),
        help="the program [target/release/arclet]",
    )
    parser.add_argument("--models", help=f"[a GPU: {workloads.GPU_MODELS}; the CPU: {','.join(workloads.MODELS)}]")
    parser.add_argument("--device", default="auto", help="cuda, cuda:N or cpu [cuda where there is one]")
    parser.add_argument("--dtypes", help="[f16 on a GPU, f32,bf16 on the CPU]")
    parser.add_argument("--steps", type=int, help="[those of the workload; the CPU: 1, lens-dit-s 50]")
    parser.add_argument("--time", choices=["train", "notebook"], default="train")
    parser.add_argument("--batch", type=int, help="[1; lens-dit-s on the CPU also 16 at 4 steps]")
    parser.add_argument("--threads", type=int, help="of the CPU, for all [all cores; on a GPU as each chooses]")
    parser.add_argument("--warmup", type=int, help="runs before the measured ones [a GPU: 100, the CPU: 2]")
    parser.add_argument("--rounds", type=int, help="rounds of A B B A, at most [a GPU: 10, the CPU: 8]")
    parser.add_argument("--runs", type=int, help="runs in each turn [a GPU: 50, the CPU: 2]")
    parser.add_argument("--limit", type=float, help="seconds of a case, its peers together [a GPU: 3600, the CPU: 100]")
    parser.add_argument("--out", type=Path, help="JSON file [benches/results/DATE-DEVICE-COMMIT-peers.json]")
    args = parser.parse_args(given)
    if args.device == "auto":
        import torch

        args.device = "cuda" if torch.cuda.is_available() else "cpu"
    gpu = args.device.startswith("cuda")
    defaults = {
        "models": (workloads.GPU_MODELS, ",".join(workloads.MODELS)),
        "dtypes": ("f16", "f32,bf16"),
        "warmup": (100, 2),
        "rounds": (10, 8),
        "runs": (50, 2),
        "limit": (3600.0, 100.0),
        "threads": (0, machine.cores()),
    }
    for name, (on_gpu, on_cpu) in defaults.items():
        if getattr(args, name) is None:
            setattr(args, name, on_gpu if gpu else on_cpu)
    args.models, args.dtypes = args.models.split(","), args.dtypes.split(",")
    unknown = set(args.models) - set(workloads.MODELS) | set(args.dtypes) - set(DTYPES)
    if unknown:
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    least = {"warmup": 1, "rounds": 1, "runs": 1, "batch": 1, "steps": 2 if args.time == "notebook" else 1}
    for name, at_least in least.items():
        if (getattr(args, name) or at_least) < at_least or getattr(args, name) == 0:
            parser.error(f"--{name} is at least {at_least}")
    if not args.limit > 0 or args.threads < 0:
        parser.error("--limit is above 0, --threads not negative")
    return args


def main():
    args = arguments()
    gpu = args.device.startswith("cuda")
    if args.threads:
        # Before the first import of what reads it.
        for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
            os.environ[name] = str(args.threads)
    import torch

    import compare
    import peers
    import raw
    from checks import Wrong

    peers.settings(args.threads, gpu)
    about = machine.machine(args.arclet, args.threads or torch.get_num_threads(), sys.argv[1:])
    if gpu:
        device = torch.cuda.get_device_properties(args.device)
        about |= machine.gpu(device.name, device.total_memory, torch.version.cuda)
    else:
        print(f"CPU: {about['cpu']}, {about['threads']} threads for every engine", file=sys.stderr)
    cases = workloads.cases(args.device, args.models, args.dtypes, args.time, args.steps, args.batch)
    rows, skipped, rates = [], [], []

    def products(when):
        if not gpu:
            rates.append({"when": when, "gflops": raw.products()})
            print(table.raw_line(when, rates[-1]["gflops"]), flush=True)

    print(table.HEAD)
    products("before")
    with tempfile.TemporaryDirectory() as folder:
        for i, case in enumerate(cases):
            if i == (len(cases) + 1) // 2:
                products("in the middle")
            try:
                measured, left_out = compare.measure(case, args, Path(folder))
            except Wrong as error:
                raise SystemExit(str(error)) from None
            rows += measured
            skipped += left_out
    products("after")
    slug = re.sub(r"[^a-z0-9]+", "-", about.get("gpu", about["cpu"]).lower()).strip("-")
    out = args.out or RESULTS / f"{about['date']}-{slug}-{about['commit']}-peers.json"
    result = {"machine": about, "raw_products": rates, "rows": rows, "skipped": skipped}
    out.write_text(json.dumps(result, indent=1) + "\n")
    print(out, file=sys.stderr)
    if any(not row["absent"] for row in skipped):
        raise SystemExit("some peers are installed and have no row: see above")


if __name__ == "__main__":
    main()
