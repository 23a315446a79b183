#!/usr/bin/env python3
"""Measures `arclet` and PyTorch in turns: same machine, same run, same weights, noise and times. See README.md."""

import argparse
import datetime
import hashlib
import json
import platform
import re
import subprocess
import sys
import tempfile
import types
from pathlib import Path

import numpy as np
import torch

import ours
import peers
from stats import abba, median, paired_ratio, percentile

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benches" / "results"
# Model -> steps, guidance scale and image side of the published workloads.
WORKLOADS = {"vit-b16": (50, 1.0, 224), "nanodit": (100, 3.0, 64)}
# Largest error of f32 relative to the largest value.
F32_BOUND = 1e-4
# Largest RMS error of f16 and bf16 in units of eager PyTorch's in the same type.
HALF_BOUND = 2.0


def errors(got, want):
    """(max |got - want| / max |want|, RMS of the difference / RMS of want)"""
    difference = got.astype(np.float64) - want
    return (
        float(np.abs(difference).max() / np.abs(want).max()),
        float(np.sqrt((difference**2).mean() / (want.astype(np.float64) ** 2).mean())),
    )


def check(name, dtype, got, want, eager_rms):
    """The errors of `got`; ends the run if they are too large."""
    largest, rms = errors(got, want)
    within = largest <= F32_BOUND if dtype == "f32" else rms <= HALF_BOUND * eager_rms
    if not within:  # Also when they are not numbers.
        bound = f"{F32_BOUND} of the largest" if dtype == "f32" else f"{HALF_BOUND} x {eager_rms:.2e} RMS"
        raise SystemExit(
            f"{name} in {dtype} is wrong and not timed: largest error {largest:.2e}, RMS {rms:.2e}, allowed {bound}"
        )
    return {"largest_error": largest, "rms_error": rms}


def summary(times):
    return {
        "p50_ms": percentile(times, 0.5),
        "p90_ms": percentile(times, 0.9),
        "p99_ms": percentile(times, 0.99),
        "min_ms": min(times),
    }


def measure(case, args, folder):
    """The rows of one case."""
    kinds = peers.ON_GPU if case.device.startswith("cuda") else peers.ON_CPU
    side = WORKLOADS[case.model][2]
    noise = np.random.default_rng(20).standard_normal((case.batch, 1, side, side), dtype=np.float32)
    noise_file = folder / "noise.npy"
    np.save(noise_file, noise)

    def loop(dtype, kind):
        torch._dynamo.reset()
        made = peers.Loop(case.model, case.device, dtype, noise, case.steps, case.time, case.guidance)
        return made.prepare(*kinds[kind])

    def images(made):
        made.run()
        return made.images()

    exact = loop("f32", "eager")
    want = images(exact)
    del exact
    eager = images(loop(case.dtype, "eager"))
    eager_rms = errors(eager, want)[1]
    arclet = ours.Arclet(args.arclet, case, noise_file, args.threads)
    our_errors = check("arclet", case.dtype, arclet.images(folder / "images.npy"), want, eager_rms)
    rows = []
    with arclet:
        arclet.run(args.warmup)
        for kind in kinds:
            made = loop(case.dtype, kind)
            their_errors = check(f"PyTorch {kind}", case.dtype, images(made), want, eager_rms)
            for _ in range(args.warmup):
                made.run()
            blocks = {True: [], False: []}
            for our_turn in abba(args.rounds):
                times = arclet.run(args.runs) if our_turn else [made.run() for _ in range(args.runs)]
                blocks[our_turn].append(times)
            ratio, low, high = paired_ratio(blocks[True], blocks[False])
            flat = {turn: [t for block in b for t in block] for turn, b in blocks.items()}
            about = arclet.about
            rows.append(
                {
                    "name": case.model,
                    "peer": f"PyTorch {kind}",
                    "device": about["device"],
                    "dtype": case.dtype,
                    "batch": case.batch,
                    "guidance": case.guidance,
                    "steps": case.steps,
                    "time": case.time,
                    "evaluations": about["evaluations"],
                    "warm_ups": args.warmup,
                    "runs": len(flat[True]),
                    "arclet": {**summary(flat[True]), **our_errors, "gate": about["gate"]},
                    "theirs": {**summary(flat[False]), **their_errors},
                    "ratio": ratio,
                    "ratio_95": [low, high],
                    "block_medians_ms": {
                        "arclet": [median(b) for b in blocks[True]],
                        "theirs": [median(b) for b in blocks[False]],
                    },
                }
            )
            print(line(rows[-1]), flush=True)
            del made
    return rows


HEAD = (
    f"{'model':<8} {'peer':<33} {'dtype':>5} {'NFE':>4} {'arclet p50':>11} {'p99':>9} {'peer p50':>11} {'p99':>9}"
    "   peer / arclet [95 %]"
)


def line(row):
    a, t = row["arclet"], row["theirs"]
    low, high = row["ratio_95"]
    return (
        f"{row['name']:<8} {row['peer']:<33} {row['dtype']:>5} {row['evaluations']:>4} "
        f"{a['p50_ms']:>11.3f} {a['p99_ms']:>9.3f} "
        f"{t['p50_ms']:>11.3f} {t['p99_ms']:>9.3f}   {row['ratio']:.3f} [{low:.3f}, {high:.3f}]"
    )


def said(*command):
    """What a command prints, or None where it is missing or fails."""
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def cpu_model():
    try:
        return re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text()).group(1)
    except (OSError, AttributeError):
        return platform.processor() or platform.machine()


def commit():
    """Twelve digits, with `-changed` for a tree with changes."""
    packed = ROOT / "COMMIT"  # in a folder that tools/pack-gpu made
    if packed.is_file():
        return packed.read_text().strip()
    head = said("git", "rev-parse", "--short=12", "HEAD") or "unknown"
    return head + ("-changed" if said("git", "status", "--porcelain", "--untracked-files=no") else "")


def machine(device, args):
    about = {
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d"),
        "commit": commit(),
        "arclet_sha256": hashlib.sha256(Path(args.arclet).read_bytes()).hexdigest(),
        "arclet": said(args.arclet, "--version"),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        "cpu": cpu_model(),
        "threads": args.threads or torch.get_num_threads(),
        "command": "benches/peers/run.py " + " ".join(sys.argv[1:]),
    }
    if device.startswith("cuda"):
        gpu = torch.cuda.get_device_properties(device)
        about |= {
            "gpu": gpu.name,
            "gpu_memory": gpu.total_memory,
            "cuda": torch.version.cuda,
            "nvidia_smi": said(
                "nvidia-smi",
                "--query-gpu=name,driver_version,clocks.sm,clocks.max.sm,clocks.mem,power.draw,power.limit,"
                "temperature.gpu,clocks_throttle_reasons.active",
                "--format=csv",
            ),
        }
    return about


def arguments():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--arclet", default=str(ROOT / "target" / "release" / "arclet"), help="the program [target/release/arclet]"
    )
    parser.add_argument("--models", default="vit-b16,nanodit")
    parser.add_argument(
        "--device",
        default="cuda" if torch.cuda.is_available() else "cpu",
        help="cuda, cuda:N or cpu [cuda where there is one]",
    )
    parser.add_argument("--dtypes", help="[f16 on a GPU, f32,bf16 on the CPU]")
    parser.add_argument("--steps", type=int, help="[a GPU: 50 for vit-b16, 100 for nanodit; the CPU: 1]")
    parser.add_argument("--time", choices=["train", "notebook"], default="train")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--threads", type=int, default=0, help="of the CPU, for both [as each chooses]")
    parser.add_argument("--warmup", type=int, help="runs before the measured ones [a GPU: 100, the CPU: 2]")
    parser.add_argument("--rounds", type=int, help="rounds of A B B A [a GPU: 10, the CPU: 5]")
    parser.add_argument("--runs", type=int, help="runs in each turn [a GPU: 50, the CPU: 2]")
    parser.add_argument("--out", type=Path, help="JSON file [benches/results/DATE-DEVICE-COMMIT-peers.json]")
    args = parser.parse_args()
    gpu = args.device.startswith("cuda")
    for name, on_gpu, on_cpu in [("dtypes", "f16", "f32,bf16"), ("warmup", 100, 2), ("rounds", 10, 5), ("runs", 50, 2)]:
        if getattr(args, name) is None:
            setattr(args, name, on_gpu if gpu else on_cpu)
    unknown = set(args.models.split(",")) - set(WORKLOADS) or set(args.dtypes.split(",")) - set(peers.DTYPES)
    if unknown:
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    if min(args.warmup, args.rounds, args.runs, args.batch) < 1 or (args.steps or 2) < (
        2 if args.time == "notebook" else 1
    ):
        parser.error(
            "--warmup, --rounds, --runs, --batch and --steps are at least 1, --steps at least 2 with --time notebook"
        )
    return args


def main():
    args = arguments()
    peers.settings(args.threads)
    gpu = args.device.startswith("cuda")
    about = machine(args.device, args)
    if not gpu:
        print("no GPU asked for or found: CPU rows only", file=sys.stderr)
    print(HEAD)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for model in args.models.split(","):
            steps, guidance, _ = WORKLOADS[model]
            for dtype in args.dtypes.split(","):
                default = steps if gpu else (2 if args.time == "notebook" else 1)
                case = types.SimpleNamespace(
                    model=model,
                    device=args.device,
                    dtype=dtype,
                    steps=args.steps or default,
                    time=args.time,
                    guidance=guidance,
                    batch=args.batch,
                )
                rows += measure(case, args, Path(folder))
    slug = re.sub(r"[^a-z0-9]+", "-", about.get("gpu", about["cpu"]).lower()).strip("-")
    out = args.out or RESULTS / f"{about['date']}-{slug}-{about['commit']}-peers.json"
    out.write_text(json.dumps({"machine": about, "rows": rows}, indent=1) + "\n")
    print(out, file=sys.stderr)


if __name__ == "__main__":
    main()
