"""What is measured: models, steps, guidance and batch. Standard library only."""

import types

# Model -> steps of the published workload, guidance scale, image side.
MODELS = {"vit-b16": (50, 1.0, 224), "nanodit": (100, 3.0, 64), "lens-dit-s": (50, 2.0, 64)}
# What a GPU is measured on where nothing else is asked for: what `tools/pack-gpu` packs has no file of weights.
GPU_MODELS = "vit-b16,nanodit"
# (model, steps, batch) of the CPU, where a run of the large models is one evaluation.
CPU_CASES = [("vit-b16", 1, 1), ("nanodit", 1, 1), ("lens-dit-s", 50, 1), ("lens-dit-s", 4, 16)]


def cases(device, models, dtypes, time="train", steps=None, batch=None):
    """The cases in the order of measurement; `steps` and `batch` replace those of the workload."""
    chosen = []
    for model in models:
        published, guidance, side = MODELS[model]
        if device.startswith("cuda"):
            shapes = [(steps or published, batch or 1)]
        else:
            shapes = [(steps or s, batch or b) for name, s, b in CPU_CASES if name == model]
        if time == "notebook":
            # One step of this convention is none.
            shapes = [(max(s, 2), b) for s, b in shapes]
        for s, b in dict.fromkeys(shapes):
            for dtype in dtypes:
                chosen.append(
                    types.SimpleNamespace(
                        model=model,
                        device=device,
                        dtype=dtype,
                        steps=s,
                        time=time,
                        guidance=guidance,
                        batch=b,
                        side=side,
                    )
                )
    return chosen


def schedule(steps, convention):
    """Times of the evaluations and the length of a step, as `arclet` takes them."""
    if convention == "train":
        return [(steps - i) / steps for i in range(steps)], 1.0 / steps
    return [i / (steps - 1) for i in range(steps - 1)], 1.0 / (steps - 1)
