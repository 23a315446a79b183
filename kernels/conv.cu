// Convolutions as implicit matrix products: y = epilogue(conv(x), w) with "=", T in {f32, f16, bf16}. Geometry and epilogue are
// in conv.cuh, the product in product.cuh.
//
// conv_fwd_<dtype>_<BM>x<BN>: a block computes BM outputs of BN channels. A row of the first operand is what an output reads,
// in the order (tap row, tap column, channel) that rows of w have; it is gathered as the k-tiles are loaded.
//
// PRECOND: grid (ceil(n/BN), ceil(m/BM), groups or chunks), grid.y and grid.z <= 65535: with several groups z is the group
//          and splits is 1, else z is 1 or the number of chunks of k as in product.cuh. block Tile::THREADS; dynamic shared
//          memory Tile::RING bytes (above 48 KiB the host must opt in); splits * k_per_split >= k, (splits - 1) * k_per_split
//          < k; splits > 1: k_per_split % 64 == 0; chunks apart: partial: [splits, m, n], counters: [grid.y * grid.x], all zero
//          and left so. All taps of the kernel are read in their order: first_y = first_x = 0, every_y = every_x = 1.
// Any sizes >= 1 in the 64x64 tile. `whole` says that the channels of each input and of a group are whole 16-byte blocks and all
// pointers aligned; the larger tiles want that.
#include "conv.cuh"
#include "product.cuh"

namespace {

using dev::Sums;
using dev::Tile;

// w: [groups n, k], partial: [splits, m, n] f32.
template <class Tile, class T>
__device__ __forceinline__ void conv(const ConvIn<T>& in, const T* __restrict__ w, const ConvOut<T>& o, float* partial,
                                     unsigned* counters, const ConvGeometry& s) {
  dev::grid_begin();
  DYN_SHARED(unsigned char, smem);
  constexpr int V = dev::VEC<T>;
  const int row0 = blockIdx.y * Tile::BM, col0 = blockIdx.x * Tile::BN, group = s.groups > 1 ? blockIdx.z : 0;
  const bool spread = s.groups == 1 && gridDim.z > 1;
  const int k_begin = spread ? blockIdx.z * s.k_per_split : 0, k_end = spread ? min(s.k, k_begin + s.k_per_split) : s.k;
  auto* ring = reinterpret_cast<T*>(smem);
  w += static_cast<size_t>(group) * s.n * s.k;
  dev::ConvGather<T, dev::CHUNKS, Tile::BM, Tile::THREADS> gather(s, row0, k_begin);
  const auto at = [](T* xs) { return [xs](int row, int chunk) { return xs + dev::tile_at<T>(row, chunk); }; };
  Sums<Tile> sums = {};
  const int tiles = (k_end - k_begin + Tile::BK - 1) / Tile::BK, per_chunk = s.k_per_split / Tile::BK;
  const auto nothing = [] {};
  if (!Tile::ANY || s.whole)
    dev::sum_chunks<Tile>(sums, ring, tiles, per_chunk, [&](T* xs, T* ws, int t) {
      gather.template load<true>(in, s, group * s.channels, at(xs));
      dev::load_tile<Tile, Tile::BN, true>(ws, w, col0, s.n, k_begin + t * Tile::BK, s.k);
    }, nothing);
  else
    dev::sum_chunks<Tile>(sums, ring, tiles, per_chunk, [&](T* xs, T* ws, int t) {
      gather.template load<false>(in, s, group * s.channels, at(xs));
      dev::load_tile<Tile, Tile::BN, false>(ws, w, col0, s.n, k_begin + t * Tile::BK, s.k);
    }, nothing);
  const bool whole = dev::conv_whole(o, s);
  dev::hand_over<Tile>(sums, reinterpret_cast<float*>(smem), s.m, s.n, row0, col0, spread, s.splits, partial, counters,
                       [&](float(&v)[V], int, int row, int col) { dev::conv_finish(v, o, s, group, row, col, whole); });
}

}  // namespace

// x0..x5: as in ConvIn; w: [groups n, k]; the rest as in ConvOut and conv().
#define CONV_EXPORT(dtype, T, BM, BN, WM, WN, STAGES)                                                                          \
  KERNEL(__launch_bounds__((Tile<T, BM, BN, WM, WN, STAGES>::THREADS)) conv_fwd_##dtype##_##BM##x##BN)                         \
  (const T* x0, const T* x1, const T* x2, const T* x3, const T* x4, const T* x5, const T* w, const T* bias, const T* res, T* y, \
   float* partial, unsigned* counters, ConvGeometry s) {                                                                           \
    conv<Tile<T, BM, BN, WM, WN, STAGES>, T>({x0, x1, x2, x3, x4, x5}, w, {bias, res, y}, partial, counters, s);               \
  }                                                                                                                            \
  KERNEL_EXPORT(conv_fwd_##dtype##_##BM##x##BN)

#define CONV_TILES(dtype, T)                  \
  CONV_EXPORT(dtype, T, 64, 64, 32, 32, 4)    \
  CONV_EXPORT(dtype, T, 128, 64, 64, 32, 4)   \
  CONV_EXPORT(dtype, T, 128, 128, 64, 32, 4)

CONV_EXPORT(f32, float, 64, 64, 64, 64, 4)
CONV_TILES(f16, __half)
CONV_TILES(bf16, __nv_bfloat16)
