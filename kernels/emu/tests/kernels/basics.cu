// Correct kernels that exercise the emulator: indices, warp collectives, atomics, copies, spec structs.
#include "emu.h"

struct EmutestSpec {
  int n;
  float scale;
};
SPEC_LAYOUT(EmutestSpec, n, scale)

// y = scale * x
KERNEL(emutest_scale)(const float* x, float* y, EmutestSpec s) {
  const int i = (int)(blockIdx.x * blockDim.x + threadIdx.x);
  if (i < s.n) y[i] = s.scale * x[i];
}
KERNEL_EXPORT(emutest_scale)
