"""C: loss and gradients of every parameter in the first training step (float64, stored float32) of the tiny flow ViT and
NanoDiT; no optimizer."""
from refcommon import *
from refmodels import *
from safetensors.torch import load_file
from safetensors import safe_open
import torch.nn.functional as F

def save(name, m, inp, labels, note):
    d, n, t = (inp[k].double() for k in ("data", "noise", "t"))
    tt = t.view(-1, 1, 1, 1)
    x = (1 - tt) * d + tt * n
    m = m.double().train()
    loss = F.mse_loss(m(x, t, *labels), n - d)
    loss.backward()
    r = {"in." + k: v for k, v in inp.items()}
    r["loss.0"] = loss.detach().reshape(1)
    r.update({"grad." + k: p.grad for k, p in m.named_parameters() if p.grad is not None})
    os.makedirs(os.path.join(OUT, "c_training"), exist_ok=True)
    save_file(tof32(r), os.path.join(OUT, "c_training", name + ".safetensors"), metadata=dict(note=note))

m = flow_vit_tiny()
m.load_state_dict(load_file(os.path.join(OUT, "a1_flow_vit", "weights.safetensors")))
inp = dict(data=randn(4, 1, 32, 32, seed=61).clamp(-1, 1), noise=randn(4, 1, 32, 32, seed=62), t=torch.tensor([0.05, 0.33, 0.61, 0.94]))
save("flow_vit", m, inp, (), "x_t=(1-t) data + t noise, target noise-data, loss mean over everything; weights: a1_flow_vit")

p = os.path.join(OUT, "a3_nanodit", "weights.safetensors")
m = DiT(**json.loads(safe_open(p, "pt").metadata()["config"]))
m.load_state_dict(load_file(p))
y = torch.tensor([0, 1, 3, 1])
inp = dict(data=randn(4, 1, 16, 16, seed=63).clamp(-1, 1), noise=randn(4, 1, 16, 16, seed=64), t=torch.tensor([0.11, 0.42, 0.77, 0.99]), y=y)
save("nanodit", m, inp, (y,), "as flow_vit, labels already dropped (3 = null), pos_embed frozen; weights: a3_nanodit")
