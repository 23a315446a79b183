// Linear layer with everything around it fused: y[M,N] = epilogue(x[M,K] . w[N,K]^T), T in {f32, f16, bf16}. Writes y, z
// and stats with "=". The epilogue, layer norm included, is in linear.cuh.
//
// linear_fwd_<dtype>_<BM>x<BN>: a block computes BM rows and BN columns of y. f16, bf16: tensor cores (mma.m16n8k16).
// f32: FMA, never TF32, 4x4 sums per thread. k is summed in `splits` chunks of k_per_split, in blocks of their own where
// gridDim.z == splits, in one where gridDim.z == 1 (product.cuh).
//
// PRECOND: grid (ceil(n/BN), ceil(m/BM), 1 or splits), grid.y and grid.z <= 65535; block Tile::THREADS; dynamic shared memory
//          SHARED<Tile> bytes (above 48 KiB the host must opt in); splits * k_per_split >= k, (splits - 1) * k_per_split < k;
//          splits > 1: k_per_split % 64 == 0; gridDim.z > 1: partial: [splits, m, n], counters: [grid.y * grid.x], all zero
//          and left so.
// Any m, n, k >= 1 and any pointer alignment in the 64x64 tile: rows that are whole 16-byte blocks are copied as such, others
// by element. The larger tiles want rows of x and w in whole 16-byte blocks.
#include "linear.cuh"
#include "product.cuh"

namespace {

using dev::Sums;
using dev::Tile;

template <class Tile> constexpr int SHARED = Tile::RING + Tile::BM * static_cast<int>(sizeof(dev::LinearRow));

// x: [m, k], w: [n, k], partial: [splits, m, n] f32.
template <class Tile, class T>
__device__ __forceinline__ void linear(const T* __restrict__ x, const T* __restrict__ w, const LinearOut<T>& o, float* partial,
                                       unsigned* counters, const LinearSpec& s) {
  static_assert(SHARED<Tile> == 256 * (Tile::BM + Tile::BN) + 12 * Tile::BM, "the host launches with this size");
  dev::grid_begin();
  DYN_SHARED(unsigned char, smem);
  constexpr int V = dev::VEC<T>;
  const int row0 = blockIdx.y * Tile::BM, col0 = blockIdx.x * Tile::BN;
  const bool spread = gridDim.z > 1;
  const int k_begin = blockIdx.z * s.k_per_split, k_end = spread ? min(s.k, k_begin + s.k_per_split) : s.k;
  auto* ring = reinterpret_cast<T*>(smem);
  auto* known = reinterpret_cast<dev::LinearRow*>(smem + Tile::RING);
  auto know = [&] {
    for (int r = threadIdx.x; r < Tile::BM; r += Tile::THREADS)
      known[r] = row0 + r < s.m ? dev::linear_row(o, s, row0 + r) : dev::LinearRow{};
  };
  Sums<Tile> sums = {};
  const int tiles = (k_end - k_begin + Tile::BK - 1) / Tile::BK, per_chunk = s.k_per_split / Tile::BK;
  if (!Tile::ANY || (s.k % V == 0 && dev::aligned16(x, w)))
    dev::sum_chunks<Tile>(sums, ring, tiles, per_chunk, [&](T* xs, T* ws, int t) {
      dev::load_tile<Tile, Tile::BM, true>(xs, x, row0, s.m, k_begin + t * Tile::BK, s.k);
      dev::load_tile<Tile, Tile::BN, true>(ws, w, col0, s.n, k_begin + t * Tile::BK, s.k);
    }, know);
  else
    dev::sum_chunks<Tile>(sums, ring, tiles, per_chunk, [&](T* xs, T* ws, int t) {
      dev::load_tile<Tile, Tile::BM, false>(xs, x, row0, s.m, k_begin + t * Tile::BK, s.k);
      dev::load_tile<Tile, Tile::BN, false>(ws, w, col0, s.n, k_begin + t * Tile::BK, s.k);
    }, know);
  const bool whole = dev::linear_whole(o, s);
  dev::hand_over<Tile>(sums, reinterpret_cast<float*>(smem), s.m, s.n, row0, col0, spread, s.splits, partial, counters,
                       [&](float(&v)[V], int r, int row, int col) { dev::linear_finish(v, o, s, known[r], row, col, whole); });
}

}  // namespace

// x: [m, k], w: [n, k]; the rest as in LinearOut and linear().
#define LINEAR_EXPORT(dtype, TYPE, BM, BN, WM, WN, STAGES)                                                                     \
  KERNEL(__launch_bounds__((Tile<TYPE, BM, BN, WM, WN, STAGES>::THREADS)) linear_fwd_##dtype##_##BM##x##BN)                    \
  (const TYPE* x, const TYPE* w, const TYPE* bias, const TYPE* sums, const float2* in_stats, const unsigned* counter,          \
   const unsigned* rows, const TYPE* res, const TYPE* gate, const TYPE* scale, TYPE* y, TYPE* z, float2* stats,                \
   float* partial, unsigned* counters, LinearSpec s) {                                                                         \
    const LinearOut<TYPE> o = {bias, sums, in_stats, counter, rows, res, gate, scale, y, z, stats};                            \
    linear<Tile<TYPE, BM, BN, WM, WN, STAGES>>(x, w, o, partial, counters, s);                                                 \
  }                                                                                                                            \
  KERNEL_EXPORT(linear_fwd_##dtype##_##BM##x##BN)

#define LINEAR_TILES(dtype, TYPE)                  \
  LINEAR_EXPORT(dtype, TYPE, 64, 64, 32, 32, 4)    \
  LINEAR_EXPORT(dtype, TYPE, 64, 128, 32, 64, 4)   \
  LINEAR_EXPORT(dtype, TYPE, 128, 128, 64, 32, 4)

LINEAR_EXPORT(f32, float, 64, 64, 64, 64, 4)
LINEAR_TILES(f16, __half)
LINEAR_TILES(bf16, __nv_bfloat16)
