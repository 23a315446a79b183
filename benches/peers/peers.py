"""PyTorch's ways to run the sampling loop, each behind `run() -> milliseconds`."""

import time

import torch

import models
from workloads import schedule

DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
# Name -> how `torch.compile` is called (None: not at all), and whether the whole loop is one CUDA graph.
ON_GPU = {
    "eager": (None, False),
    "reduce-overhead": ({"mode": "reduce-overhead"}, False),
    "max-autotune + loop graph": ({"mode": "max-autotune-no-cudagraphs"}, True),
}
# Shapes are fixed: a second model may not make those of the first one variable.
ON_CPU = {"eager": (None, False), "compiled": ({"dynamic": False}, False)}


class Case:
    """What every engine starts from: network, noise, sinusoids of all evaluations and classes, in f32 on the CPU."""

    def __init__(self, name, noise, steps, convention, guidance):
        """`noise`: numpy float32 [B, 1, H, W]; image i gets class i modulo their number."""
        self.network = models.build(name)
        times, self.h = schedule(steps, convention)
        self.guidance = guidance
        labels = torch.arange(noise.shape[0]) % 3
        if guidance != 1.0:
            labels = torch.cat([labels, torch.full((noise.shape[0],), self.network.null_class)])
        self.labels = labels
        rows = models.embed_times(self.network, times)
        self.sinusoids = [row.expand(len(labels), -1).contiguous() for row in rows]
        self.noise = torch.from_numpy(noise)


class Loop:
    """Euler's rule from given noise to images, the state in f32 and the network in `dtype`, as `arclet` does it; the
    images are not clamped."""

    def __init__(self, case, device, dtype, autocast=False):
        """`case` is used up: its network moves to `device` and, but for `autocast`, to `dtype`."""
        self.device = torch.device(device)
        dtype = DTYPES[dtype]
        kept = torch.float32 if autocast else dtype
        # Everything that does not depend on x is on the device before the loop.
        self.h = case.h
        self.labels = case.labels.to(self.device)
        self.sinusoids = [row.to(self.device, kept) for row in case.sinusoids]
        self.noise = case.noise.to(self.device)
        self.x = self.noise.clone()
        self.velocity = models.Velocity(case.network.to(self.device, kept), case.guidance, dtype, autocast).eval()
        self.graph = None

    def _trajectory(self):
        for sinusoids in self.sinusoids:
            self.x.sub_(self.velocity(self.x, sinusoids, self.labels), alpha=self.h)

    @torch.inference_mode()
    def prepare(self, options, whole_graph):
        """Compiles and records, and runs a few times so that nothing of it is left for the measurement."""
        if options is not None:
            self.velocity = torch.compile(self.velocity, fullgraph=True, **options)
        for _ in range(3 if self.device.type == "cuda" else 1):
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


def settings(threads, on_gpu):
    """f32 is f32: no TF32. On the CPU the compiler takes weights for constants. Everything else as PyTorch comes."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    if threads:
        torch.set_num_threads(threads)
    if not on_gpu:
        from torch._inductor import config

        config.freezing = True


def prepared(make_case, device, dtype, kind):
    """A loop ready to run, and what is to be said about it. On the CPU bf16 is the faster of two: all of the network in
    bf16, or f32 under autocast."""
    options = (ON_GPU if device.startswith("cuda") else ON_CPU)[kind]

    def loop(autocast):
        return Loop(make_case(), device, dtype, autocast).prepare(*options)

    torch._dynamo.reset()
    if device.startswith("cuda") or dtype != "bf16":
        return loop(False), ""
    ways = {"module.to(bfloat16)": loop(False), "autocast": loop(True)}
    times = {way: min(made.run() for _ in range(2)) for way, made in ways.items()}
    best = min(times, key=times.get)
    return ways[best], f"{best}; " + ", ".join(f"{way} {ms:.1f} ms" for way, ms in times.items() if way != best)
