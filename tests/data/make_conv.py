#!/usr/bin/env python3
"""Writes tests/data/conv/goldens.safetensors: convolutions and their gradients by PyTorch in float64, stored in f32.

    python3 tests/data/make_conv.py        (PyTorch 2.x, safetensors)

The metadata's "cases" is a list of geometries; case NAME has NAME.x, .weight, .bias, .y and, for the output gradient NAME.dy,
the gradients .dx, .dweight, .dbias, all in PyTorch's layouts.
"""
import json
import pathlib

import torch
import torch.nn.functional as F
from safetensors.torch import save_file

# name: batch, channels, height, width, outputs, kernel, stride, padding (top, bottom, left, right), dilation, groups
CONVOLUTIONS = {
    "pointwise": (2, 16, 5, 7, 24, (1, 1), 1, (0, 0, 0, 0), 1, 1),
    "three": (2, 32, 6, 5, 20, (3, 3), 1, (1, 1, 1, 1), 1, 1),
    "one_channel": (2, 1, 9, 7, 8, (3, 3), 1, (1, 1, 1, 1), 1, 1),
    "stem": (1, 3, 17, 15, 16, (7, 7), 2, (3, 3, 3, 3), 1, 1),
    "patches": (2, 3, 8, 12, 10, (4, 4), 4, (0, 0, 0, 0), 1, 1),
    "down": (2, 8, 9, 8, 12, (3, 3), 2, (1, 1, 1, 1), 1, 1),
    "shortcut": (2, 8, 7, 6, 16, (1, 1), 2, (0, 0, 0, 0), 1, 1),
    "asymmetric": (1, 8, 8, 8, 8, (3, 3), 2, (0, 1, 0, 1), 1, 1),
    "dilated": (1, 8, 9, 10, 8, (3, 3), 1, (2, 2, 2, 2), 2, 1),
    "dilated_down": (1, 5, 11, 9, 7, (3, 2), 2, (2, 1, 0, 3), 3, 1),
    "row": (1, 8, 1, 9, 4, (1, 5), 1, (0, 0, 2, 2), 1, 1),
    "column": (1, 4, 9, 3, 6, (5, 1), 1, (2, 2, 0, 0), 1, 1),
    "wide_padding": (1, 4, 3, 3, 4, (3, 3), 1, (3, 3, 3, 3), 1, 1),
    "grouped": (2, 24, 5, 5, 12, (3, 3), 1, (1, 1, 1, 1), 1, 3),
    "grouped_down": (1, 10, 6, 7, 15, (3, 3), 2, (1, 1, 1, 1), 1, 5),
    "expanding": (1, 4, 5, 5, 8, (3, 3), 1, (1, 1, 1, 1), 1, 4),
    "depthwise": (2, 20, 7, 12, 20, (3, 3), 1, (1, 1, 1, 1), 1, 20),
    "depthwise_7": (1, 16, 9, 11, 16, (7, 7), 1, (3, 3, 3, 3), 1, 16),
    "depthwise_5_down": (2, 9, 9, 10, 9, (5, 5), 2, (2, 2, 2, 2), 1, 9),
    "depthwise_dilated": (1, 6, 9, 9, 6, (3, 3), 2, (2, 1, 2, 1), 2, 6),
}
# The same with extra rows and columns (output_padding) in front of the groups; padding is symmetric.
TRANSPOSED = {
    "up_2": (2, 8, 4, 5, 12, (2, 2), 2, 0, 1, 0, 1),
    "up_4": (2, 6, 3, 4, 5, (4, 4), 2, 1, 1, 0, 1),
    "up_first": (2, 16, 1, 1, 8, (4, 4), 1, 0, 1, 0, 1),
    "up_odd": (1, 8, 4, 3, 8, (3, 3), 2, 1, 1, 1, 1),
    "up_sparse": (1, 4, 3, 3, 4, (1, 2), 3, 0, 1, 1, 1),
    "up_dilated": (1, 4, 4, 4, 3, (3, 3), 2, 1, 2, 0, 1),
    "up_grouped": (1, 6, 4, 4, 4, (3, 3), 2, 1, 1, 0, 2),
    "up_depthwise": (1, 5, 4, 5, 5, (4, 4), 2, 1, 1, 0, 5),
}


def random(*shape):
    """Numbers that f32 holds."""
    return (torch.rand(shape, dtype=torch.float64) * 2 - 1).float().double()


def main():
    torch.manual_seed(0)
    tensors, cases = {}, []

    def case(name, transposed, shape, outputs, kernel, stride, padding, dilation, extra, groups):
        channels = shape[1]
        weight = (channels, outputs // groups, *kernel) if transposed else (outputs, channels // groups, *kernel)
        x, weight, bias = (t.requires_grad_() for t in (random(*shape), random(*weight), random(outputs)))
        if transposed:
            y = F.conv_transpose2d(x, weight, bias, stride, padding[0], extra, groups, dilation)
        else:
            top, bottom, left, right = padding
            y = F.conv2d(F.pad(x, (left, right, top, bottom)), weight, bias, stride, 0, dilation, groups)
        dy = random(*y.shape)
        y.backward(dy)
        found = dict(x=x, weight=weight, bias=bias, y=y, dy=dy, dx=x.grad, dweight=weight.grad, dbias=bias.grad)
        tensors.update({f"{name}.{key}": t.detach().float().contiguous() for key, t in found.items()})
        cases.append(
            dict(name=name, transposed=transposed, stride=stride, padding=padding, dilation=dilation, groups=groups, extra=extra)
        )

    for name, (b, c, h, w, n, kernel, stride, padding, dilation, groups) in CONVOLUTIONS.items():
        case(name, False, (b, c, h, w), n, kernel, stride, padding, dilation, 0, groups)
    for name, (b, c, h, w, n, kernel, stride, padding, dilation, extra, groups) in TRANSPOSED.items():
        case(name, True, (b, c, h, w), n, kernel, stride, (padding,) * 4, dilation, extra, groups)
    out = pathlib.Path(__file__).parent / "conv" / "goldens.safetensors"
    out.parent.mkdir(exist_ok=True)
    save_file(tensors, out, metadata={"cases": json.dumps(cases)})


if __name__ == "__main__":
    main()
