"""Weights of the built-in models vit-b16 and nanodit: every number is a hash of its parameter's name and place.

The rule is that of src/models/builtin.rs and of tests/data/goldens/scripts/gen_f_fullsize_hash.py. numpy only.
"""

import math

import numpy as np

# What the names of vit-b16 begin with when they are hashed.
VIT_PREFIX = "unet."


def hash_uniform(key, n):
    """n numbers in [-1, 1), float64: FNV-1a 64 of the key, then splitmix64."""
    h = 14695981039346656037
    for byte in key.encode():
        h = ((h ^ byte) * 1099511628211) % 2**64
    with np.errstate(over="ignore"):
        z = np.uint64(h) + np.arange(1, n + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z ^= z >> np.uint64(30)
        z *= np.uint64(0xBF58476D1CE4E5B9)
        z ^= z >> np.uint64(27)
        z *= np.uint64(0x94D049BB133111EB)
        z ^= z >> np.uint64(31)
    return 2.0 * ((z >> np.uint64(40)).astype(np.float64) / 2.0**24) - 1.0


def hashed(key, shape):
    """Values of one parameter, float32 of the given shape, scaled so that activations keep their size."""
    s = hash_uniform(key, math.prod(shape))
    last = key.rsplit(".", 1)[-1]
    if last in ("pos_embed", "cls_token"):
        values = 0.5 * s
    elif len(shape) == 1:
        values = 1.0 + 0.2 * s if last == "weight" else 0.1 * s
    else:
        values = s * math.sqrt(3.0 / math.prod(shape[1:]))
    return values.astype(np.float32).reshape(shape)


def sincos_positions(dim, side):
    """DiT's fixed positions (side * side, dim), float32: half of a row encodes the column, half the row, each as sines
    then cosines (Peebles and Xie, arXiv 2212.09748)."""
    omega = 1.0 / 10000 ** (np.arange(dim // 4, dtype=np.float64) / (dim / 4))
    row, column = np.meshgrid(np.arange(side, dtype=np.float64), np.arange(side, dtype=np.float64), indexing="ij")
    parts = []
    for at in (column, row):
        angle = at.reshape(-1, 1) * omega
        parts += [np.sin(angle), np.cos(angle)]
    return np.concatenate(parts, axis=1).astype(np.float32)
