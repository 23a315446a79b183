"""Tests of the comparison: `python3 -m unittest discover -s benches/peers`. Those of the networks need
torch, safetensors and a minute; they are skipped without."""

import json
import math
import struct
import sys
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import stats
import weights

try:
    import torch
    from safetensors.torch import load_file

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

    def test_times_are_those_of_both_conventions(self):
        self.assertEqual(peers.schedule(4, "train"), ([1.0, 0.75, 0.5, 0.25], 0.25))
        self.assertEqual(peers.schedule(3, "notebook"), ([0.0, 0.5], 0.5))


if __name__ == "__main__":
    unittest.main()
