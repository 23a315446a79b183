#!/usr/bin/env python3
"""Convert a PyTorch checkpoint (.pt, .pth, .ckpt, .bin) to safetensors, which arclet reads.

A checkpoint is a pickle, and a pickle can run code. It is loaded with torch.load(weights_only=True), which allows
tensors and plain containers only; still, convert files from people you trust, or inside a sandbox.

Takes the EMA weights if the checkpoint has them, else the model's; says what it took and what it left out.
Needs the packages torch (1.13 or later) and safetensors.

examples:
  python3 tools/pt2safetensors.py best.pt                       writes best.safetensors
  python3 tools/pt2safetensors.py best.pt model.safetensors --no-ema --config config.json
"""

import argparse
import json
import os
import pathlib
import sys
import tempfile

EMA_KEYS = ("ema", "ema_model", "ema_state_dict", "ema_model_state_dict", "model_ema", "model_ema_state_dict")
MODEL_KEYS = ("model_state_dict", "state_dict", "model", "module", "net", "network", "weights", "params")
# Where EMA helpers keep the tensors inside their own state.
INNER_KEYS = ("shadow", "shadow_params", "averaged", "module")

EXIT_RUNTIME, EXIT_USAGE, EXIT_INPUT, EXIT_OUTPUT = 1, 2, 3, 5


class Failure(Exception):
    """A message for the user and the exit code that goes with it."""

    def __init__(self, code, message):
        super().__init__(message)
        self.code = code


def is_tensor(value):
    return all(hasattr(value, name) for name in ("shape", "dtype", "detach"))


def has_tensors(value):
    return isinstance(value, dict) and any(is_tensor(entry) for entry in value.values())


def holds_tensors(value):
    """Whether there are tensors anywhere inside `value`, also without names."""
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, (list, tuple)):
        return is_tensor(value)
    return any(holds_tensors(entry) for entry in value)


def unwrap(value, path):
    """The dictionary of tensors inside `value` and the keys that lead there, or None."""
    if has_tensors(value):
        return path, value
    if isinstance(value, dict):
        for key in MODEL_KEYS + INNER_KEYS:
            if key in value:
                found = unwrap(value[key], path + (key,))
                if found:
                    return found
    return None


def first_of(checkpoint, names):
    """The first of the entries `names` that is a dictionary of tensors, or leads to one."""
    found = (unwrap(checkpoint[name], (name,)) for name in names if name in checkpoint)
    return next(filter(None, found), None)


def select(checkpoint, key=None, ema=True):
    """The weights of a checkpoint: (keys that lead to them, dictionary).

    `key` names an entry, with dots for nested ones; without it EMA weights come first (unless `ema` is false), then
    the model's, then the checkpoint itself if it is a bare state dictionary.
    """
    if key is not None:
        value, path = checkpoint, tuple(key.split("."))
        for part in path:
            if not isinstance(value, dict) or part not in value:
                raise Failure(EXIT_INPUT, f"key {key!r}: no entry {part!r}; found {describe(value)}")
            value = value[part]
        found = unwrap(value, path)
        if not found:
            raise Failure(EXIT_INPUT, f"key {key!r}: expected a dictionary of tensors, found {describe(value)}")
        return found
    if not isinstance(checkpoint, dict):
        raise Failure(EXIT_INPUT, f"expected a dictionary, found {describe(checkpoint)}")
    if ema:
        found = first_of(checkpoint, EMA_KEYS)
        if found:
            return found
        for name in EMA_KEYS:
            if holds_tensors(checkpoint.get(name)):
                raise Failure(
                    EXIT_INPUT,
                    f"{name}: expected EMA weights by name, found {describe(checkpoint[name])} (torch_ema keeps a list "
                    "without names); take the model's own weights with --no-ema, or name an entry with --key",
                )
    found = first_of(checkpoint, MODEL_KEYS)
    if found:
        return found
    if has_tensors(checkpoint):
        return (), checkpoint
    raise Failure(EXIT_INPUT, f"no dictionary of tensors; found {describe(checkpoint)}; name one with --key")


def pick_prefix(state, ema=True):
    """The half of an ema-pytorch state that was asked for, without its prefix; other states as they are."""
    for prefix in ("ema_model.", "online_model.")[:: 1 if ema else -1]:
        half = {name[len(prefix) :]: value for name, value in state.items() if str(name).startswith(prefix)}
        if half:
            return half, prefix
    return state, None


def describe(value):
    """What a value is, for messages."""
    if isinstance(value, dict):
        names = [repr(key) for key in list(value)[:12]]
        return "a dictionary with the keys " + ", ".join(names) + (", .." if len(value) > 12 else "")
    return f"a {type(value).__name__}"


def split_tensors(state):
    """Named tensors of a state dictionary, and the names of what is none."""
    tensors, dropped = {}, []
    for name, value in state.items():
        if isinstance(name, str) and is_tensor(value):
            tensors[name] = value
        else:
            dropped.append(f"{name} ({type(value).__name__})")
    return tensors, dropped


def detached(tensors):
    """Copies without gradients, strides or shared storage: safetensors holds every tensor on its own."""
    return {name: tensor.detach().to("cpu").contiguous().clone() for name, tensor in tensors.items()}


def load(path):
    try:
        import torch
    except ImportError as error:
        raise Failure(EXIT_RUNTIME, f"needs the package torch: pip install torch ({error})")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise Failure(EXIT_INPUT, f"{path}: no such file")
    except TypeError as error:
        raise Failure(EXIT_RUNTIME, f"needs torch 1.13 or later, which has weights_only: {error}")
    except Exception as error:  # torch raises several types here, pickle.UnpicklingError among them
        raise Failure(
            EXIT_INPUT,
            f"{path}: not readable as tensors alone: {error}\n"
            "A checkpoint with other Python objects in it is not opened here, because that runs its code: load it where "
            "it was written and save model.state_dict() instead.",
        )


def save(tensors, path, metadata):
    """Writes to a temporary name beside `path`, then renames."""
    try:
        from safetensors.torch import save_file
    except ImportError as error:
        raise Failure(EXIT_RUNTIME, f"needs the package safetensors: pip install safetensors ({error})")
    try:
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        os.close(handle)
    except OSError as error:
        raise Failure(EXIT_OUTPUT, f"cannot write {path}: {error}")
    try:
        save_file(tensors, temporary, metadata=metadata)
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)  # mkstemp makes files private
        os.replace(temporary, path)
    except OSError as error:
        raise Failure(EXIT_OUTPUT, f"cannot write {path}: {error}")
    finally:
        if os.path.exists(temporary):
            os.unlink(temporary)


def read_config(path):
    try:
        config = json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise Failure(EXIT_INPUT, f"{path}: {error}")
    if not isinstance(config, dict):
        raise Failure(EXIT_INPUT, f"{path}: expected a JSON object")
    return json.dumps(config)


def convert(arguments):
    source = pathlib.Path(arguments.checkpoint)
    target = pathlib.Path(arguments.output) if arguments.output else source.with_suffix(".safetensors")
    if target.exists() and not arguments.force:
        raise Failure(EXIT_USAGE, f"{target} exists; overwrite it with --force")
    metadata = {"format": "pt"}
    if arguments.config:
        metadata["config"] = read_config(arguments.config)
    path, state = select(load(source), arguments.key, arguments.ema)
    state, prefix = pick_prefix(state, arguments.ema)
    tensors, dropped = split_tensors(state)
    save(detached(tensors), target, metadata)
    numbers = sum(tensor.numel() for tensor in tensors.values())
    taken = ".".join(path) if path else "the checkpoint itself"
    taken += f", entries {prefix}*" if prefix else ""
    print(f"took {taken}: {len(tensors)} tensors, {numbers:,} numbers")
    for name in dropped:
        print(f"left out, no tensor: {name}")
    print(f"wrote {target}")


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n", 1)[0],
        epilog=__doc__.split("\n\n", 1)[1],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("checkpoint", help="file to convert")
    parser.add_argument("output", nargs="?", help="file to write; default: the same name with .safetensors")
    parser.add_argument("--key", help="entry that holds the weights, with dots for nested ones (ema.state_dict)")
    parser.add_argument("--no-ema", dest="ema", action="store_false", help="take the model's weights even if there are EMA weights")
    parser.add_argument("--config", metavar="FILE.json", help="model configuration to store beside the weights")
    parser.add_argument("--force", action="store_true", help="overwrite the output")
    try:
        convert(parser.parse_args(argv))
    except Failure as failure:
        print(f"pt2safetensors: {failure}", file=sys.stderr)
        return failure.code
    return 0


if __name__ == "__main__":
    sys.exit(main())
