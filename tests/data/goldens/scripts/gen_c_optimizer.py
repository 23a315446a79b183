"""C: torch.optim.Adam and AdamW in float64 on two small parameters, ten steps with given gradients (a decays, b does not),
with a changing learning rate, clipping and a moving average; the first AdamW step and the gradient norms of the tiny models
(its weights are a1_flow_vit's, its gradients c_training/flow_vit's); and the schedules, of ema-pytorch and of a warm-up
with a cosine (only where ema-pytorch is installed: the file is kept otherwise)."""
import json, math, os, sys
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

OUT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..")
FULL = sys.argv[1] if len(sys.argv) > 1 else None  # folder with flow_vit_adamw and nanodit_adamw_clip_ema .safetensors
STEPS, KEPT = 10, (1, 2, 10)
f32 = lambda t: t.detach().float().contiguous()
torch.manual_seed(5)
shapes = dict(a=(7, 5), b=(9,))
start = {n: torch.randn(s).float().double() for n, s in shapes.items()}
grads = {n: (torch.randn(STEPS, *s) * torch.logspace(-3, 0.5, STEPS).view(-1, *[1] * len(s))).float().double() for n, s in shapes.items()}
rate = lambda lr, k: lr * (1 + k) / 4 if k < 4 else lr * 0.9 ** k
out = {f"start.{n}": f32(t) for n, t in start.items()} | {f"grad.{n}": f32(t) for n, t in grads.items()}

def run(name, make, decay, lr, clip=None, ema=None):
    p = {n: torch.nn.Parameter(t.clone()) for n, t in start.items()}
    opt = make([dict(params=[p["a"]], weight_decay=decay), dict(params=[p["b"]], weight_decay=0.0)])
    average = {n: t.clone() for n, t in start.items()}
    for k in range(STEPS):
        for g in opt.param_groups: g["lr"] = rate(lr, k)
        for n in p: p[n].grad = grads[n][k].clone()
        if clip:
            norm = torch.nn.utils.clip_grad_norm_(p.values(), clip)
            out[f"{name}.norm{k + 1}"] = f32(norm.reshape(1))
        opt.step()
        for n in p:
            if ema: average[n].lerp_(p[n].detach(), 1 - ema)
            if k + 1 in KEPT:
                out[f"{name}.w{k + 1}.{n}"] = f32(p[n])
                if ema: out[f"{name}.ema{k + 1}.{n}"] = f32(average[n])

run("adam", lambda g: torch.optim.Adam(g), 0.0, 1e-2)
run("adam_decay", lambda g: torch.optim.Adam(g, betas=(0.8, 0.95), eps=1e-3), 0.1, 1e-2)
run("adamw", lambda g: torch.optim.AdamW(g, betas=(0.9, 0.99)), 0.05, 1e-2)
run("adamw_clip_ema", lambda g: torch.optim.AdamW(g), 0.01, 1e-3, clip=1.0, ema=0.9)
path = os.path.join(OUT, "c_training", "optimizer.safetensors")
if FULL:
    vit = load_file(os.path.join(FULL, "flow_vit_adamw.safetensors"))
    out |= {n.replace("w1.", "flow_vit.w1.", 1): t for n, t in vit.items() if n.startswith("w1.") and t.numel() <= 1100}
    out["flow_vit.norm"] = vit["grad_norm.0"]
    out["nanodit.norm"] = load_file(os.path.join(FULL, "nanodit_adamw_clip_ema.safetensors"))["grad_norm.0"]
else:
    out |= {n: t for n, t in load_file(path).items() if n.startswith(("flow_vit.", "nanodit."))}
save_file(out, path, metadata=dict(note="weights after steps 1, 2 and 10; see scripts/gen_c_optimizer.py"))

try:
    from ema_pytorch import EMA
except ImportError:
    sys.exit()
ema = EMA(torch.nn.Linear(2, 2), include_online_model=False)
decays = []
for s in range(300):
    ema.update()
    decays.append((s, float(ema.get_current_decay())))
def lr(k, warmup=10, total=100, floor=0.01):
    return k / warmup if k < warmup else max(floor, 0.5 * (1 + math.cos(math.pi * (k - warmup) / (total - warmup))))
keys = ("beta", "update_after_step", "update_every", "inv_gamma", "power", "min_value")
schedules = dict(ema_pytorch_defaults={k: getattr(ema, k) for k in keys}, ema_decay_after_update_call=decays[90:130] + decays[150::50],
                 lr_factor_warmup10_total100_min001=[lr(k) for k in range(101)])
json.dump(schedules, open(os.path.join(OUT, "c_training", "schedules.json"), "w"))
