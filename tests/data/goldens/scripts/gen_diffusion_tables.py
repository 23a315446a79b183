"""Per-step tables of diffusers' DDIM and DDPM schedulers in float64: b_samplers/diffusion_tables.json.

A step without clipping is x <- A x + B m + S z for a prediction m and a normal z; A, B and S are read off by putting in
(1, 0, 0), (0, 1, 0) and (0, 0, 1). Made with diffusers 0.42.1 and torch 2.15.0; schedulers keep f32 alphas, which are
replaced by the same formulas in f64 (checked against them).

    python gen_diffusion_tables.py ../b_samplers/diffusion_tables.json
"""

import json
import math
import sys

import diffusers.schedulers.scheduling_ddpm as ddpm_module
import torch
from diffusers import DDIMScheduler, DDPMScheduler


def betas(schedule, n, start=1e-4, end=0.02):
    if schedule == "linear":
        return torch.linspace(start, end, n, dtype=torch.float64)
    if schedule == "scaled_linear":
        return torch.linspace(start**0.5, end**0.5, n, dtype=torch.float64) ** 2
    bar = lambda t: math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2
    return torch.tensor([min(1 - bar((i + 1) / n) / bar(i / n), 0.999) for i in range(n)], dtype=torch.float64)


def scheduler(kind, settings):
    s = kind(clip_sample=False, **settings)
    b = betas(settings["beta_schedule"], settings["num_train_timesteps"])
    assert (b.float() - s.betas).abs().max() < 1e-6
    s.betas, s.alphas = b, 1 - b
    s.alphas_cumprod = torch.cumprod(1 - b, 0)
    s.one = torch.tensor(1.0, dtype=torch.float64)
    if kind is DDIMScheduler:
        s.final_alpha_cumprod = s.one if settings["set_alpha_to_one"] else s.alphas_cumprod[0]
    return s


def one(value):
    return torch.full((1, 1, 1, 1), float(value), dtype=torch.float64)


def ddim(settings, steps, eta):
    s = scheduler(DDIMScheduler, settings)
    s.set_timesteps(steps)
    step = lambda t, x, m, z: s.step(one(m), t, one(x), eta=eta, variance_noise=one(z)).prev_sample.item()
    return s.timesteps.tolist(), [[step(t, 1, 0, 0), step(t, 0, 1, 0), step(t, 0, 0, 1)] for t in s.timesteps]


def ddpm(settings, steps, learned=None):
    s = scheduler(DDPMScheduler, settings)
    s.set_timesteps(steps)

    def step(t, x, m, z):
        ddpm_module.randn_tensor = lambda *_, **__: one(z)
        output = one(m) if learned is None else torch.cat([one(m), one(learned)], 1)
        return s.step(output, t, one(x)).prev_sample.item()

    return s.timesteps.tolist(), [[step(t, 1, 0, 0), step(t, 0, 1, 0), step(t, 0, 0, 1)] for t in s.timesteps]


def main():
    cases = []
    base = {"num_train_timesteps": 1000, "beta_schedule": "linear", "timestep_spacing": "leading", "steps_offset": 0}

    def add(solver, steps, eta=0.0, learned=None, **changes):
        settings = {**base, "prediction_type": "epsilon", **changes}
        if solver == "ddim":
            settings.setdefault("set_alpha_to_one", True)
            times, rows = ddim(settings, steps, eta)
        else:
            settings.setdefault("variance_type", "fixed_small")
            times, rows = ddpm(settings, steps, learned)
        cases.append({"solver": solver, "steps": steps, "eta": eta, "learned": learned, "settings": settings})
        cases[-1] |= {"timesteps": times, "rows": rows}

    for prediction in ("epsilon", "v_prediction", "sample"):
        for schedule in ("linear", "scaled_linear", "squaredcos_cap_v2"):
            for solver in ("ddim", "ddpm"):
                add(solver, 7, prediction_type=prediction, beta_schedule=schedule)
    for spacing in ("leading", "trailing", "linspace"):
        for steps in (1, 7, 30):
            # 1 step of linspace is the last timestep alone: nothing to compare, both agree on it.
            add("ddim", steps, 0.5, timestep_spacing=spacing, steps_offset=int(spacing == "leading"))
            add("ddpm", steps, timestep_spacing=spacing, steps_offset=int(spacing == "leading"))
    add("ddim", 6, 1.0, set_alpha_to_one=False)
    add("ddim", 10, 1.0, num_train_timesteps=10)
    add("ddpm", 6, variance_type="fixed_large")
    for learned in (-1.0, 0.3, 1.0):
        add("ddpm", 6, learned=learned, variance_type="learned_range")
    text = ",\n".join(json.dumps(case) for case in cases)
    open(sys.argv[1], "w").write(f"[\n{text}\n]\n")


if __name__ == "__main__":
    main()
