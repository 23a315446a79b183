#!/usr/bin/env python3
"""Measures training steps of lens-dit-s on the CPU by `arclet train` and by PyTorch in turns. See README.md."""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import machine
import stats

# Per dtype of `arclet` the ways of PyTorch it is set against: name, autocast, compiled.
PEERS = {
    "f32": [("eager", False, False), ("compiled", False, True)],
    "bf16": [("eager, autocast", True, False), ("compiled, autocast", True, True)],
}
CONFIG = """[data]
batch_size = {batch}
[data.transform]
normalize = "min_max"
output_range = [-1, 1]
[run]
sample_every = 0
validate_every = 0
save_every = 0
log_every = 1
"""


def arguments(given=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--arclet",
        default=str(machine.ROOT / "target" / "release" / "arclet"),
        help="the program [target/release/arclet]",
    )
    parser.add_argument("--data", type=Path, help="images to train on [simulated]")
    parser.add_argument("--dtypes", default="f32,bf16", help="[f32,bf16]")
    parser.add_argument("--batch", type=int, default=32, help="[32]")
    parser.add_argument("--threads", type=int, default=machine.cores(), help="of the CPU, for both [all cores]")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of A B B A [3]")
    parser.add_argument("--steps", type=int, default=5, help="measured steps of a turn; one more goes before them [5]")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--out", type=Path, help="JSON file [none]")
    args = parser.parse_args(given)
    args.dtypes = args.dtypes.split(",")
    if unknown := set(args.dtypes) - set(PEERS):
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    if min(args.batch, args.threads, args.rounds, args.steps) < 1:
        parser.error("numbers are at least 1")
    return args


class Arclet:
    """`arclet train` from the start, each turn anew: its steps by its own clock, without start and saving."""

    def __init__(self, args, folder):
        self.args, self.folder = args, folder
        self.config = folder / "bench.toml"
        self.config.write_text(CONFIG.format(batch=args.batch))
        self.data = args.data or folder / "data"
        if not args.data:
            each = str(-(-args.batch // 3) + 8)
            self.run("data", "simulate", "--n", each, "--out", str(self.data))
        self.turns = 0

    def run(self, *words):
        subprocess.run([self.args.arclet, *words], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def turn(self, dtype):
        """Milliseconds of each step but the first."""
        self.turns += 1
        out = self.folder / f"run-{self.turns}"
        words = ["--config", self.config, "--data", self.data, "--out", out, "--steps", self.args.steps + 1]
        words += ["--device", "cpu", "--dtype", dtype, "--threads", self.args.threads]
        self.run("train", *map(str, words))
        lines = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
        return times([line["seconds"] for line in lines if line["kind"] == "train"])


def times(ends):
    """Milliseconds between the ends, in seconds, of steps that follow each other."""
    return [(b - a) * 1e3 for a, b in zip(ends, ends[1:])]


class Torch:
    """The same step: AdamW, clipping by the norm, exponential moving average; images are already in memory."""

    def __init__(self, args, autocast, compiled):
        import models
        import torch

        self.args, self.autocast, self.torch = args, autocast, torch
        self.network = models.build("lens-dit-s").train()
        parameters = [p for name, p in self.network.named_parameters() if name != "pos_embed"]
        self.parameters = [p.requires_grad_() for p in parameters]
        self.averages = [p.detach().clone() for p in self.parameters]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=1e-5, betas=(0.9, 0.99), weight_decay=0.01)
        self.velocity = torch.compile(self.network, dynamic=False) if compiled else self.network
        half = models.FREQUENCIES // 2
        self.frequencies = torch.tensor(self.network.t_embedder.frequencies[:half])
        self.images = torch.rand(args.batch, 1, 64, 64) * 2 - 1
        self.labels = torch.arange(args.batch) % 3
        self.step()

    def step(self):
        torch = self.torch
        t, noise = torch.rand(len(self.images)), torch.randn_like(self.images)
        x = torch.lerp(self.images, noise, t[:, None, None, None])
        angle = t[:, None] * self.frequencies
        dropped = torch.rand(len(t)) < 0.1
        labels = torch.where(dropped, self.network.null_class, self.labels)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.autocast):
            velocity = self.velocity(x, torch.cat([angle.cos(), angle.sin()], dim=1), labels)
        loss = torch.nn.functional.mse_loss(velocity.float(), noise - self.images)
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(self.averages, self.parameters, 0.001)
        return loss.item()

    def turn(self):
        """Milliseconds of each step, after one that is not counted."""
        self.step()
        ends = [time.perf_counter()]
        for _ in range(self.args.steps):
            self.step()
            ends.append(time.perf_counter())
        return times(ends)


def measure(ours, dtype, peer, args):
    """A row of both in turns."""
    name, autocast, compiled = peer
    theirs = Torch(args, autocast, compiled)
    blocks = {True: [], False: []}
    for our_turn in stats.abba(args.rounds):
        blocks[our_turn].append(ours.turn(dtype) if our_turn else theirs.turn())
    ratio, low, high = stats.paired_ratio(blocks[True], blocks[False])
    rate = lambda blocks: args.batch * 1e3 / stats.median([stats.median(block) for block in blocks])
    return {
        "dtype": dtype,
        "peer": name,
        "batch": args.batch,
        "arclet_images_per_s": rate(blocks[True]),
        "peer_images_per_s": rate(blocks[False]),
        "ratio": ratio,
        "ratio_95": [low, high],
        "blocks_ms": {"arclet": blocks[True], "peer": blocks[False]},
    }


def line(row):
    low, high = row["ratio_95"]
    ours, theirs = row["arclet_images_per_s"], row["peer_images_per_s"]
    return f"{row['peer']:<20} {row['dtype']:>5} {ours:>16.2f} {theirs:>14.2f}   {row['ratio']:.3f} [{low:.3f}, {high:.3f}]"


def main():
    args = arguments()
    # Before the first import of what reads it.
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = str(args.threads)
    import torch

    torch.set_num_threads(args.threads)
    torch.set_flush_denormal(True)
    about = machine.machine(args.arclet, args.threads, [])
    about["command"] = " ".join(["benches/peers/train.py", *sys.argv[1:]])
    print(f"CPU: {about['cpu']}, {about['threads']} threads, batch {args.batch}", file=sys.stderr)
    print(f"{'PyTorch':<20} {'dtype':>5} {'arclet images/s':>16} {'peer images/s':>14}   arclet / peer [95 %]", flush=True)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        ours = Arclet(args, Path(folder))
        for dtype in args.dtypes:
            for peer in PEERS[dtype]:
                if peer[2] and args.no_compile:
                    continue
                try:
                    rows.append(measure(ours, dtype, peer, args))
                except torch._dynamo.exc.TorchDynamoException as error:
                    # A compiler without a C++ compiler behind it, for instance.
                    print(f"{peer[0]:<20} {dtype:>5} skipped: {str(error).strip().splitlines()[0][:100]}", flush=True)
                    continue
                print(line(rows[-1]), flush=True)
    if args.out:
        args.out.write_text(json.dumps({"machine": about, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
