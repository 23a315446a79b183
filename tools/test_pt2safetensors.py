"""Tests of pt2safetensors with stand-ins for torch and safetensors: python3 -m unittest discover tools"""

import contextlib
import io
import json
import pathlib
import sys
import tempfile
import types
import unittest
from unittest import mock

import pt2safetensors as tool


class Tensor:
    """As much of a tensor as the tool touches; counts its copies."""

    dtype, shape = "f32", (2, 3)

    def __init__(self, storage=None):
        self.storage = storage if storage is not None else object()

    def detach(self):
        return self

    def to(self, device):
        assert device == "cpu"
        return self

    def contiguous(self):
        return self

    def clone(self):
        return Tensor()

    def numel(self):
        return 6


def state():
    return {"w": Tensor(), "b": Tensor()}


class Select(unittest.TestCase):
    def test_bare_state_dictionary(self):
        checkpoint = state()
        self.assertEqual(tool.select(checkpoint), ((), checkpoint))

    def test_model_entries(self):
        for key in tool.MODEL_KEYS:
            weights = state()
            self.assertEqual(tool.select({"epoch": 3, key: weights}), ((key,), weights))

    def test_ema_is_preferred(self):
        for key in tool.EMA_KEYS:
            ema, weights = state(), state()
            checkpoint = {"model_state_dict": weights, key: ema, "optimizer": {"state": {}}}
            self.assertEqual(tool.select(checkpoint), ((key,), ema))
            self.assertEqual(tool.select(checkpoint, ema=False), (("model_state_dict",), weights))

    def test_nested_ema(self):
        ema = state()
        self.assertEqual(tool.select({"ema": {"decay": 0.99, "shadow": ema}, "model": state()}), (("ema", "shadow"), ema))
        self.assertEqual(tool.select({"ema": {"state_dict": ema}}), (("ema", "state_dict"), ema))

    def test_ema_without_tensors_is_passed_over(self):
        weights = state()
        self.assertEqual(tool.select({"ema": {"decay": 0.99}, "model": weights}), (("model",), weights))
        self.assertEqual(tool.select({"ema": True, "model": weights}), (("model",), weights))

    def test_ema_weights_without_names_are_refused(self):
        weights = state()
        for ema in ({"decay": 0.99, "shadow_params": [Tensor(), Tensor()]}, [Tensor()], Tensor()):
            checkpoint = {"ema": ema, "model": weights}
            with self.assertRaisesRegex(tool.Failure, "^ema: .*--no-ema") as caught:
                tool.select(checkpoint)
            self.assertEqual(caught.exception.code, tool.EXIT_INPUT)
            self.assertEqual(tool.select(checkpoint, ema=False), (("model",), weights))
            usable = state()
            self.assertEqual(tool.select(checkpoint | {"ema_state_dict": usable}), (("ema_state_dict",), usable))

    def test_a_named_entry(self):
        weights = state()
        self.assertEqual(tool.select({"a": {"b": weights}, "ema": state()}, key="a.b"), (("a", "b"), weights))
        for key in ("x", "a.x", "a.b.w.x"):
            with self.assertRaisesRegex(tool.Failure, "no entry 'x'"):
                tool.select({"a": {"b": weights}}, key=key)
        with self.assertRaisesRegex(tool.Failure, "expected a dictionary of tensors"):
            tool.select({"a": 1}, key="a")

    def test_halves_of_an_ema_pytorch_state(self):
        old, new, step = Tensor(), Tensor(), Tensor()
        both = {"initted": step, "online_model.w": old, "ema_model.w": new}
        self.assertEqual(tool.pick_prefix(both), ({"w": new}, "ema_model."))
        self.assertEqual(tool.pick_prefix(both, ema=False), ({"w": old}, "online_model."))
        self.assertEqual(tool.pick_prefix({"w": old}), ({"w": old}, None))

    def test_nothing_to_take(self):
        for checkpoint, found in (([1], "a list"), (Tensor(), "a Tensor"), ({"epoch": 1}, "'epoch'"), ({}, "")):
            with self.assertRaisesRegex(tool.Failure, found) as caught:
                tool.select(checkpoint)
            self.assertEqual(caught.exception.code, tool.EXIT_INPUT)


class Convert(unittest.TestCase):
    """The whole program on a checkpoint that torch would have loaded."""

    def run_main(self, checkpoint, *options, torch=True, safetensors=True):
        self.saved = None

        def load(path, map_location, weights_only):
            self.assertEqual((map_location, weights_only), ("cpu", True))
            if isinstance(checkpoint, Exception):
                raise checkpoint
            return checkpoint

        def save_file(tensors, path, metadata):
            self.saved = (tensors, metadata)
            pathlib.Path(path).write_bytes(b"safetensors")

        modules = {
            "torch": types.SimpleNamespace(load=load) if torch else None,
            "safetensors": types.SimpleNamespace() if safetensors else None,
            "safetensors.torch": types.SimpleNamespace(save_file=save_file) if safetensors else None,
        }
        out, err = io.StringIO(), io.StringIO()
        with mock.patch.dict(sys.modules, modules), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = tool.main([str(self.folder / "best.pt"), *options])
        return code, out.getvalue(), err.getvalue()

    def setUp(self):
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.folder = pathlib.Path(directory.name)

    def listing(self):
        return sorted(path.name for path in self.folder.iterdir())

    def test_writes_copies_and_says_what_it_took(self):
        storage = object()
        shared = Tensor(storage)
        checkpoint = {"ema": {"w": shared, "tied": shared, "step": 3}, "model": state()}
        code, out, err = self.run_main(checkpoint)
        self.assertEqual((code, err), (0, ""))
        self.assertEqual(self.listing(), ["best.safetensors"])
        tensors, metadata = self.saved
        self.assertEqual((sorted(tensors), metadata), (["tied", "w"], {"format": "pt"}))
        self.assertIsNot(tensors["w"].storage, tensors["tied"].storage)
        self.assertIn("took ema: 2 tensors, 12 numbers", out)
        self.assertIn("left out, no tensor: step (int)", out)
        self.assertEqual((self.folder / "best.safetensors").stat().st_mode & 0o400, 0o400)

    def test_config_is_stored(self):
        config = self.folder / "config.json"
        config.write_text('{"depth": 2}')
        self.assertEqual(self.run_main(state(), "--config", str(config))[0], 0)
        self.assertEqual(json.loads(self.saved[1]["config"]), {"depth": 2})
        for text in ("[1]", "{"):
            config.write_text(text)
            code, _, err = self.run_main(state(), "--config", str(config), "--force")
            self.assertEqual(code, tool.EXIT_INPUT)
            self.assertIn("config.json", err)

    def test_an_output_is_not_overwritten_unless_forced(self):
        target = self.folder / "best.safetensors"
        target.write_bytes(b"old")
        code, _, err = self.run_main(state())
        self.assertEqual((code, target.read_bytes()), (tool.EXIT_USAGE, b"old"))
        self.assertIn("--force", err)
        self.assertEqual(self.run_main(state(), "--force")[0], 0)
        self.assertEqual(target.read_bytes(), b"safetensors")

    def test_failures_name_the_cause_and_leave_nothing(self):
        for error, code, text in (
            (FileNotFoundError(), tool.EXIT_INPUT, "no such file"),
            (TypeError("unexpected keyword weights_only"), tool.EXIT_RUNTIME, "torch 1.13"),
            (ValueError("Unsupported global: os.system"), tool.EXIT_INPUT, "save model.state_dict()"),
        ):
            found, _, err = self.run_main(error)
            self.assertEqual(found, code)
            self.assertIn(text, err)
        found, _, err = self.run_main(state(), str(self.folder / "none" / "x.safetensors"))
        self.assertEqual(found, tool.EXIT_OUTPUT)
        self.assertEqual(self.listing(), [])

    def test_missing_packages(self):
        code, _, err = self.run_main(state(), torch=False)
        self.assertEqual(code, tool.EXIT_RUNTIME)
        self.assertIn("pip install torch", err)
        code, _, err = self.run_main(state(), safetensors=False)
        self.assertEqual(code, tool.EXIT_RUNTIME)
        self.assertIn("pip install safetensors", err)
        self.assertEqual(self.listing(), [])


if __name__ == "__main__":
    unittest.main()
