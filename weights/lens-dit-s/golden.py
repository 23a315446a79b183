"""Makes golden.safetensors: what PyTorch in f64 makes of the f16 weights beside it, by the network of benches/peers, which its
tests hold to the golden of ../lens-dit-s-pytorch. Noise, classes and times are those of that golden.

    python3 weights/lens-dit-s/golden.py
"""

import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1] / "benches" / "peers"))
import models  # noqa: E402


@torch.no_grad()
def main():
    given = load_file(HERE.parent / "lens-dit-s-pytorch" / "golden.safetensors")
    network = models.lens_dit_s(HERE / "model.safetensors").double()
    noise, classes = given["in.noise"].double(), given["in.class"]

    def velocity(x, times, labels):
        return network(x, torch.cat([models.embed_times(network, [t]).double() for t in times]), labels)

    def euler(steps, guidance):
        x = noise.clone()
        for step in range(steps):
            times = [1.0 - step / steps] * len(x)
            v = velocity(x, times, classes)
            if guidance != 1.0:
                without = velocity(x, times, torch.full_like(classes, network.null_class))
                v = without + guidance * (v - without)
            x -= v / steps
        return x

    out = {
        "out.velocity": velocity(noise, [float(t.double()) for t in given["in.t"]], classes),
        "out.euler10_g1": euler(10, 1.0),
        "out.euler50_g1": euler(50, 1.0),
        "out.euler50_g2": euler(50, 2.0),
    }
    inputs = {key: value for key, value in given.items() if key.startswith("in.")}
    note = "float64 from the f16 weights, stored as float32; not clamped; guidance u + g (c - u)"
    save_file(inputs | {key: value.float() for key, value in out.items()}, HERE / "golden.safetensors", {"note": note})


if __name__ == "__main__":
    main()
