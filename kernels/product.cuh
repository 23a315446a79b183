// Products of the rows of two operands in tiles: x[M, K] . w[N, K]^T through a ring of k-tiles in shared memory, sums in f32.
// f16, bf16: tensor cores (mma.m16n8k16). f32: FMA, never TF32, 4x4 sums per thread.
//
// k is summed in chunks, each from zero, and the chunk sums are added in their order, whatever M and N and the tile are. Where
// each chunk has a block of its own, it leaves its sums in partial[z], and the block of a tile that arrives last adds them
// up; where one block does all chunks it adds them likewise: the same bits.
#pragma once
#include "async.cuh"
#include "mma.cuh"

namespace dev {

constexpr int CHUNKS = 4;  // 16-byte chunks in a row of a k-tile: 32 (16-bit) or 16 (f32) values of k

// A block's tile [BM, BN] as warps of [WM, WN], with STAGES k-tiles in shared memory; f32: threads of 4x4.
template <class Type, int ROWS, int COLS, int WARP_ROWS, int WARP_COLS, int DEPTH> struct Tile {
  using T = Type;
  static constexpr bool F32 = sizeof(T) == 4;
  static constexpr bool ANY = ROWS == 64 && COLS == 64;  // takes any k and alignment
  static constexpr int BM = ROWS, BN = COLS, WM = WARP_ROWS, WN = WARP_COLS, STAGES = DEPTH;
  static constexpr int THREADS = F32 ? BM * BN / 16 : BM / WM * (BN / WN) * 32;
  static constexpr int BK = CHUNKS * VEC<T>;
  static constexpr int RING = STAGES * (BM + BN) * CHUNKS * 16;
  // Sums pass through shared memory 64 rows at a time; the row stride in floats has no bank conflicts for the way each
  // type writes them.
  static constexpr int PASS = 64;
  static constexpr int STAGED = BN + (F32 ? 16 : 8);
  static_assert(RING == 256 * (BM + BN), "the host launches with this size");
  static_assert(PASS * STAGED * 4 <= RING, "the staged sums fit");
  static_assert(BM % PASS == 0 && BN % 64 == 0 && PASS % WM == 0, "whole passes, of whole chunks of a row");
};

// Offset (in elements) of a 16-byte chunk in a k-tile. A row is half a line of banks; the exclusive or makes any eight
// consecutive rows of one chunk, and any two rows whole, fall on different banks.
template <class T> __device__ __forceinline__ int tile_at(int row, int chunk) {
  return (row * CHUNKS + (chunk ^ ((row >> 1) & 3))) * VEC<T>;
}
// Offset of a staged sum; the exclusive or keeps the two 16-byte reads of an eight-column chunk on different banks.
template <class Tile> __device__ __forceinline__ int staged_at(int row, int col) {
  return row * Tile::STAGED + ((((col >> 2) ^ (col >> 5)) << 2) | (col & 3));
}

// tile[ROWS, BK] = src[row0.., k0..]; zero past `rows` and past k. src: [rows, k].
// WHOLE: k and src are multiples of 16 bytes; the copy is asynchronous.
template <class Tile, int ROWS, bool WHOLE, class T>
__device__ __forceinline__ void load_tile(T* tile, const T* __restrict__ src, int row0, int rows, int k0, int k) {
#pragma unroll
  for (int i = 0; i < ROWS * CHUNKS / Tile::THREADS; ++i) {
    const int c = threadIdx.x + i * Tile::THREADS, r = c / CHUNKS, q = c % CHUNKS, kk = k0 + q * VEC<T>;
    const T* from = src + static_cast<size_t>(row0 + r) * k + kk;
    T* to = tile + tile_at<T>(r, q);
    if (WHOLE) {
      const bool in = row0 + r < rows && kk < k;
      cp_async16(to, in ? from : src, in ? 16 : 0);
    } else {
      float v[VEC<T>];
#pragma unroll
      for (int e = 0; e < VEC<T>; ++e) v[e] = row0 + r < rows && kk + e < k ? to_f32(from[e]) : 0.f;
      store_vec(to, v);
    }
  }
}

// Sums of one warp of the 16-bit kernels: [WM, WN] as mma tiles of 16x8. Sums of one thread in f32: rows ty + (BM / 4) i,
// columns tx + (BN / 4) j.
template <class Tile, bool F32 = Tile::F32> struct Sums {
  static constexpr int I = Tile::WM / 16, J = Tile::WN / 8;
  float d[I][J][4];
  __device__ __forceinline__ void add(const Sums& o) {
#pragma unroll
    for (int i = 0; i < I; ++i)
#pragma unroll
      for (int j = 0; j < J; ++j)
#pragma unroll
        for (int e = 0; e < 4; ++e) d[i][j][e] += o.d[i][j][e];
  }
  // += xs[BM, BK] . ws[BN, BK]^T
  template <class T> __device__ __forceinline__ void multiply(const T* xs, const T* ws) {
    const int lane = threadIdx.x % 32, wm = row0(), wn = col0();
    uint32_t a[2][I][4], b[2][J / 2][4];
#pragma unroll
    for (int s = 0; s < 2; ++s) {
#pragma unroll
      for (int i = 0; i < I; ++i) ldmatrix_x4(a[s][i], xs + tile_at<T>(wm + i * 16 + lane % 16, 2 * s + lane / 16));
#pragma unroll
      for (int j = 0; j < J / 2; ++j)
        ldmatrix_x4(b[s][j], ws + tile_at<T>(wn + j * 16 + lane % 8 + lane / 16 * 8, 2 * s + lane / 8 % 2));
    }
#pragma unroll
    for (int s = 0; s < 2; ++s)
#pragma unroll
      for (int i = 0; i < I; ++i)
#pragma unroll
        for (int j = 0; j < J; ++j) mma<T>(d[i][j], a[s][i], b[s][j / 2][j % 2 * 2], b[s][j / 2][j % 2 * 2 + 1]);
  }
  // staged[PASS, BN] = the block's sums from row `first` on.
  __device__ __forceinline__ void stage(float* staged, int first) const {
    const int lane = threadIdx.x % 32, wm = row0() - first, wn = col0();
    if (wm < 0 || wm >= Tile::PASS) return;
#pragma unroll
    for (int i = 0; i < I; ++i)
#pragma unroll
      for (int j = 0; j < J; ++j)
#pragma unroll
        for (int h = 0; h < 2; ++h)
          *reinterpret_cast<float2*>(staged + staged_at<Tile>(wm + i * 16 + h * 8 + lane / 4, wn + j * 8 + lane % 4 * 2)) =
              make_float2(d[i][j][h * 2], d[i][j][h * 2 + 1]);
  }
  static __device__ __forceinline__ int row0() { return threadIdx.x / 32 / (Tile::BN / Tile::WN) * Tile::WM; }
  static __device__ __forceinline__ int col0() { return threadIdx.x / 32 % (Tile::BN / Tile::WN) * Tile::WN; }
};
template <class Tile> struct Sums<Tile, true> {
  static constexpr int DX = Tile::BN / 4, DY = Tile::BM / 4;
  float d[4][4];
  __device__ __forceinline__ void add(const Sums& o) {
#pragma unroll
    for (int i = 0; i < 4; ++i)
#pragma unroll
      for (int j = 0; j < 4; ++j) d[i][j] += o.d[i][j];
  }
  __device__ __forceinline__ void multiply(const float* xs, const float* ws) {
    const int tx = threadIdx.x % DX, ty = threadIdx.x / DX;
#pragma unroll
    for (int q = 0; q < CHUNKS; ++q) {
      float a[4][4], b[4][4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        load_vec(xs + tile_at<float>(ty + DY * i, q), a[i]);
        load_vec(ws + tile_at<float>(tx + DX * i, q), b[i]);
      }
#pragma unroll
      for (int e = 0; e < 4; ++e)
#pragma unroll
        for (int i = 0; i < 4; ++i)
#pragma unroll
          for (int j = 0; j < 4; ++j) d[i][j] = fmaf(a[i][e], b[j][e], d[i][j]);
    }
  }
  __device__ __forceinline__ void stage(float* staged, int first) const {
    const int tx = threadIdx.x % DX, ty = threadIdx.x / DX - first;
#pragma unroll
    for (int i = 0; i < 4; ++i)
#pragma unroll
      for (int j = 0; j < 4; ++j) staged[staged_at<Tile>(ty + DY * i, tx + DX * j)] = d[i][j];
  }
};

// sums = the product of `tiles` k-tiles through a ring of STAGES of them, chunk by chunk of `per_chunk` tiles. load(xs, ws, t)
// starts the copies of k-tile t and is called for 0, 1, .. in order. `meanwhile` runs while the first tiles are on their way;
// what it leaves in shared memory is there for all afterwards.
template <class Tile, class T, class L, class F>
__device__ __forceinline__ void sum_chunks(Sums<Tile>& sums, T* ring, int tiles, int per_chunk, L&& load, F&& meanwhile) {
  constexpr int X = Tile::BM * Tile::BK, STAGE = X + Tile::BN * Tile::BK, STAGES = Tile::STAGES;
#pragma unroll
  for (int t = 0; t < STAGES - 1; ++t) {
    if (t < tiles) load(ring + t * STAGE, ring + t * STAGE + X, t);
    cp_async_commit();
  }
  meanwhile();
  Sums<Tile> chunk = {};
  for (int t = 0, left = per_chunk; t < tiles; ++t) {
    cp_async_wait<STAGES - 2>();
    __syncthreads();  // tile t is in for all; all have read tile t - 1, whose place the next load takes
    if (const int next = t + STAGES - 1; next < tiles) load(ring + next % STAGES * STAGE, ring + next % STAGES * STAGE + X, next);
    cp_async_commit();
    const T* stage = ring + t % STAGES * STAGE;
    chunk.multiply(stage, stage + X);
    if (--left == 0) {
      sums.add(chunk);
      chunk = {};
      left = per_chunk;
    }
  }
  sums.add(chunk);
}

// Waits for the other chunks' blocks of this tile: true in the block that arrived last, for which partial is complete.
__device__ __forceinline__ bool last_of_tile(unsigned* counters, int splits) {
  __shared__ unsigned before;
  unsigned* counter = counters + blockIdx.y * gridDim.x + blockIdx.x;
  __threadfence();  // this thread's part of partial, before the count
  __syncthreads();
  if (threadIdx.x == 0) {
    before = atomicAdd(counter, 1u);
    if (before + 1 == static_cast<unsigned>(splits)) *counter = 0;  // for the next launch
  }
  __syncthreads();
  __threadfence();  // the others' parts, after the count
  return before + 1 == static_cast<unsigned>(splits);
}

// v[0..VEC) = from[0..count)
template <int V> __device__ __forceinline__ void load_sums(const float* from, bool whole, int count, float (&v)[V]) {
  if (whole) {
#pragma unroll
    for (int e = 0; e < V; e += 4) {
      const float4 u = *reinterpret_cast<const float4*>(from + e);
      v[e] = u.x;
      v[e + 1] = u.y;
      v[e + 2] = u.z;
      v[e + 3] = u.w;
    }
  } else {
#pragma unroll
    for (int e = 0; e < V; ++e) v[e] = e < count ? from[e] : 0.f;
  }
}

// to[0..count) = v[0..VEC)
template <int V> __device__ __forceinline__ void store_sums(float* to, bool whole, int count, const float (&v)[V]) {
  if (whole) {
#pragma unroll
    for (int e = 0; e < V; e += 4) *reinterpret_cast<float4*>(to + e) = make_float4(v[e], v[e + 1], v[e + 2], v[e + 3]);
  } else {
#pragma unroll
    for (int e = 0; e < V; ++e)
      if (e < count) to[e] = v[e];
  }
}

// Hands the block's sums over: finish(v, r, row, col) for VEC columns from `col` on of row `row`, row r of the tile, in groups of
// lanes as the lines of a row lie. With `spread` the block that arrives last at the tile adds up what all left in partial.
// partial: [splits, m, n] f32. Called by all threads, whatever rows and columns there are.
template <class Tile, class F>
__device__ __forceinline__ void hand_over(const Sums<Tile>& sums, float* staged, int m, int n, int row0, int col0, bool spread,
                                          int splits, float* partial, unsigned* counters, F&& finish) {
  constexpr int V = VEC<typename Tile::T>, PER_ROW = Tile::BN / V, STEPS = Tile::PASS * PER_ROW / Tile::THREADS;
  const bool whole_sums = n % V == 0 && aligned16(partial);
#pragma unroll
  for (int first = 0; first < Tile::BM; first += Tile::PASS) {
    __syncthreads();  // the k-tiles, or the sums of the pass before, have been read
    sums.stage(staged, first);
    __syncthreads();
#pragma unroll
    for (int i = 0; i < STEPS; ++i) {
      const int c = threadIdx.x + i * Tile::THREADS, r = c / PER_ROW, q = c % PER_ROW * V, row = row0 + first + r, col = col0 + q;
      float v[V];
#pragma unroll
      for (int e = 0; e < V; e += 4) {
        const float4 u = *reinterpret_cast<const float4*>(staged + staged_at<Tile>(r, q + e));
        v[e] = u.x;
        v[e + 1] = u.y;
        v[e + 2] = u.z;
        v[e + 3] = u.w;
      }
      if (!spread) {
        finish(v, first + r, row, col);
      } else if (row < m && col < n) {
        float* to = partial + (static_cast<size_t>(blockIdx.z) * m + row) * n + col;
        store_sums(to, whole_sums, n - col, v);
      }
    }
  }
  if (!spread || !last_of_tile(counters, splits)) return;
  const size_t plane = static_cast<size_t>(m) * n;
#pragma unroll 1
  for (int c = threadIdx.x; c < Tile::BM * PER_ROW; c += Tile::THREADS) {
    const int r = c / PER_ROW, row = row0 + r, col = col0 + c % PER_ROW * V;
    float v[V] = {};
    if (row < m && col < n) {
      const float* from = partial + static_cast<size_t>(row) * n + col;
      for (int z = 0; z < splits; ++z, from += plane) {
        float u[V];
        load_sums(from, whole_sums, n - col, u);
#pragma unroll
        for (int e = 0; e < V; ++e) v[e] += u[e];
      }
    }
    finish(v, r, row, col);
  }
}

}  // namespace dev
