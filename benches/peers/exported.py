"""OpenVINO and ONNX Runtime on the network as ONNX, each behind `run() -> milliseconds`. The loop is numpy's."""

import contextlib
import importlib.util
import io
import logging
import time

import numpy as np
import torch

import models

INPUTS = ["x", "sinusoids", "labels"]


def missing(*packages):
    """Those of `packages` that are not installed."""
    return [package for package in packages if importlib.util.find_spec(package) is None]


@torch.no_grad()
def export(case, file):
    """Writes the velocity with guidance, all shapes fixed, in f32 into `file` (.onnx)."""
    velocity = models.Velocity(case.network, case.guidance).eval()
    inputs = (case.noise, case.sinusoids[0], case.labels)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with contextlib.redirect_stdout(io.StringIO()):
        torch.onnx.export(
            velocity,
            inputs,
            str(file),
            input_names=INPUTS,
            output_names=["velocity"],
            dynamo=True,
            external_data=True,
            verbose=False,
        )


class HostLoop:
    """Euler's rule in f32 from given noise to images, which are not clamped."""

    def __init__(self, noise, sinusoids, labels, h, velocity):
        """numpy arrays; `velocity(x, sinusoids, labels)` gives an array like x."""
        self.noise, self.sinusoids, self.labels, self.h = noise, sinusoids, labels, np.float32(h)
        self.velocity = velocity
        self.x = noise.copy()

    def run(self):
        """One loop from noise in memory to images in memory: milliseconds."""
        begin = time.perf_counter()
        np.copyto(self.x, self.noise)
        for sinusoids in self.sinusoids:
            self.x -= self.h * self.velocity(self.x, sinusoids, self.labels)
        return (time.perf_counter() - begin) * 1e3

    def images(self):
        """The images of the last run."""
        return self.x.copy()


def loop(case, velocity):
    """The loop of a `peers.Case`."""
    sinusoids = [row.numpy() for row in case.sinusoids]
    return HostLoop(case.noise.numpy(), sinusoids, case.labels.numpy(), case.h, velocity)


def openvino(case, file, dtype, threads):
    """A loop on OpenVINO's CPU, and the threads it took."""
    import openvino as ov

    core = ov.Core()
    if dtype == "bf16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        raise RuntimeError("OpenVINO has no bf16 on this CPU")
    settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": dtype}
    compiled = core.compile_model(str(file), "CPU", settings)
    request = compiled.create_infer_request()
    places = {name: i for i, name in enumerate(INPUTS) if name in {n for given in compiled.inputs for n in given.names}}

    def velocity(*inputs):
        # A network without classes has lost that input.
        request.infer({name: inputs[place] for name, place in places.items()}, share_inputs=True, share_outputs=True)
        return request.get_output_tensor(0).data

    taken = compiled.get_property("INFERENCE_NUM_THREADS")
    return loop(case, velocity), "" if taken == threads else f"{taken} threads"


def onnx_runtime(case, file, threads):
    """A loop on ONNX Runtime's CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    names = {given.name for given in session.get_inputs()}

    def velocity(*inputs):
        given = {name: value for name, value in zip(INPUTS, inputs) if name in names}
        return session.run(None, given)[0]

    return loop(case, velocity), ""
