"""Every peer of a case: its name, what it lacks on this machine, and how it is made ready."""

import functools

import exported
import peers

# What writes ONNX.
EXPORT = ("onnx", "onnxscript")


class Engine:
    """`make()` gives a loop with `run` and `images`, and a note for the table."""

    def __init__(self, name, make, packages=()):
        self.name, self.make, self.packages = name, make, packages

    def lacks(self):
        """Why there is no row, or an empty text."""
        gone = exported.missing(*self.packages)
        return f"not installed: {', '.join(gone)}" if gone else ""


def of(case, noise, threads, folder):
    """The engines of a case in the order of measurement; ONNX files are kept in `folder` for the next type."""

    def start():
        return peers.Case(case.model, noise, case.steps, case.time, case.guidance)

    def file():
        path = folder / f"{case.model}-{case.batch}.onnx"
        if not path.exists():
            exported.export(start(), path)
        return path

    on_gpu = case.device.startswith("cuda")
    engines = [
        Engine(f"PyTorch {kind}", functools.partial(peers.prepared, start, case.device, case.dtype, kind))
        for kind in (peers.ON_GPU if on_gpu else peers.ON_CPU)
    ]
    if on_gpu:
        return engines
    if case.dtype in ("f32", "bf16"):
        engines.append(
            Engine("OpenVINO", lambda: exported.openvino(start(), file(), case.dtype, threads), ("openvino", *EXPORT))
        )
    if case.dtype == "f32":
        engines.append(
            Engine("ONNX Runtime", lambda: exported.onnx_runtime(start(), file(), threads), ("onnxruntime", *EXPORT))
        )
    return engines
