// Tensor-core operations of sm_80: ldmatrix and mma.m16n8k16, from f16 or bf16 with f32 accumulators. Products are
// summed in f32 in order of k, then added to the accumulator; a GPU's order and rounding inside differ.
#include "check.h"
#include "numbers.h"
#include "state.h"

namespace emu {
namespace {
struct MmaArg {
  float* d;
  const uint32_t* a;
  uint32_t b[2];
};
template <float (*CVT)(uint32_t)>
void mma_all(void* const (&arg)[32], uint32_t mask) {
  if (mask != 0xffffffffu) fail_at(current(), "mma: needs a full warp", current().site);
  float A[16][16], B[16][8], C[16][8];
  for (int l = 0; l < 32; ++l) {
    const MmaArg& m = *static_cast<MmaArg*>(arg[l]);
    const int g = l / 4, t = l % 4 * 2;
    for (int i = 0; i < 4; ++i) {
      const int r = g + (i & 1) * 8, c = t + (i / 2) * 8;
      A[r][c] = CVT(m.a[i] & 0xffff);
      A[r][c + 1] = CVT(m.a[i] >> 16);
    }
    for (int i = 0; i < 2; ++i) {
      B[t + i * 8][g] = CVT(m.b[i] & 0xffff);
      B[t + i * 8 + 1][g] = CVT(m.b[i] >> 16);
    }
    for (int i = 0; i < 4; ++i) C[g + (i / 2) * 8][t + (i & 1)] = m.d[i];
  }
  for (int r = 0; r < 16; ++r) {
    float s[8] = {};
    for (int k = 0; k < 16; ++k)
      for (int c = 0; c < 8; ++c) s[c] += A[r][k] * B[k][c];
    for (int c = 0; c < 8; ++c) C[r][c] += s[c];
  }
  for (int l = 0; l < 32; ++l) {
    const MmaArg& m = *static_cast<MmaArg*>(arg[l]);
    for (int i = 0; i < 4; ++i) m.d[i] = C[l / 4 + (i / 2) * 8][l % 4 * 2 + (i & 1)];
  }
}

struct LdmatrixArg {
  uint32_t* regs;
  const unsigned char* row;
  int matrices;
};
template <bool TRANSPOSED>
void ldmatrix_all(void* const (&arg)[32], uint32_t mask) {
  if (mask != 0xffffffffu) fail_at(current(), "ldmatrix: needs a full warp", current().site);
  for (int l = 0; l < 32; ++l) {
    const LdmatrixArg& a = *static_cast<LdmatrixArg*>(arg[l]);
    for (int i = 0; i < a.matrices; ++i) {  // lane i*8+r holds the address of row r of matrix i
      uint16_t e[2];
      for (int h = 0; h < 2; ++h) {
        const int r = TRANSPOSED ? l % 4 * 2 + h : l / 4, c = TRANSPOSED ? l / 4 : l % 4 * 2 + h;
        memcpy(&e[h], static_cast<LdmatrixArg*>(arg[i * 8 + r])->row + c * 2, 2);
      }
      a.regs[i] = e[0] | (uint32_t)e[1] << 16;
    }
  }
}
}  // namespace

void mma_m16n8k16(float* d, const uint32_t* a, uint32_t b0, uint32_t b1, bool bf16, Site s) {
  MmaArg m{d, a, {b0, b1}};
  warp_collective(bf16 ? mma_all<float_of_bf16> : mma_all<float_of_f16>, &m, 0xffffffffu, "mma.m16n8k16", s);
}

void ldmatrix(uint32_t* regs, const void* row, int matrices, bool transposed, Site s) {
  Fiber& f = current();
  if ((int)(f.tid % 32) < matrices * 8) {  // the other lanes' addresses are not used
    if ((uintptr_t)row % 16) fail_at(f, "misaligned: ldmatrix needs rows at 16-byte addresses", s);
    require_shared(f, row, 16, "ldmatrix row", s);
    if (f.block->launch->checked) check(f, Access::of_op(row, 16, false, s));
  }
  LdmatrixArg m{regs, static_cast<const unsigned char*>(row), matrices};
  warp_collective(transposed ? ldmatrix_all<true> : ldmatrix_all<false>, &m, 0xffffffffu,
                  matrices == 4 ? "ldmatrix.x4" : "ldmatrix.x2", s);
}
}  // namespace emu
