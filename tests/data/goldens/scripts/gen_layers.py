"""C: layers of convolutional networks: output, input gradients and parameter gradients for loss = sum(out * gout) (float64,
stored float32)."""
from refcommon import *
from diffusers.models.resnet import ResnetBlock2D
from timm.models.convnext import ConvNeXtBlock

def layer(name, m, inp, fwd, seed, cfg, note):
    g = None; res = {}
    for dt in (torch.float64, torch.float32):
        mm = copy.deepcopy(m).to(dt); ii = {k: v.to(dt).clone().requires_grad_() for k, v in inp.items()}
        y = fwd(mm, ii)
        if g is None: g = randn(*y.shape, seed=seed)
        (y * g.to(dt)).sum().backward()
        r = {"out.y": y.detach()}
        r.update({"gin." + k: v.grad for k, v in ii.items()})
        r.update({"grad." + n: q.grad for n, q in mm.named_parameters()})
        r.update({"after." + n: b.detach().clone() for n, b in mm.named_buffers() if "running" in n and mm.training})
        res[dt] = {"in.gout": g, **{"w." + k: v for k, v in m.state_dict().items()}, **r}
    grp = {}
    for k, v in errs(res[torch.float64], res[torch.float32]).items():
        a = grp.setdefault(k.split(".")[0], [0.0, 0.0]); a[0] = max(a[0], v["max_abs_err"]); a[1] = max(a[1], v["max_abs"])
    os.makedirs(os.path.join(OUT, "c_training"), exist_ok=True)
    note += "; gout is dL/dy, gin.* the input gradients, grad.* the parameter gradients"
    save_file(tof32({**{"in." + k: v for k, v in inp.items()}, **res[torch.float64]}), os.path.join(OUT, "c_training", f"layer_{name}.safetensors"),
              metadata=dict(note=note, config=json.dumps(cfg), f32_err=json.dumps(grp)))

m = randomize(ResnetBlock2D(in_channels=16, out_channels=24, temb_channels=32, groups=8, eps=1e-5), 201)
layer("resblock", m, dict(x=randn(2, 16, 8, 8, seed=71), temb=randn(2, 32, seed=72)), lambda m, i: m(i["x"], i["temb"]), 73, dict(in_channels=16, out_channels=24, temb_channels=32, groups=8, eps=1e-5), "diffusers ResnetBlock2D: GN SiLU conv, + Linear(SiLU(temb)), GN SiLU conv, 1x1 shortcut")
m = randomize(torch.nn.Sequential(torch.nn.Conv2d(8, 12, 3, 2, 1, bias=False), torch.nn.BatchNorm2d(12), torch.nn.ReLU(), torch.nn.Conv2d(12, 8, 3, 1, 1, groups=4)), 203).train()
layer("conv_bn_train", m, dict(x=randn(3, 8, 9, 9, seed=76)), lambda m, i: m(i["x"]), 77, dict(momentum=0.1, eps=1e-5), "conv stride 2, BatchNorm in TRAINING mode (batch statistics; after.* = running stats after the call, unbiased variance), ReLU, grouped conv")
m = randomize(ConvNeXtBlock(16, 16, use_grn=True, ls_init_value=None), 204)
layer("convnextv2_block", m, dict(x=randn(2, 16, 8, 8, seed=78)), lambda m, i: m(i["x"]), 79, dict(dim=16, kernel=7), "ConvNeXt V2 block: depthwise 7x7, LayerNorm 1e-6, GELU, GRN, residual")
