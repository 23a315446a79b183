#!/usr/bin/env python3
"""Writes the object .npy files in object_npy/ (numpy 2; run from this folder: python3 make_object_npy.py)."""

import collections
import pathlib
import pickle

import numpy as np

OUT = pathlib.Path(__file__).parent / "object_npy"


def objects(items):
    """An object array of one axis, whatever the items are."""
    array = np.empty(len(items), dtype=object)
    for i, item in enumerate(items):
        array[i] = item
    return array


def save(name, array, protocol, legacy=False):
    """numpy.save with a protocol of our choice; legacy: module names as numpy 1 writes them."""
    body = pickle.dumps(array, protocol=protocol)
    if legacy:
        assert protocol < 4  # names without a length before them
        body = body.replace(b"numpy._core", b"numpy.core")
    with open(OUT / name, "wb") as file:
        np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(array))
        file.write(body)


def main():
    OUT.mkdir(exist_ok=True)

    # A checkpoint: two names for one array, Fortran order, big-endian, several types.
    shared = np.arange(6, dtype=np.float32).reshape(2, 3) / 4
    state = collections.OrderedDict(
        w=shared,
        tied=shared,
        fortran=np.asfortranarray(np.arange(6, dtype=np.float64).reshape(2, 3)),
        big=np.array([1.5, -2.5], dtype=">f4"),
        half=np.array([0.5, -0.25], dtype=np.float16),
        steps=np.array(7, dtype=np.int64),
        scale=2.5,
    )
    np.save(OUT / "state_dict.npy", dict(state), allow_pickle=True)
    save("state_dict_ordered_p2_numpy1.npy", np.array(state, dtype=object), 2, legacy=True)

    # The layouts of lensing files: rows, an image with its mass, an image of Python numbers.
    np.save(OUT / "rows.npy", objects([np.arange(4) + 10.0 * i for i in range(3)]), allow_pickle=True)
    image = np.arange(6, dtype=np.float32).reshape(2, 3)
    np.save(OUT / "image_mass.npy", objects([image, -23.5]), allow_pickle=True)
    np.save(OUT / "numbers.npy", np.array([[1, 2.5], [True, -4]], dtype=object), allow_pickle=True)

    # One of everything in every protocol.
    mixed = objects(
        [image, [np.asfortranarray(image), 1.5], {"k": (1, -70000, 2**40)}, np.float32(2.5), np.int16(-3), np.bool_(True), "é\\x\n", None, False]
    )
    for protocol in range(6):
        save(f"mixed_p{protocol}.npy", mixed, protocol)
    save("mixed_p3_numpy1.npy", mixed, 3, legacy=True)


if __name__ == "__main__":
    main()
