"""Tests of the comparison: `python3 -m unittest discover -s benches/peers`. Those of arrays need numpy, those of the
networks torch, safetensors and a minute; they are skipped without."""

import json
import math
import struct
import sys
import tempfile
import time
import types
import unittest
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import ours
import run
import stats
import table
import turns
import workloads
from budget import Budget, TimeUp, within

try:
    import numpy as np

    import checks
    import weights
except ImportError:
    np = None
try:
    import torch
    from safetensors.torch import load_file

    import exported
    import models
    import peers
except ImportError:
    torch = None

GOLDENS = Path(__file__).resolve().parents[2] / "tests" / "data" / "goldens" / "f_fullsize_hash"


def metadata(name):
    """Metadata of a golden file, which names the first value of some parameters."""
    with open(GOLDENS / f"{name}.safetensors", "rb") as file:
        size = struct.unpack("<Q", file.read(8))[0]
        return json.loads(file.read(size))["__metadata__"]


@unittest.skipIf(np is None, "needs numpy")
class Weights(unittest.TestCase):
    def test_first_values_are_the_goldens(self):
        shapes = {
            "unet.input_conv.weight": (3, 1, 1, 1),
            "unet.input_conv.bias": (3,),
            "unet.pretrained_vit.cls_token": (1, 1, 768),
            "unet.pretrained_vit.pos_embed": (1, 197, 768),
            "x_embedder.proj.weight": (512, 1, 2, 2),
            "x_embedder.proj.bias": (512,),
        }
        compared = 0
        for name in ("flow_vit_b16_224", "nanodit_64"):
            for key, value in json.loads(metadata(name)["first_values"]).items():
                if key != "pos_embed":
                    self.assertEqual(float(weights.hashed(key, shapes[key]).flat[0]), value, key)
                    compared += 1
        self.assertGreaterEqual(compared, 5)

    def test_positions_encode_column_then_row(self):
        table = weights.sincos_positions(8, 3)
        self.assertEqual(table.shape, (9, 8))
        self.assertAlmostEqual(float(table[5][0]), math.sin(2.0), places=6)  # column 2 of row 1
        self.assertAlmostEqual(float(table[5][6]), math.cos(1.0), places=6)


class Statistics(unittest.TestCase):
    def test_percentiles_are_nearest_ranks(self):
        times = list(range(100, 0, -1))
        self.assertEqual([stats.percentile(times, p) for p in (0.5, 0.9, 0.99)], [50, 90, 99])
        self.assertEqual(stats.percentile([7], 0.99), 7)

    def test_ratio_is_theirs_over_ours_and_within_its_interval(self):
        ours = [[10.0 + 0.1 * i, 10.0] for i in range(20)]
        theirs = [[25.0 + 0.3 * (i % 5), 25.0] for i in range(20)]
        ratio, low, high = stats.paired_ratio(ours, theirs)
        self.assertTrue(2.3 < low < ratio < high < 2.6, (ratio, low, high))
        self.assertEqual(stats.paired_ratio([[2.0]] * 3, [[4.0]] * 3), (2.0, 2.0, 2.0))
        for bad in ([], [[1.0]]):
            self.assertRaises(ValueError, stats.paired_ratio, bad, [[1.0], [1.0]])

    def test_a_linear_drift_cancels_in_each_round(self):
        self.assertEqual(stats.abba(1), [True, False, False, True])
        turns = stats.abba(3)
        self.assertEqual(sum(i for i, t in enumerate(turns) if t), sum(i for i, t in enumerate(turns) if not t))


class Workloads(unittest.TestCase):
    def test_the_cpu_measures_every_workload_in_both_types(self):
        args = run.arguments(["--device", "cpu"])
        cases = workloads.cases("cpu", args.models, args.dtypes)
        got = [(c.model, c.steps, c.batch, c.guidance, c.dtype) for c in cases if c.dtype == "bf16"]
        want = [("vit-b16", 1, 1, 1.0), ("nanodit", 1, 1, 3.0), ("lens-dit-s", 50, 1, 2.0), ("lens-dit-s", 4, 16, 2.0)]
        self.assertEqual(got, [(*case, "bf16") for case in want])
        self.assertEqual(len(cases), 2 * len(want))
        # All of it ends in a quarter of an hour.
        self.assertLess(len(cases) * args.limit, 15 * 60)
        self.assertGreaterEqual(args.threads, 1)

    def test_a_gpu_measures_the_published_ones(self):
        args = run.arguments(["--device", "cuda:1"])
        got = [(c.model, c.steps, c.batch, c.dtype) for c in workloads.cases("cuda:1", args.models, args.dtypes)]
        self.assertEqual(got, [("vit-b16", 50, 1, "f16"), ("nanodit", 100, 1, "f16")])
        self.assertEqual((args.warmup, args.rounds, args.runs, args.threads), (100, 10, 50, 0))

    def test_steps_and_batch_replace_those_of_the_workload_once(self):
        cases = workloads.cases("cpu", ["lens-dit-s"], ["f32"], steps=2, batch=3)
        self.assertEqual([(c.steps, c.batch) for c in cases], [(2, 3)])
        self.assertEqual(workloads.cases("cpu", ["vit-b16"], ["f32"], "notebook")[0].steps, 2)

    def test_bad_arguments_are_refused(self):
        for bad in (
            ["--models", "resnet"],
            ["--dtypes", "int8"],
            ["--rounds", "0"],
            ["--limit", "0"],
            ["--limit", "nan"],
            ["--threads", "-1"],
            ["--time", "notebook", "--steps", "1"],
        ):
            with redirect_stderr(StringIO()), self.assertRaises(SystemExit, msg=bad):
                run.arguments(["--device", "cpu", *bad])

    def test_times_are_those_of_both_conventions(self):
        self.assertEqual(workloads.schedule(4, "train"), ([1.0, 0.75, 0.5, 0.25], 0.25))
        self.assertEqual(workloads.schedule(3, "notebook"), ([0.0, 0.5], 0.5))


class Time(unittest.TestCase):
    def test_peers_share_what_is_left(self):
        now = [100.0]
        budget = Budget(60.0, lambda: now[0])
        now[0] = 120.0
        share = budget.share(4)
        self.assertEqual((budget.left(), share.left()), (40.0, 10.0))
        now[0] = 131.0
        self.assertLess(share.left(), 0.0)

    def test_what_is_not_ready_in_time_is_interrupted(self):
        with self.assertRaises(TimeUp), within(0.01):
            time.sleep(5)
        with self.assertRaises(TimeUp), within(0.01):
            try:
                time.sleep(5)
            except TimeUp as error:
                raise RuntimeError("a backend failed") from error
        with self.assertRaises(KeyError), within(5):
            raise KeyError("not about time")
        with within(5):
            pass
        time.sleep(0.02)  # No alarm is left over.
        with self.assertRaises(TimeUp), within(-1.0):
            self.fail("nothing starts without time")

    def test_turns_end_with_the_rounds_or_the_time(self):
        endless, spent = Budget(60.0, lambda: 0.0), Budget(-1.0, lambda: 0.0)
        for rounds, budget, time_of_a_run, want in (
            (3, endless, 1.0, [2] * 6),
            (3, spent, 1.0, [2] * 4),
            (1, spent, 1.0, [2] * 2),
            (2, endless, 9e3, [2, 2, 1, 1]),  # long runs
        ):
            order = []
            blocks = turns.blocks_in_turns(
                lambda n: order.append("A") or [time_of_a_run] * n,
                lambda n: order.append("B") or [2 * time_of_a_run] * n,
                rounds,
                2,
                budget,
            )
            self.assertEqual([len(b) for b in blocks[True]], want)
            self.assertEqual([len(b) for b in blocks[False]], want)
            self.assertEqual("".join(order), "ABBA" * (len(want) // 2))


FAKE = """#!{python}
import json, sys
print(json.dumps({{"ready": {{"name": "m", "device": "cpu", "evaluations": 1, "gate": None, "new": None,
                              "ceiling_ms": 9.5, "threads": sys.argv[sys.argv.index("--threads") + 1]}}}}), flush=True)
for line in sys.stdin:
    print(json.dumps({{"times_ms": [1.5] * int(line)}}), flush=True)
"""


class Ours(unittest.TestCase):
    def test_arclet_is_followed_and_what_is_new_in_its_row_is_kept(self):
        case = types.SimpleNamespace(
            model="m", device="cpu", dtype="f32", steps=1, time="train", guidance=1.0, batch=1
        )
        with tempfile.TemporaryDirectory() as folder:
            program = Path(folder) / "arclet"
            program.write_text(FAKE.format(python=sys.executable))
            program.chmod(0o755)
            with ours.Arclet(program, case, "noise.npy", 3) as arclet:
                self.assertEqual(arclet.about["threads"], "3")
                self.assertEqual(arclet.extra(), {"ceiling_ms": 9.5})
                self.assertEqual(arclet.run(2), [1.5, 1.5])
        self.assertEqual(table.extra_lines({"ceiling_ms": 9.5}), ["  arclet ceiling_ms: 9.5"])

    def test_lines_stand_below_the_head(self):
        times = {"p50_ms": 1.0, "p99_ms": 2.0}
        row = {"name": "lens-dit-s", "peer": "OpenVINO", "dtype": "bf16", "batch": 16, "evaluations": 4}
        line = table.line({**row, "arclet": times, "theirs": times, "ratio": 1.5, "ratio_95": [1.25, 1.75]})
        for name, end in (("bf16", "dtype"), ("16", "batch"), ("4", "NFE")):
            self.assertTrue(line[: table.HEAD.index(end) + len(end)].endswith(name), line)
        self.assertTrue(line.endswith("1.500 [1.250, 1.750]"))
        case = types.SimpleNamespace(model="nanodit", dtype="f32", batch=1)
        self.assertIn("skipped: first", table.skipped_line(case, "OpenVINO", "first\nsecond"))
        self.assertIn("skipped: KeyError", table.skipped_line(case, "OpenVINO", KeyError()))


@unittest.skipIf(np is None, "needs numpy")
class Checks(unittest.TestCase):
    def test_wrong_images_are_not_timed(self):
        want = np.linspace(-1.0, 1.0, 64, dtype=np.float32).reshape(1, 1, 8, 8)
        self.assertEqual(checks.check("peer", "f32", want, want, 0.0)["largest_error"], 0.0)
        self.assertLess(checks.check("peer", "bf16", want * 1.015, want, 0.01)["rms_error"], 0.02)
        for dtype, got in (
            ("f32", want + 2e-4),
            ("bf16", want * 1.025),
            ("bf16", np.where(want > 0.9, np.nan, want)),
            ("f32", want[:, :, :4]),
        ):
            with self.assertRaises(checks.Wrong, msg=dtype):
                checks.check("peer", dtype, got, want, 0.01)


@unittest.skipIf(torch is None, "needs torch and safetensors")
class Networks(unittest.TestCase):
    def test_velocities_are_the_goldens(self):
        for name, golden, side in (("vit-b16", "flow_vit_b16_224", 224), ("nanodit", "nanodit_64", 64)):
            want = load_file(GOLDENS / f"{golden}.safetensors")
            network = models.build(name).double()
            x = 1.5 * torch.from_numpy(weights.hash_uniform("input.x", side * side)).float().double().view(
                1, 1, side, side
            )
            time = float(want["in.t"].double())
            labels = want.get("in.y", torch.zeros(1, dtype=torch.int64))
            got = network(x, models.embed_times(network, [time]).double(), labels)
            error = (got - want["out"].double()).abs().max() / want["out"].abs().max()
            # The sinusoids and the input are rounded to f32.
            self.assertLess(float(error), 1e-5, name)

    def test_the_imported_model_is_its_golden(self):
        folder = models.LENS_DIT_S.parents[1] / "lens-dit-s-pytorch"
        want, network = load_file(folder / "golden.safetensors"), models.lens_dit_s(folder / "model.safetensors")
        sinusoids = torch.cat([models.embed_times(network, [float(t.double())]) for t in want["in.t"]])
        got = network(want["in.noise"], sinusoids, want["in.class"])
        self.assertLess(float((got - want["out.velocity"]).abs().max()), 1e-5)

    def test_the_embedded_model_is_its_golden(self):
        want = load_file(models.LENS_DIT_S.parent / "golden.safetensors")
        network = models.build("lens-dit-s")
        sinusoids = torch.cat([models.embed_times(network, [float(t.double())]) for t in want["in.t"]])
        got = network(want["in.noise"], sinusoids, want["in.class"])
        self.assertLess(float((got - want["out.velocity"]).abs().max()), 1e-5)
        for steps, guidance, name in ((10, 1.0, "out.euler10_g1"), (50, 2.0, "out.euler50_g2")):
            case = peers.Case("lens-dit-s", want["in.noise"].numpy(), steps, "train", guidance)
            velocity = models.Velocity(case.network, guidance)
            host = exported.loop(case, lambda *inputs: velocity(*map(torch.from_numpy, inputs)).numpy())
            for made in (host, peers.Loop(case, "cpu", "f32")):
                self.assertGreater(made.run(), 0.0)
                error = float(abs(made.images() - want[name].numpy()).max())
                self.assertLess(error, 1e-5, name)


if __name__ == "__main__":
    unittest.main()
