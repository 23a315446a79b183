"""Matrix products by themselves: what the machine gives while the comparison runs."""

import time

import numpy as np
import torch

from stats import median

SIDE = 1024


def rate(product, runs=10, warm_ups=2):
    """GFLOP/s of the median run of a product of two SIDE x SIDE matrices."""
    times = []
    for _ in range(warm_ups + runs):
        begin = time.perf_counter()
        product()
        times.append(time.perf_counter() - begin)
    return 2 * SIDE**3 / median(times[warm_ups:]) / 1e9


@torch.inference_mode()
def products():
    """Rates of PyTorch's products in f32 and bf16 on its threads; numpy's own library may be faster in f32."""
    a = np.random.default_rng(0).standard_normal((SIDE, SIDE), dtype=np.float32)
    single = torch.from_numpy(a)
    half = single.bfloat16()
    return {
        "numpy f32": rate(lambda: a @ a),
        "PyTorch f32": rate(lambda: single @ single),
        "PyTorch bf16": rate(lambda: half @ half),
    }
