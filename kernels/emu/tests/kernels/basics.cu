// Correct kernels that exercise the emulator: spec structs, collectives, atomics, arithmetic, graph steps.
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

// One step of a replayed graph: x += table[*counter]; the counter goes on.
KERNEL(emutest_step)(float* x, const float* table, const unsigned* counter) { x[threadIdx.x] += table[*counter]; }
KERNEL_EXPORT(emutest_step)
KERNEL(emutest_advance)(unsigned* counter) { *counter += 1; }
KERNEL_EXPORT(emutest_advance)

// out[0] = dynamic shared memory given, told by its last word
KERNEL(emutest_dynamic)(int* out, int words) {
  DYN_SHARED(int, s);
  if (threadIdx.x == 0) {
    s[words - 1] = words;
    out[0] = s[words - 1];
  }
}
KERNEL_EXPORT(emutest_dynamic)

// out[block * 32 + lane]: every collective once. Integers only, so that any order gives the same.
KERNEL(emutest_collectives)(int* out) {
  const unsigned full = 0xffffffffu;
  const int lane = (int)threadIdx.x;
  int v = __shfl_xor_sync(full, lane, 5) + 100 * __shfl_up_sync(full, lane, 3, 8) + 10000 * __shfl_down_sync(full, lane, 2u, 16);
  v += 1000000 * (__shfl_sync(full, lane, 7, 16) & 7);
  v += (int)(__ballot_sync(full, lane % 3 == 0) >> lane & 1) + 2 * __any_sync(full, lane == 9) + 4 * __all_sync(full, lane < 32);
  v += __syncthreads_count(lane < 10) + __syncthreads_or(lane == 40) + __syncthreads_and(lane < 32);
  out[blockIdx.x * 32 + lane] = v;
}
KERNEL_EXPORT(emutest_collectives)

// Every atomic on its own word, by every thread of every block.
KERNEL(emutest_atomics)(int* w, float* f, unsigned long long* q) {
  const int t = (int)(blockIdx.x * blockDim.x + threadIdx.x);
  atomicAdd(&w[0], t);
  atomicMax(&w[1], t);
  atomicMin(&w[2], -t);
  atomicOr(&w[3], 1 << (t % 20));
  atomicAnd(&w[4], ~(1 << (t % 20)));
  atomicXor(&w[5], t);
  atomicSub(&w[6], 1);
  atomicInc(reinterpret_cast<unsigned*>(&w[7]), 9u);
  for (int old = atomicAdd(&w[8], 0), seen; (seen = atomicCAS(&w[8], old, old + 2)) != old;) old = seen;
  atomicExch(&w[9], 77);
  atomicAdd(f, 0.5f);
  atomicAdd(q, 1ull << 33);
}
KERNEL_EXPORT(emutest_atomics)

// Arithmetic that must be rounded exactly: out[op * n + i] as bits.
KERNEL(emutest_exact)(const float* a, const float* b, const float* c, unsigned* out, int n) {
  const int i = (int)(blockIdx.x * blockDim.x + threadIdx.x);
  if (i >= n) return;
  const float x = a[i], y = b[i], z = c[i];
  const float r[] = {__fmaf_rn(x, y, z), __fmul_rn(x, y), __fadd_rn(x, y), __fsub_rn(x, y), __fdiv_rn(x, y), __fsqrt_rn(__uint_as_float(__float_as_uint(x) & 0x7fffffffu)),
                     x * y + z, __uint2float_rn(__float_as_uint(x)), __int2float_rn(__float_as_int(x))};
  for (int k = 0; k < 9; ++k) out[k * n + i] = __float_as_uint(r[k]);
  out[9 * n + i] = __umulhi(__float_as_uint(x), __float_as_uint(y));
  out[10 * n + i] = (unsigned)__float2int_rn(x);
  out[11 * n + i] = __half_as_ushort(__float2half_rn(x)) | (unsigned)__bfloat16_as_ushort(__float2bfloat16_rn(x)) << 16;
}
KERNEL_EXPORT(emutest_exact)

// out[k] = block that ran k-th
KERNEL(emutest_order)(unsigned* out, unsigned* counter) { out[atomicAdd(counter, 1u)] = blockIdx.x; }
KERNEL_EXPORT(emutest_order)
