// Products in square tiles for backward passes: 64 x 64 of a b, whose operands lie along the depth or across it. f16, bf16: tensor
// cores (mma.m16n8k16), four warps of 32 x 32; f32: FMA, 8 x 4 sums per thread.
#pragma once
#include "async.cuh"
#include "mma.cuh"

namespace dev {

constexpr int TILE = 64, DEPTH = 32, TILE_THREADS = 128;

// to[LINES, PER_LINE + PAD] = from[line0.., at0..), zero past `lines` and past `per_line`. from: lines `stride` apart.
// `whole`: stride, per_line and from are multiples of 16 bytes; the copy is asynchronous.
template <int LINES, int PER_LINE, int PAD, class T>
__device__ __forceinline__ void load_lines(T* to, const T* __restrict__ from, int line0, int lines, int at0, int per_line, int stride,
                                           bool whole) {
  constexpr int V = VEC<T>, CHUNKS = PER_LINE / V;
#pragma unroll
  for (int i = 0; i < LINES * CHUNKS / TILE_THREADS; ++i) {
    const int c = threadIdx.x + i * TILE_THREADS, line = c / CHUNKS, at = c % CHUNKS * V;
    const T* src = from + static_cast<size_t>(line0 + line) * stride + at0 + at;
    T* dst = to + line * (PER_LINE + PAD) + at;
    if (whole) {
      const bool in = line0 + line < lines && at0 + at < per_line;
      cp_async16(dst, in ? src : from, in ? 16 : 0);
    } else {
#pragma unroll
      for (int e = 0; e < V; ++e) dst[e] = line0 + line < lines && at0 + at + e < per_line ? src[e] : from_f32<T>(0.f);
    }
  }
}

// Sums of one warp, 32 x 32 as mma tiles of 16 x 8. Rows of tiles are an odd number of 16-byte chunks: eight rows of one
// chunk (an ldmatrix) fall on different banks.
template <class T> struct SquareSums {
  static constexpr int PAD = 8;
  float d[2][4][4] = {};

  // += a b; a: [TILE, DEPTH], or with TRANSPOSED [DEPTH, TILE]; b: [DEPTH, TILE].
  template <bool TRANSPOSED> __device__ __forceinline__ void multiply(const T* a, const T* b) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int k = 0; k < DEPTH; k += 16) {
      uint32_t fa[2][4], fb[2][4];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int row = row0() + i * 16;
        if (TRANSPOSED)
          ldmatrix_x4_trans(fa[i], a + (k + lane / 16 * 8 + lane % 8) * (TILE + PAD) + row + lane / 8 % 2 * 8);
        else
          ldmatrix_x4(fa[i], a + (row + lane % 16) * (DEPTH + PAD) + k + lane / 16 * 8);
      }
#pragma unroll
      for (int j = 0; j < 2; ++j)
        ldmatrix_x4_trans(fb[j], b + (k + lane % 16) * (TILE + PAD) + col0() + j * 16 + lane / 16 * 8);
#pragma unroll
      for (int i = 0; i < 2; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j) mma<T>(d[i][j], fa[i], fb[j / 2][j % 2 * 2], fb[j / 2][j % 2 * 2 + 1]);
    }
  }
  template <class F> __device__ __forceinline__ void each(F&& store) const {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int i = 0; i < 2; ++i)
#pragma unroll
      for (int j = 0; j < 4; ++j)
#pragma unroll
        for (int e = 0; e < 4; ++e) store(row0() + i * 16 + e / 2 * 8 + lane / 4, col0() + j * 8 + lane % 4 * 2 + e % 2, d[i][j][e]);
  }
  static __device__ __forceinline__ int row0() { return threadIdx.x / 64 * 32; }
  static __device__ __forceinline__ int col0() { return threadIdx.x / 32 % 2 * 32; }
};
// Sums of one thread: rows ty + 8 i, columns tx + 16 j.
template <> struct SquareSums<float> {
  static constexpr int PAD = 4;
  float d[8][4] = {};

  template <bool TRANSPOSED> __device__ __forceinline__ void multiply(const float* a, const float* b) {
    const int tx = threadIdx.x % 16, ty = threadIdx.x / 16;
#pragma unroll 4
    for (int k = 0; k < DEPTH; ++k) {
      float u[8], v[4];
#pragma unroll
      for (int i = 0; i < 8; ++i) u[i] = TRANSPOSED ? a[k * (TILE + PAD) + ty + 8 * i] : a[(ty + 8 * i) * (DEPTH + PAD) + k];
#pragma unroll
      for (int j = 0; j < 4; ++j) v[j] = b[k * (TILE + PAD) + tx + 16 * j];
#pragma unroll
      for (int i = 0; i < 8; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j) d[i][j] = fmaf(u[i], v[j], d[i][j]);
    }
  }
  template <class F> __device__ __forceinline__ void each(F&& store) const {
    const int tx = threadIdx.x % 16, ty = threadIdx.x / 16;
#pragma unroll
    for (int i = 0; i < 8; ++i)
#pragma unroll
      for (int j = 0; j < 4; ++j) store(ty + 8 * i, tx + 16 * j, d[i][j]);
  }
};

// The operands of a step along the depth, twice: one is read while the next is on its way. A: numbers of the first operand's tile.
template <class T, bool TRANSPOSED> struct SquareTiles {
  static constexpr int PAD = SquareSums<T>::PAD;
  static constexpr int A = TRANSPOSED ? DEPTH * (TILE + PAD) : TILE * (DEPTH + PAD), B = DEPTH * (TILE + PAD);
  T a[2][A], b[2][B];
};

// sums += a b over `steps` steps of the depth. load(a, b, t) starts the copies of step t and is called for 0, 1, .. in order.
// a: [TILE, DEPTH + PAD], or with TRANSPOSED [DEPTH, TILE + PAD]; b: [DEPTH, TILE + PAD].
template <bool TRANSPOSED, class T, class L>
__device__ __forceinline__ void square_product(SquareSums<T>& sums, SquareTiles<T, TRANSPOSED>& tiles, int steps, L&& load) {
  if (steps > 0) load(tiles.a[0], tiles.b[0], 0);
  cp_async_commit();
  for (int t = 0; t < steps; ++t) {
    cp_async_wait<0>();
    __syncthreads();  // tiles t are in for all; all have read tiles t - 1, whose place the next take
    if (t + 1 < steps) load(tiles.a[(t + 1) % 2], tiles.b[(t + 1) % 2], t + 1);
    cp_async_commit();
    sums.template multiply<TRANSPOSED>(tiles.a[t % 2], tiles.b[t % 2]);
  }
}

}  // namespace dev
