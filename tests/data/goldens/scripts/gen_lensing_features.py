#!/usr/bin/env python3
"""What simulated lenses look like in numbers: the features that the lens simulator's population is compared in.

    python gen_lensing_features.py FOLDER lensing_features.safetensors

FOLDER holds train_CLASS.npz and val_CLASS.npz (images (N,1,64,64) in 0..1, made with lenstronomy 1.14.2). Of each class all
1200 images, per feature one f32 an image, and mean and standard deviation over the images of the radial profile in 32
rings. `tests/suite/simulate.rs` computes the same of its own images.
"""
import sys
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

FIELD = 7.5  # arcsec


def features(x):
    side = x.shape[-1]
    c = (np.arange(side) - (side - 1) / 2) * FIELD / side
    radius, angle = np.hypot(c[:, None], c[None, :]), np.arctan2(c[:, None], c[None, :])
    outside = x[:, radius > 3.2]
    above = np.clip(x - np.median(x, axis=(1, 2), keepdims=True), 0, None)
    w = above * (above > 3 * outside.std(1)[:, None, None])
    flux = np.maximum(w.sum((1, 2)), 1e-9)
    ring = (w * radius).sum((1, 2)) / flux
    width = np.sqrt((w * (radius - ring[:, None, None]) ** 2).sum((1, 2)) / flux)
    moment = lambda m: np.hypot((w * np.cos(m * angle)).sum((1, 2)), (w * np.sin(m * angle)).sum((1, 2))) / flux
    return dict(mean=x.mean((1, 2)), std=x.std((1, 2)), sky_level=outside.mean(1), sky_noise=outside.std(1), ring_radius=ring,
                ring_width=width, dipole=moment(1), quadrupole=moment(2), bright_fraction=(x > 0.5).mean((1, 2)))


def profiles(x):
    side = x.shape[-1]
    c = (np.arange(side) - (side - 1) / 2) * FIELD / side
    ring = (np.hypot(c[:, None], c[None, :]).ravel() / (FIELD / 2) * 32).astype(int)
    return np.stack([x.reshape(len(x), -1)[:, ring == k].mean(1) for k in range(32)], 1)


def main():
    folder, target = Path(sys.argv[1]), sys.argv[2]
    out = {}
    for name in ("no", "sphere", "vort"):
        images = np.concatenate([np.load(folder / f"{part}_{name}.npz")["images"] for part in ("train", "val")])
        x = images.astype(np.float64)[:, 0]
        out.update({f"{name}.{key}": value.astype(np.float32) for key, value in features(x).items()})
        profile = profiles(x)
        out[f"{name}.profile_mean"], out[f"{name}.profile_std"] = profile.mean(0).astype(np.float32), profile.std(0).astype(np.float32)
    save_file(out, target)


if __name__ == "__main__":
    main()
