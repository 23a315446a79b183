"""The models of the comparison as plain PyTorch modules with the weights that `arclet` has for them.

Written as their users write them: fused attention, one Linear for q, k and v; nothing is left for a compiler to undo.
"""

import math
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn

from weights import VIT_PREFIX, hashed, sincos_positions

FREQUENCIES = 256
# The embedded model: f16 weights under the names of `NanoDit`.
LENS_DIT_S = Path(__file__).resolve().parents[2] / "weights" / "lens-dit-s" / "model.safetensors"


class TimeEmbedding(nn.Module):
    """Sinusoids of 1000 t, computed in f32 in every type, and two layers."""

    def __init__(self, dim, name, cos_first, half_shift):
        super().__init__()
        half = FREQUENCIES // 2
        frequencies = torch.exp(-math.log(10000.0) * torch.arange(half, dtype=torch.float64) / (half - half_shift))
        # Not a buffer: `module.to(dtype)` must not round it.
        self.frequencies = (1000.0 * frequencies).tolist()
        self.cos_first = cos_first
        self.name = name
        setattr(self, name, nn.Sequential(nn.Linear(FREQUENCIES, dim), nn.SiLU(), nn.Linear(dim, dim)))

    def sinusoids(self, times):
        """Rows [S, 256] in f32 of the times of all evaluations; from f64, so that 1000 t loses nothing."""
        angle = torch.tensor(times, dtype=torch.float64)[:, None] * torch.tensor(self.frequencies, dtype=torch.float64)
        parts = [angle.cos(), angle.sin()] if self.cos_first else [angle.sin(), angle.cos()]
        return torch.cat(parts, dim=1).float()

    def forward(self, sinusoids):
        return getattr(self, self.name)(sinusoids)


class Attention(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x):
        b, tokens, dim = x.shape
        q, k, v = self.qkv(x).view(b, tokens, 3, self.heads, dim // self.heads).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, tokens, dim))


class Mlp(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.fc1 = nn.Linear(dim, 4 * dim)
        self.fc2 = nn.Linear(4 * dim, dim)

    def forward(self, x):
        return self.fc2(F.gelu(self.fc1(x)))


class PatchEmbedding(nn.Module):
    def __init__(self, patch, channels, dim):
        super().__init__()
        self.proj = nn.Conv2d(channels, dim, patch, patch)

    def forward(self, x):
        return self.proj(x).flatten(2).transpose(1, 2)


def unpatchify(h, patch):
    """[B, T, patch * patch] -> [B, 1, H, W]"""
    b, tokens, _ = h.shape
    side = math.isqrt(tokens)
    return h.view(b, side, side, patch, patch).permute(0, 1, 3, 2, 4).reshape(b, 1, side * patch, side * patch)


class VitBlock(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = Attention(dim, heads)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim)

    def forward(self, x):
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Encoder(nn.Module):
    """The parts of a timm ViT that the flow model uses."""

    def __init__(self, tokens, patch, dim, depth, heads):
        super().__init__()
        self.pos_embed = nn.Parameter(torch.zeros(1, tokens + 1, dim))
        self.patch_embed = PatchEmbedding(patch, 3, dim)
        self.blocks = nn.ModuleList([VitBlock(dim, heads) for _ in range(depth)])


class FlowVit(nn.Module):
    """The lensing notebooks' flow-matching ViT: 1 x 1 convolution to three channels, timm's ViT without class token and
    final norm, time embedding behind the last block."""

    conditional = False

    def __init__(self, size=224, patch=16, dim=768, depth=12, heads=12):
        super().__init__()
        self.size, self.patch = size, patch
        self.input_conv = nn.Conv2d(1, 3, 1)
        self.pretrained_vit = Encoder((size // patch) ** 2, patch, dim, depth, heads)
        self.time_embed = TimeEmbedding(dim, "time_mlp", cos_first=False, half_shift=1.0)
        self.output_proj = nn.Sequential(nn.Linear(dim, dim), nn.SiLU(), nn.Linear(dim, patch * patch))

    def forward(self, x, sinusoids, labels):
        vit = self.pretrained_vit
        h = vit.patch_embed(self.input_conv(x)) + vit.pos_embed[:, 1:]
        for block in vit.blocks:
            h = block(h)
        return unpatchify(self.output_proj(h + self.time_embed(sinusoids)[:, None]), self.patch)


def modulate(x, shift, scale):
    return x * (1 + scale[:, None]) + shift[:, None]


class DitBlock(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, elementwise_affine=False, eps=1e-6)
        self.attn = Attention(dim, heads)
        self.norm2 = nn.LayerNorm(dim, elementwise_affine=False, eps=1e-6)
        self.mlp = Mlp(dim)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(dim, 6 * dim))

    def forward(self, x, c):
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.adaLN_modulation(c).chunk(6, dim=1)
        x = x + gate_a[:, None] * self.attn(modulate(self.norm1(x), shift_a, scale_a))
        return x + gate_m[:, None] * self.mlp(modulate(self.norm2(x), shift_m, scale_m))


class LabelEmbedding(nn.Module):
    def __init__(self, classes, dim):
        super().__init__()
        self.embedding_table = nn.Embedding(classes + 1, dim)

    def forward(self, labels):
        return self.embedding_table(labels)


class FinalLayer(nn.Module):
    def __init__(self, dim, out):
        super().__init__()
        self.norm_final = nn.LayerNorm(dim, elementwise_affine=False, eps=1e-6)
        self.linear = nn.Linear(dim, out)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(dim, 2 * dim))

    def forward(self, x, c):
        shift, scale = self.adaLN_modulation(c).chunk(2, dim=1)
        return self.linear(modulate(self.norm_final(x), shift, scale))


class NanoDit(nn.Module):
    """The lensing project's class-conditional DiT: 1024 tokens of 2 x 2 pixels, three classes and none."""

    conditional = True
    null_class = 3

    def __init__(self, size=64, patch=2, dim=512, depth=6, heads=8):
        super().__init__()
        self.size, self.patch = size, patch
        self.pos_embed = nn.Parameter(torch.zeros(1, (size // patch) ** 2, dim), requires_grad=False)
        self.x_embedder = PatchEmbedding(patch, 1, dim)
        self.t_embedder = TimeEmbedding(dim, "mlp", cos_first=True, half_shift=0.0)
        self.y_embedder = LabelEmbedding(self.null_class, dim)
        self.blocks = nn.ModuleList([DitBlock(dim, heads) for _ in range(depth)])
        self.final_layer = FinalLayer(dim, patch * patch)

    def forward(self, x, sinusoids, labels):
        h = self.x_embedder(x) + self.pos_embed
        c = self.t_embedder(sinusoids) + self.y_embedder(labels)
        for block in self.blocks:
            h = block(h, c)
        return unpatchify(self.final_layer(h, c), self.patch)


class Velocity(nn.Module):
    """What one step of the sampling loop asks for, with guidance; x and the result in f32, the network in `dtype`."""

    def __init__(self, network, guidance, dtype=torch.float32, autocast=False):
        """`network` is in `dtype`, or in f32 for `autocast` to compute in `dtype` where PyTorch thinks that safe."""
        super().__init__()
        self.network, self.guidance, self.dtype, self.autocast = network, guidance, dtype, autocast

    def forward(self, x, sinusoids, labels):
        """x [B, 1, H, W]; with guidance the sinusoids [2B, 256] and labels [2B] are those of x twice, the second half
        without classes."""
        if self.guidance != 1.0:
            x = torch.cat([x, x])
        if self.autocast:
            with torch.autocast(x.device.type, self.dtype):
                v = self.network(x, sinusoids, labels)
        else:
            v = self.network(x.to(self.dtype), sinusoids, labels)
        v = v.float()
        if self.guidance == 1.0:
            return v
        conditional, unconditional = v.chunk(2)
        return unconditional + self.guidance * (conditional - unconditional)


def lens_dit_s(file=LENS_DIT_S):
    """A model of the embedded one's shape in f32 on the CPU."""
    model = NanoDit(patch=4, dim=192, heads=3)
    # Every name of the file and of the model must be in the other.
    model.load_state_dict({key: value.float() for key, value in load_file(file).items()})
    return model.eval().requires_grad_(False)


@torch.no_grad()
def build(name):
    """The model called `name`, vit-b16, nanodit or lens-dit-s, in f32 on the CPU."""
    if name == "lens-dit-s":
        return lens_dit_s()
    model, prefix = (FlowVit(), VIT_PREFIX) if name == "vit-b16" else (NanoDit(), "")
    for key, value in model.state_dict().items():
        if model.conditional and key == "pos_embed":
            numbers = sincos_positions(value.shape[2], model.size // model.patch)[None]
        else:
            numbers = hashed(prefix + key, tuple(value.shape))
        value.copy_(torch.from_numpy(numbers))
    return model.eval().requires_grad_(False)


def embed_times(model, times):
    """Sinusoids [S, 256] in f32 of the times of all evaluations."""
    embedding = model.t_embedder if model.conditional else model.time_embed
    return embedding.sinusoids(times)
