"""Tests of what mutate-barriers finds and changes; building and running mutants is left to the tool itself."""

import importlib.machinery
import importlib.util
import pathlib
import sys
import unittest

PATH = pathlib.Path(__file__).with_name("mutate-barriers")
LOADER = importlib.machinery.SourceFileLoader("mutate_barriers", str(PATH))
tool = importlib.util.module_from_spec(importlib.util.spec_from_loader("mutate_barriers", LOADER))
sys.modules["mutate_barriers"] = tool
sys.dont_write_bytecode = True
LOADER.exec_module(tool)

SOURCE = """\
// __syncthreads();
template <int KEEP> void cp_async_wait() { asm volatile("wait"); }
/* __syncwarp();
   __syncwarp(); */ __syncwarp(0xffu);
  if (x) { __syncthreads(); dev::cp_async_wait<N<2> - 1>(); }  // __syncthreads();
  dev::mbar_wait(&full[f(s)], (kt / 4) & 1);
  dev::cluster_sync(); dev::wgmma_fence(); dev::grid_wait();
  int n = __syncthreads_count(p);
  my__syncthreads();
"""


class Finding(unittest.TestCase):
    def setUp(self):
        self.found = tool.mutants_of("kernels/a.cu", SOURCE)

    def test_every_call_and_no_comment_or_definition_is_found(self):
        self.assertEqual(
            [(m.line, m.what, m.kind) for m in self.found],
            [
                (4, "__syncwarp(0xffu)", "removed"),
                (5, "__syncthreads()", "removed"),
                (5, "dev::cp_async_wait<N<2> - 1>()", "removed"),
                (5, "dev::cp_async_wait<N<2> - 1>()", "weakened"),
                (6, "dev::mbar_wait(&full[f(s)], (kt / 4) & 1)", "removed"),
                (7, "dev::cluster_sync()", "removed"),
                (7, "dev::wgmma_fence()", "removed"),
                (7, "dev::grid_wait()", "removed"),
            ],
        )

    def test_the_change_touches_nothing_else(self):
        lines = SOURCE.splitlines()
        self.assertEqual(self.found[0].text, "   __syncwarp(); */ (void)0;")
        self.assertEqual(self.found[1].text, lines[4].replace("__syncthreads();", "(void)0;", 1))
        self.assertEqual(self.found[3].text, lines[4].replace("<N<2> - 1>", "<(N<2> - 1) + 1>"))
        self.assertEqual(self.found[4].text, "  (void)0;")

    def test_the_kernels_have_barriers(self):
        mutants = tool.all_mutants(PATH.parent.parent, [])
        self.assertTrue(any(m.path == "kernels/linear.cu" for m in mutants))


class Reasons(unittest.TestCase):
    def test_the_failed_test_and_the_message_are_named(self):
        output = "test ops::a ... ok\ntest ops::b ... FAILED\nkernel k: shared-memory race: read of 4 bytes\n"
        self.assertEqual(tool.reason(output), "ops::b - kernel k: shared-memory race: read of 4 bytes")


if __name__ == "__main__":
    unittest.main()
