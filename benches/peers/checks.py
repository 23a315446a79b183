"""Results before times: how far images may be from those of eager PyTorch in f32. numpy only."""

import numpy as np

# Largest error of f32 relative to the largest value.
F32_BOUND = 1e-4
# Largest RMS error of f16 and bf16 in units of eager PyTorch's in the same type.
HALF_BOUND = 2.0


class Wrong(Exception):
    """Results that are not timed."""


def errors(got, want):
    """(max |got - want| / max |want|, RMS of the difference / RMS of want)"""
    difference = got.astype(np.float64) - want
    return (
        float(np.abs(difference).max() / np.abs(want).max()),
        float(np.sqrt((difference**2).mean() / (want.astype(np.float64) ** 2).mean())),
    )


def check(name, dtype, got, want, eager_rms):
    """The errors of `got`; raises `Wrong` if they are too large."""
    if got.shape != want.shape:
        raise Wrong(f"{name} in {dtype} is wrong and not timed: shape {got.shape}, not {want.shape}")
    largest, rms = errors(got, want)
    within = largest <= F32_BOUND if dtype == "f32" else rms <= HALF_BOUND * eager_rms
    if not within:  # Also when they are not numbers.
        bound = f"{F32_BOUND} of the largest" if dtype == "f32" else f"{HALF_BOUND} x {eager_rms:.2e} RMS"
        raise Wrong(
            f"{name} in {dtype} is wrong and not timed: largest error {largest:.2e}, RMS {rms:.2e}, allowed {bound}"
        )
    return {"largest_error": largest, "rms_error": rms}
