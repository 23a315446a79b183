"""G: small convolutional networks whose weights are the hash of gen_f_fullsize_hash.py (of the names without the notebooks'
leading `unet.`), so that no weight file is needed: outputs, and trajectories of the flow-matching U-Net++, in float64.

    pip install torch diffusers segmentation-models-pytorch==0.6.0 timm torchvision
    REF_OUT=... python3 gen_g_conv_hash.py [NAME ...]      (all, or those named; the configurations are those of the key
                                                            tables a4 to a7)

Input NAME is 1.5 s (NAME in.ctx likewise) with s the hash of "input.NAME".
"""
from refcommon import *
from refmodels import *
from diffusers import AutoencoderKL, UNet2DConditionModel, UNet2DModel


def hash_s(key, n):
    h = 14695981039346656037
    for b in key.encode(): h = ((h ^ b) * 1099511628211) & (2**64 - 1)
    with np.errstate(over="ignore"):
        z = np.uint64(h) + (np.arange(n, dtype=np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        z ^= z >> np.uint64(30); z *= np.uint64(0xBF58476D1CE4E5B9); z ^= z >> np.uint64(27); z *= np.uint64(0x94D049BB133111EB); z ^= z >> np.uint64(31)
    return 2 * ((z >> np.uint64(40)).astype(np.float64) / 2.0**24) - 1


def fill(m):
    with torch.no_grad():
        for k, v in m.state_dict().items():
            key = k
            while key.startswith("unet."): key = key[5:]
            s = hash_s(key, v.numel()); last = key.split(".")[-1]
            if last == "running_var": w = 1 + 0.5 * s
            elif last == "running_mean": w = 0.2 * s
            elif last == "num_batches_tracked": w = 0 * s
            elif v.ndim <= 1: w = 1 + 0.2 * s if last == "weight" else 0.1 * s
            else: w = s * math.sqrt(3.0 / v[0].numel())
            v.copy_(torch.from_numpy(w.astype(np.float32)).view(v.shape).to(v.dtype))
    return m.eval()


def inp(name, *shape):
    return torch.from_numpy((1.5 * hash_s("input." + name, int(np.prod(shape)))).astype(np.float32)).view(shape)


D = os.path.join(OUT, "g_conv_hash"); os.makedirs(D, exist_ok=True)


def golden(name, make, run):
    if sys.argv[1:] and name not in sys.argv[1:]: return
    m = fill(make())
    with torch.no_grad():
        o32 = run(m, torch.float32); o64 = run(m.double(), torch.float64)
    e = errs(o64, o32)
    print(name, {k: f"{v['max_abs_err']:.1e} of {v['max_abs']:.3g}" for k, v in e.items()}, flush=True)
    save_file(tof32(o64), os.path.join(D, name + ".safetensors"), metadata=dict(f32_err=json.dumps(e), rule=__doc__))


def unetpp():
    from segmentation_models_pytorch.encoders import encoders
    from segmentation_models_pytorch.encoders.resnet import ResNetEncoder
    from torchvision.models.resnet import BasicBlock

    class NarrowResNet(ResNetEncoder):
        """As in gen_a4_unetpp.py: widths 16, 16, 32, 64, 128."""
        def __init__(self, w=16, layers=(1, 2, 1, 1), **kw):
            super().__init__(block=BasicBlock, layers=list(layers), out_channels=[3, w, w, 2 * w, 4 * w, 8 * w], **kw)
            self.inplanes = w
            self.conv1 = nn.Conv2d(3, w, 7, 2, 3, bias=False); self.bn1 = nn.BatchNorm2d(w)
            self.layer1 = self._make_layer(BasicBlock, w, layers[0])
            self.layer2 = self._make_layer(BasicBlock, 2 * w, layers[1], stride=2)
            self.layer3 = self._make_layer(BasicBlock, 4 * w, layers[2], stride=2)
            self.layer4 = self._make_layer(BasicBlock, 8 * w, layers[3], stride=2)

    encoders["narrow-resnet"] = dict(encoder=NarrowResNet, pretrained_settings={}, params=dict(depth=5))
    return FlowMatching(FlowUNetPP(encoder_name="narrow-resnet", decoder_channels=(48, 32, 16, 16, 8)))


def flow(m, dtype):
    x = inp("x", 2, 1, 64, 64).to(dtype)
    out = {"out.v": m(x, torch.tensor([0.3, 0.85], dtype=dtype))}
    y = x.clone()
    for i in range(10):  # t = 1 .. 0.1, as in training
        y = y - 0.1 * m(y, torch.full((2,), 1 - i / 10, dtype=dtype))
    out["out.euler10"] = y
    y, grid = x.clone(), torch.linspace(0, 1, 20, dtype=torch.float64)
    for a, b in zip(grid[:-1], grid[1:]):  # time rising from 0, the velocity negated, as the notebooks sample
        y = y - (b - a).to(dtype) * m(y, torch.full((2,), float(a), dtype=dtype))
    out["out.euler20_notebook"] = y
    return out


golden("unetpp_flow", unetpp, flow)


def vae(m, dtype):
    with diffusers_f64_timesteps():
        d = m.encode(inp("x", 2, 3, 32, 32).to(dtype)).latent_dist
        return {"out.mean": d.mean, "out.logvar": d.logvar, "out.decoded": m.decode(inp("z", 2, 4, 16, 16).to(dtype)).sample}


golden("autoencoder_kl", lambda: AutoencoderKL(in_channels=3, out_channels=3, latent_channels=4, sample_size=32, layers_per_block=1, block_out_channels=[16, 32], norm_num_groups=8, down_block_types=["DownEncoderBlock2D"] * 2, up_block_types=["UpDecoderBlock2D"] * 2), vae)


def vae_step(m, dtype):  # loss and all gradients of a training step, the latents' noise with channels last
    with torch.enable_grad(), diffusers_f64_timesteps():
        x, noise = inp("x", 2, 1, 16, 16).to(dtype), inp("noise", 2, 8, 8, 2).to(dtype).permute(0, 3, 1, 2)
        d = m.encode(x).latent_dist
        kl = d.kl().mean() / noise[0].numel()  # torch: the sum over an image's latents
        loss = F.mse_loss(m.decode(d.mean + d.std * noise).sample, x) + 0.1 * kl
        m.zero_grad(); loss.backward()
        return {"loss": loss.detach().view(1), **{"grad." + k: p.grad.clone() for k, p in m.named_parameters()}}


golden("autoencoder_kl_step", lambda: AutoencoderKL(in_channels=1, out_channels=1, latent_channels=2, layers_per_block=1, block_out_channels=[4, 8], norm_num_groups=2, mid_block_add_attention=False, down_block_types=["DownEncoderBlock2D"] * 2, up_block_types=["UpDecoderBlock2D"] * 2), vae_step)


def unet(m, dtype):
    with diffusers_f64_timesteps():
        return {"out.eps": m(inp("x", 2, 1, 16, 16).to(dtype), torch.tensor([17.0, 803.0], dtype=dtype), return_dict=False)[0]}


for name, more in [("unet2d", {}), ("unet2d_padding0", dict(downsample_padding=0, flip_sin_to_cos=False, freq_shift=1))]:
    golden(name, lambda: UNet2DModel(sample_size=16, in_channels=1, out_channels=1, layers_per_block=1, block_out_channels=[24, 48], norm_num_groups=8, attention_head_dim=16, down_block_types=["DownBlock2D", "AttnDownBlock2D"], up_block_types=["AttnUpBlock2D", "UpBlock2D"], **more), unet)


def condition(m, dtype):
    with diffusers_f64_timesteps():
        x, ctx = inp("x", 2, 4, 16, 16).to(dtype), inp("ctx", 2, 5, 24).to(dtype)
        return {"out.eps": m(x, torch.tensor([3.0, 640.0], dtype=dtype), ctx, return_dict=False)[0]}


COND = dict(sample_size=16, in_channels=4, out_channels=4, layers_per_block=1, block_out_channels=[24, 48], norm_num_groups=8, attention_head_dim=2, cross_attention_dim=24, down_block_types=["CrossAttnDownBlock2D", "DownBlock2D"], up_block_types=["UpBlock2D", "CrossAttnUpBlock2D"])
golden("unet2d_condition", lambda: UNet2DConditionModel(**COND), condition)


def condition_linear(m, dtype):  # images that are not square
    with diffusers_f64_timesteps():
        x, ctx = inp("x", 2, 4, 12, 20).to(dtype), inp("ctx", 2, 3, 20).to(dtype)
        return {"out.eps": m(x, torch.tensor([0.0, 999.0], dtype=dtype), ctx, return_dict=False)[0]}


# Linear projections, two transformer blocks, other heads by level, attention at all levels; its key table is made here.
LINEAR = dict(COND, attention_head_dim=[2, 3], cross_attention_dim=20, use_linear_projection=True, transformer_layers_per_block=2, flip_sin_to_cos=False, freq_shift=1, norm_eps=1e-6, down_block_types=["CrossAttnDownBlock2D"] * 2, up_block_types=["CrossAttnUpBlock2D"] * 2)


def linear():
    m = UNet2DConditionModel(**LINEAR); sd = m.state_dict(); n = sum(v.numel() for v in sd.values())
    os.makedirs(os.path.join(OUT, "keys"), exist_ok=True)
    with open(os.path.join(OUT, "keys", "unet2d_condition_linear.txt"), "w") as f:
        f.write(f"# unet2d_condition_linear, of gen_g_conv_hash.py\n# tensors {len(sd)}  numbers in the state dict {n}  trainable parameters {n}\n# config {json.dumps(LINEAR)}\n# key\tshape\tdtype\n")
        f.writelines(f"{k}\t{list(v.shape)}\tfloat32\n" for k, v in sd.items())
    return m


golden("unet2d_condition_linear", linear, condition_linear)


def convnextv2():
    from timm.models.convnext import ConvNeXt
    return ConvNeXt(in_chans=3, num_classes=3, depths=(1, 1, 2, 1), dims=(16, 32, 48, 64), use_grn=True, ls_init_value=None)


def features(m, dtype):  # sides that the stages do not halve evenly
    x = inp("x", 2, 3, 70, 93).to(dtype)
    f = m.forward_features(x)
    return {"out.features": f, "out.logits": m.forward_head(f), "out.pre_logits": m.forward_head(f, pre_logits=True)}


golden("convnextv2", convnextv2, features)


def resnet():  # of the key table a7_resnet
    from timm.models.resnet import BasicBlock, ResNet
    return ResNet(BasicBlock, [1, 2, 1, 1], channels=(16, 32, 48, 64), stem_width=16, num_classes=3)


golden("resnet", resnet, features)


def efficientnet():
    from functools import partial
    from timm.models._efficientnet_builder import decode_arch_def, round_channels
    from timm.models.efficientnet import EfficientNet
    arch = [["ds_r1_k3_s1_e1_c8_se0.25"], ["ir_r2_k3_s2_e6_c16_se0.25"], ["ir_r2_k5_s2_e6_c24_se0.25"], ["ir_r1_k3_s2_e6_c32_se0.25"]]
    return EfficientNet(block_args=decode_arch_def(arch), num_features=96, stem_size=16, num_classes=3, act_layer=nn.SiLU, round_chs_fn=partial(round_channels, multiplier=1.0))


golden("efficientnet", efficientnet, features)
