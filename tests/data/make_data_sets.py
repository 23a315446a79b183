#!/usr/bin/env python3
"""Small files of images as users have them, and transforms as torchvision makes them, for the tests of `arclet::data`.

Python 3.11 with numpy 2.4.6, h5py 3.16.0, torch 2.15.0, torchvision 0.29.2:

    python make_data_sets.py        # writes data_sets/ beside itself

Pixels follow formulas that the tests repeat:
    jets      X[n, y, x, c] = (n + 1) * ((y * 7 + x * 3 + c * 5 + n) % 11 == 0) * (c + 0.5)
    lenses    L[n, y, x]    = ((n * 31 + y * 7 + x * 3) % 64) / 64, exact in f16
"""

from pathlib import Path

import h5py
import numpy as np
import torch
from safetensors.numpy import save_file
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as F

OUT = Path(__file__).parent / "data_sets"


def jets(n, side=10):
    i, y, x, c = np.meshgrid(*map(np.arange, (n, side, side, 3)), indexing="ij")
    return ((i + 1) * ((y * 7 + x * 3 + c * 5 + i) % 11 == 0) * (c + 0.5)).astype(np.float32)


def lenses(n, side=8):
    i, y, x = np.meshgrid(*map(np.arange, (n, side, side)), indexing="ij")
    return (((i * 31 + y * 7 + x * 3) % 64) / 64).astype(np.float64)


def h5(name, images, libver="earliest", **layout):
    with h5py.File(OUT / name, "w", libver=libver) as f:
        f.create_dataset("X_jets", data=images, **layout)
        n = len(images)
        chunk = {"chunks": (min(n, 4),)} if layout.get("chunks") else {}
        f.create_dataset("m0", data=np.arange(n, dtype=np.float32) + 20, **chunk)
        f.create_dataset("pt", data=np.arange(n, dtype=np.float32) + 90, **chunk)
        f.create_dataset("y", data=np.arange(n, dtype=np.float32) % 2, **chunk)
        f.create_group("extra")["eta"] = np.zeros(n, dtype=np.float32)


def hdf5_files():
    one = (1, 10, 10, 3)
    h5("gzip.h5", jets(6), chunks=one, compression="gzip", shuffle=True)
    # Chunks that do not divide the images, and a newer index of chunks.
    h5("lzf.h5", jets(6), libver="latest", chunks=(4, 10, 5, 3), compression="lzf", shuffle=True)
    h5("contiguous.h5", jets(6), libver="latest")
    h5("big_endian.h5", jets(6).astype(">f8"), chunks=one, compression="gzip", fletcher32=True)
    h5("integers.h5", (2 * jets(6)).astype(np.uint8), chunks=(2, 10, 10, 3), compression="lzf")
    # Extendible in the number of jets, as a writer in a loop makes it.
    h5("extendible.h5", jets(6), libver="latest", chunks=one, maxshape=(None, 10, 10, 3), compression="gzip")
    with h5py.File(OUT / "no_labels.h5", "w") as f:
        f["m0"] = np.zeros(6, dtype=np.float32)
    with h5py.File(OUT / "wrong_shapes.h5", "w") as f:
        f["X_jets"] = jets(6)
        f["y"] = np.zeros(5, dtype=np.float32)
    with h5py.File(OUT / "text.h5", "w") as f:
        f["X_jets"] = np.array([b"abc", b"def"])
    with h5py.File(OUT / "bad_label.h5", "w") as f:
        f["X_jets"] = jets(3)
        f["y"] = np.array([0, 1, 2], dtype=np.float32)
    # 4 GiB a chunk, never written: a few bytes of file.
    with h5py.File(OUT / "absurd_chunk.h5", "w", libver="latest") as f:
        f.create_dataset("X_jets", (8, 16384, 16384, 3), np.float32, chunks=(1, 16384, 16384, 3), compression="gzip")
    # 10^15 images, of which none was ever written.
    with h5py.File(OUT / "absurd_count.h5", "w", libver="latest") as f:
        f.create_dataset("X_jets", (10**15, 10, 10, 3), np.float32, chunks=one, compression="gzip")
        f.create_dataset("y", (10**15,), np.float32, chunks=(1024,))


def npz_files():
    images = lenses(5).astype(np.float16)[:, None]
    labels = np.array([0, 2, 1, 0, 2])
    np.savez(OUT / "stored.npz", images=images, labels=labels, names=np.array(["a", "b"]))
    np.savez_compressed(OUT / "deflated.npz", images=images, labels=labels)
    np.savez_compressed(OUT / "fortran.npz", images=np.asfortranarray(lenses(5)), y=labels.astype(np.uint8))


def objects(values):
    out = np.empty(len(values), dtype=object)
    out[:] = values
    return out


def npy_files():
    lens = lenses(1)[0]
    save = lambda name, array: np.save(OUT / name, array, allow_pickle=array.dtype == object)
    save("plain.npy", lens)
    save("channel.npy", lens[None].astype(np.float32))
    save("fortran.npy", np.asfortranarray(lens.astype(np.float16)))
    save("big_endian.npy", lens.astype(">f4"))
    save("integers.npy", (lens * 64).astype(np.int16))
    save("colour.npy", np.stack([lens, lens + 1, lens + 2]).astype(np.float32))
    save("rows.npy", objects([row for row in lens]))
    save("image_mass.npy", objects([lens, np.float64(-22.5)]))
    save("image_mass_list.npy", objects([[list(map(float, row)) for row in lens], -22.5]))
    save("flat.npy", lens.ravel())
    save("flat_label.npy", np.append(lens.ravel(), 2.0))
    save("flat_table.npy", np.hstack([lenses(3, 16).reshape(3, -1), [[1], [0], [1]]]))


def transforms():
    torch.manual_seed(5)
    tensors = {}
    image = torch.rand(2, 23, 37)
    tensors["image"] = image
    # In float64, rounded at the end: torchvision in float32 is itself within 2e-6 of this.
    image = image.double()
    # Down, up, one axis alone, by a shorter side, by a factor that is no ratio of small numbers.
    for size in ([11, 16], [41, 53], [23, 9], [7, 37], [1, 1]):
        name = "x".join(map(str, size))
        tensors[f"resize_{name}"] = F.resize(image, size, InterpolationMode.BILINEAR, antialias=True)
    for side in (13, 30):
        tensors[f"resize_{side}"] = F.resize(image, side, InterpolationMode.BILINEAR, antialias=True)
        tall = image.transpose(1, 2).contiguous()
        tensors[f"resize_tall_{side}"] = F.resize(tall, side, InterpolationMode.BILINEAR, antialias=True)
    for side in (10, 16, 17, 20, 23):
        tensors[f"crop_{side}"] = F.center_crop(image, [side, side])
    for angle in (7.3, -9.1, 33.3, 135.7):
        tensors[f"rotate_nearest_{angle}"] = F.rotate(image, angle, InterpolationMode.NEAREST)
        tensors[f"rotate_bilinear_{angle}"] = F.rotate(image, angle, InterpolationMode.BILINEAR)
    tensors["flip_horizontal"] = F.hflip(image)
    tensors["flip_vertical"] = F.vflip(image)
    arrays = {k: np.ascontiguousarray(v.numpy().astype(np.float32)) for k, v in tensors.items()}
    # Per channel, as numpy does it.
    spread = (tensors["image"].numpy() ** 4).astype(np.float32)
    low, high = np.percentile(spread.reshape(2, -1), [2.5, 99.0], axis=1).astype(np.float32)
    arrays["spread"] = spread
    arrays["clipped"] = np.clip(spread, low[:, None, None], high[:, None, None])
    arrays["log1p"] = np.log1p(spread)
    save_file(arrays, OUT / "transforms.safetensors")


if __name__ == "__main__":
    OUT.mkdir(exist_ok=True)
    hdf5_files()
    npz_files()
    npy_files()
    transforms()
