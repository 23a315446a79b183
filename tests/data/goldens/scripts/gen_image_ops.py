#!/usr/bin/env python3
"""What PyTorch makes of images in f64: norms, pooling, resizing, forward and backward.

    python gen_image_ops.py ../image_ops.safetensors

Images are (B, H, W, C). Of each case: `config`, the integers that its operation takes, inputs, `dy`, `y` and the gradient
of each input for the loss sum(y dy). `tests/suite/grads/image_goldens.rs` computes the same.
"""
import sys

import torch
import torch.nn.functional as F
from safetensors.torch import save_file

OUT = {}


def randn(*shape):
    return torch.randn(*shape, generator=RANDOM, dtype=torch.float32)


def case(name, config, inputs, forward):
    """`forward` takes images as (B, C, H, W)."""
    leaves = {k: v.double().requires_grad_() for k, v in inputs.items()}
    y = forward(**{k: v.permute(0, 3, 1, 2) if v.ndim == 4 else v for k, v in leaves.items()}).permute(0, 2, 3, 1)
    dy = randn(*y.shape)
    (y * dy.double()).sum().backward()
    keep = {"y": y.detach(), "dy": dy, **inputs, **{"d" + k: v.grad for k, v in leaves.items()}}
    OUT.update({f"{name}.{k}": v.float().contiguous() for k, v in keep.items()})
    OUT[f"{name}.config"] = torch.tensor(config, dtype=torch.int64)


def affine(c):
    return {"weight": randn(c), "bias": randn(c)}


def norms():
    for i, (shape, groups, silu) in enumerate([
        ((2, 5, 7, 12), 4, 0), ((1, 3, 4, 6), 6, 1), ((2, 4, 3, 8), 1, 1), ((2, 1, 1, 8), 2, 1), ((1, 7, 3, 1), 1, 0),
    ]):
        def forward(x, weight, bias, groups=groups, silu=silu):
            y = F.group_norm(x, groups, weight, bias, 1e-5)
            return F.silu(y) if silu else y
        case(f"groupnorm.{i}", [groups, silu], {"x": randn(*shape) + 0.5, **affine(shape[3])}, forward)
    for i, shape in enumerate([(3, 5, 4, 7), (4, 1, 1, 5), (1, 3, 3, 1)]):
        x, given, c = randn(*shape) * 1.5 + 0.7, affine(shape[3]), shape[3]
        before = randn(c), randn(c).abs() + 0.5
        case(f"batchnorm.{i}", [], {"x": x, **given}, lambda x, weight, bias: F.batch_norm(x, None, None, weight, bias, True, 0.1, 1e-5))
        mean, var = before[0].double(), before[1].double()
        for batch in (x, 2 * x - 1):
            F.batch_norm(batch.double().permute(0, 3, 1, 2), mean, var, None, None, True, 0.3, 1e-5)
        OUT.update({f"batchnorm.{i}.before_mean": before[0], f"batchnorm.{i}.before_var": before[1]})
        OUT.update({f"batchnorm.{i}.after_mean": mean.float(), f"batchnorm.{i}.after_var": var.float()})
    for i, shape in enumerate([(2, 5, 3, 6), (1, 1, 1, 4), (2, 3, 4, 1), (2, 2, 3, 5)]):
        x = randn(*shape)
        if i == 3:
            x[0, :, :, 2] = 0  # the norm's corner
        def grn(x, weight, bias):  # timm's GlobalResponseNorm
            g = x.norm(p=2, dim=(2, 3), keepdim=True)
            n = g / (g.mean(dim=1, keepdim=True) + 1e-6)
            return x + (bias.view(1, -1, 1, 1) + weight.view(1, -1, 1, 1) * x * n)
        case(f"grn.{i}", [], {"x": x, **affine(shape[3])}, grn)


def pools():
    windows = [((2, 7, 9, 3), (3, 3), (2, 2), (1, 1)), ((1, 6, 5, 2), (2, 2), (2, 2), (0, 0)), ((1, 5, 5, 1), (3, 2), (1, 2), (1, 0)), ((1, 8, 7, 2), (5, 4), (3, 2), (2, 2))]
    for i, (shape, kernel, stride, pad) in enumerate(windows):
        config = [*kernel, *stride, *pad]
        case(f"max_pool.{i}", config, {"x": randn(*shape)}, lambda x: F.max_pool2d(x, kernel, stride, pad))
        for include in (0, 1):
            case(f"average_pool.{2 * i + include}", [*config, include], {"x": randn(*shape)},
                 lambda x: F.avg_pool2d(x, kernel, stride, pad, count_include_pad=bool(include)))
    ties = torch.randint(0, 3, (2, 7, 6, 3), generator=RANDOM).float()
    case("max_pool.4", [3, 3, 2, 2, 1, 1], {"x": ties}, lambda x: F.max_pool2d(x, 3, 2, 1))
    for i, (shape, size) in enumerate([((2, 7, 5, 3), (3, 2)), ((1, 4, 3, 2), (6, 5)), ((2, 5, 7, 4), (1, 1)), ((1, 6, 6, 2), (3, 3))]):
        case(f"adaptive_pool.{i}", size, {"x": randn(*shape)}, lambda x: F.adaptive_avg_pool2d(x, size))


def rounded_up(limit):
    """Pairs of sizes where f32 takes another pixel than integers would."""
    for inputs in range(1, limit):
        for outputs in range(1, limit):
            o = torch.arange(outputs, dtype=torch.float32)
            f32 = (o * (torch.tensor(float(inputs)) / torch.tensor(float(outputs)))).floor()
            if not torch.equal(f32.long().clamp(max=inputs - 1), torch.arange(outputs) * inputs // outputs):
                yield inputs, outputs


def resizes():
    sizes = [((2, 3, 4, 3), (6, 8)), ((1, 5, 7, 2), (13, 4)), ((1, 7, 3, 1), (5, 11)), ((1, 1, 1, 5), (4, 3)), ((1, 4, 4, 2), (1, 1)), ((1, 6, 5, 2), (6, 5))]
    pairs = list(rounded_up(64))
    sizes += [((1, 1, a, 1), (1, b)) for a, b in pairs[:: max(1, len(pairs) // 4)][:5]]
    for i, (shape, size) in enumerate(sizes):
        case(f"nearest.{i}", size, {"x": randn(*shape)}, lambda x: F.interpolate(x, size=size, mode="nearest"))
        case(f"bilinear.{i}", size, {"x": randn(*shape)}, lambda x: F.interpolate(x, size=size, mode="bilinear", align_corners=False))


if __name__ == "__main__":
    RANDOM = torch.Generator().manual_seed(20)
    norms()
    pools()
    resizes()
    save_file(OUT, sys.argv[1], metadata={"made_by": f"gen_image_ops.py, torch {torch.__version__}"})
