#!/usr/bin/env python3
"""Cuts the parity set of the lens simulator out of `lensing_parity.npz` (noiseless lenses made with lenstronomy 1.14.2).

    python cut_lensing_parity.py lensing_parity.npz lensing_parity.safetensors --stride 3

Three lenses of each class: source position and point masses in f64; deflection (arcsec), light before and after the PSF at
every third pixel in x and y, from the second on, in f32. With --stride 1 nothing is left out; the test compares such a file
if ARCLET_LENSING_PARITY names it.
"""
import argparse

import numpy as np
from safetensors.numpy import save_file


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source")
    parser.add_argument("target")
    parser.add_argument("--stride", type=int, default=3)
    args = parser.parse_args()
    offset = args.stride // 2
    out = {}
    with np.load(args.source) as source:
        for name in source.files:
            value = source[name]
            if value.shape == (150, 150):
                value = value[offset :: args.stride, offset :: args.stride].astype(np.float32)
            elif name.endswith(".points") and len(value) == 0:
                continue
            out[name] = np.ascontiguousarray(np.atleast_1d(value))
    save_file(out, args.target, metadata={"stride": str(args.stride), "offset": str(offset)})


if __name__ == "__main__":
    main()
