"""PyTorch's ways to run the sampling loop, each behind `run() -> milliseconds`."""

import time

import torch

import models

DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
# Name -> how `torch.compile` is called (None: not at all), and whether the whole loop is one CUDA graph.
ON_GPU = {
    "eager": (None, False),
    "reduce-overhead": ({"mode": "reduce-overhead"}, False),
    "max-autotune + loop graph": ({"mode": "max-autotune-no-cudagraphs"}, True),
}
ON_CPU = {"eager": (None, False), "compiled": ({}, False)}


def schedule(steps, convention):
    """Times of the evaluations and the length of a step, as `arclet` takes them."""
    if convention == "train":
        return [(steps - i) / steps for i in range(steps)], 1.0 / steps
    return [i / (steps - 1) for i in range(steps - 1)], 1.0 / (steps - 1)


class Loop:
    """Euler's rule from given noise to images, the state in f32 and the network in `dtype`, as `arclet` does it; the
    images are not clamped."""

    def __init__(self, name, device, dtype, noise, steps, convention, guidance):
        """`noise`: numpy float32 [B, 1, H, W]; image i gets class i modulo their number."""
        self.device = torch.device(device)
        self.dtype = DTYPES[dtype]
        self.guidance = guidance
        network = models.build(name)
        times, self.h = schedule(steps, convention)
        self.evaluations = len(times)
        # Everything that does not depend on x is on the device before the loop.
        rows = models.embed_times(network, times).to(self.device, self.dtype)
        batch = noise.shape[0]
        labels = torch.arange(batch) % 3
        if guidance != 1.0:
            labels = torch.cat([labels, torch.full((batch,), network.null_class)])
        self.labels = labels.to(self.device)
        self.sinusoids = [row.expand(len(labels), -1).contiguous() for row in rows]
        self.noise = torch.from_numpy(noise).to(self.device)
        self.x = self.noise.clone()
        self.network = network.to(self.device, self.dtype)
        self.velocity = self._velocity
        self.graph = None

    def _velocity(self, x, sinusoids, labels):
        x = x.to(self.dtype)
        if self.guidance == 1.0:
            return self.network(x, sinusoids, labels).float()
        conditional, unconditional = self.network(torch.cat([x, x]), sinusoids, labels).float().chunk(2)
        return unconditional + self.guidance * (conditional - unconditional)

    def _trajectory(self):
        for sinusoids in self.sinusoids:
            self.x.sub_(self.velocity(self.x, sinusoids, self.labels), alpha=self.h)

    @torch.inference_mode()
    def prepare(self, options, whole_graph):
        """Compiles and records, and runs a few times so that nothing of it is left for the measurement."""
        if options is not None:
            self.velocity = torch.compile(self._velocity, fullgraph=True, **options)
        for _ in range(3):
            self._trajectory()
        if whole_graph:
            torch.cuda.synchronize()
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph):
                self._trajectory()
        return self

    @torch.inference_mode()
    def run(self):
        """One loop: milliseconds between two events of the GPU, noise and images on it; on the CPU of the clock."""
        on_gpu = self.device.type == "cuda"
        if not on_gpu:
            begin = time.perf_counter()
            self.x.copy_(self.noise)
            self._trajectory()
            return (time.perf_counter() - begin) * 1e3
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        self.x.copy_(self.noise)
        start.record()
        if self.graph is None:
            self._trajectory()
        else:
            self.graph.replay()
        end.record()
        end.synchronize()
        return start.elapsed_time(end)

    def images(self):
        """The images of the last run, numpy float32."""
        return self.x.cpu().numpy().copy()


def settings(threads):
    """f32 is f32: no TF32. Everything else as PyTorch comes."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    if threads:
        torch.set_num_threads(threads)
