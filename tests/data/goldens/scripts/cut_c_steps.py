#!/usr/bin/env python3
"""Cuts what ten AdamW steps of the flow ViT, and five of NanoDiT with clipping and a moving average, come to out of the PyTorch
runs of the reference (float64, stored float32; gen_c_training.py of the reference makes them).

    python cut_c_steps.py FOLDER steps.safetensors

FOLDER holds flow_vit_adamw.safetensors, flow_vit_adam.safetensors and nanodit_adamw_clip_ema.safetensors. Kept: the images,
every loss and norm of the gradients, and of the last weights (of NanoDiT the average) every 7th element, each matrix from
another start.
"""
import sys

from safetensors import safe_open
from safetensors.numpy import save_file

CASES = {"flow_vit_adamw": "w10.", "flow_vit_adam": "w2.", "nanodit_adamw_clip_ema": "ema."}
out, notes = {}, {}
for case, last in CASES.items():
    with safe_open(f"{sys.argv[1]}/{case}.safetensors", "np") as file:
        names = sorted(file.keys())
        notes[case] = file.metadata()["config"]
        for i, name in enumerate(n for n in names if n.startswith(last)):
            out[f"{case}.last.{name[len(last):]}"] = file.get_tensor(name).reshape(-1)[i % 7 :: 7].copy()
        for name in names:
            if name.split(".")[0] in ("in", "loss", "grad_norm"):
                out[f"{case}.{name}"] = file.get_tensor(name)
save_file(out, sys.argv[2], metadata=notes)
