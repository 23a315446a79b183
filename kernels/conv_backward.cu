// Gradients of convolutions, and transposed convolutions: what a convolution's input gets from its outputs. T in {f32, f16, bf16},
// sums in f32. Geometry and epilogue are in conv.cuh, the products in square.cuh.
//
//   conv_dx_fwd_<dtype>  "="  y = epilogue(sum over taps and channels of x w), w: [groups channels, kernel_taps, row_len]: of a
//                             transposed convolution the outputs of one phase; of dx the same with dy as x
//   conv_dw_bwd_<dtype>  "="  dw[z][g n + i, tap, c] = the sum over outputs z per_split.. of dy[output, g n + i] x[its tap, c]
//                             in f32: rows n, columns k = (tap, channel), depth m
//
// A block computes 64 x 64. One block does its depth in order, so the bits depend on nothing but the operands.
//
// PRECOND conv_dx: grid (ceil(n/64), ceil(m/64), groups), grid.y and grid.z <= 65535, block 128. k may be 0.
// PRECOND conv_dw: grid (ceil(k/64), ceil(n/64), groups splits): z = group splits + split; block 128. k_per_split outputs to a
//         split; all taps are read in their order.
// Any sizes and any pointer alignment; `whole` says that the channels of x and of each input are whole 16-byte blocks and aligned.
#include "conv.cuh"
#include "square.cuh"

namespace {

using dev::DEPTH;
using dev::TILE;
constexpr int THREADS = dev::TILE_THREADS;

// The rows (tap, channel) of w that depth t DEPTH.. of a phase is, 64 of their columns: to[DEPTH, TILE + PAD].
template <int PAD, class T>
__device__ __forceinline__ void load_taps(T* to, const T* __restrict__ w, const ConvGeometry& s, int k0, int col0, bool whole) {
  constexpr int V = dev::VEC<T>, CHUNKS = TILE / V;
#pragma unroll
  for (int i = 0; i < DEPTH * CHUNKS / THREADS; ++i) {
    const int c = threadIdx.x + i * THREADS, line = c / CHUNKS, at = c % CHUNKS * V, k = k0 + line;
    const int channel = k % s.channels, tap = k / s.channels;
    const int index = (s.first_y + tap / max(s.taps_x, 1) * s.every_y) * s.kernel_x + s.first_x + tap % max(s.taps_x, 1) * s.every_x;
    const T* src = w + (static_cast<size_t>(channel) * s.kernel_taps + index) * s.row_len + col0 + at;
    T* dst = to + line * (TILE + PAD) + at;
    if (whole) {
      const bool in = k < s.k && col0 + at < s.n;
      dev::cp_async16(dst, in ? src : w, in ? 16 : 0);
    } else {
#pragma unroll
      for (int e = 0; e < V; ++e) dst[e] = k < s.k && col0 + at + e < s.n ? src[e] : dev::from_f32<T>(0.f);
    }
  }
}

// x: [.., groups channels], w: [groups channels, kernel_taps, row_len].
template <class T>
__device__ __forceinline__ void conv_dx(const T* __restrict__ x, const T* __restrict__ w, const ConvOut<T>& o, const ConvGeometry& s) {
  dev::grid_begin();
  __shared__ __align__(16) dev::SquareTiles<T, false> tiles;
  constexpr int PAD = dev::SquareSums<T>::PAD;
  const int row0 = blockIdx.y * TILE, col0 = blockIdx.x * TILE, group = blockIdx.z;
  const ConvIn<T> in = {x, nullptr, nullptr, nullptr, nullptr, nullptr};
  w += static_cast<size_t>(group) * s.channels * s.kernel_taps * s.row_len;
  const bool whole_w = s.row_len % dev::VEC<T> == 0 && s.n % dev::VEC<T> == 0 && dev::aligned16(w);
  dev::ConvGather<T, DEPTH / dev::VEC<T>, TILE, THREADS> gather(s, row0, 0);
  dev::SquareSums<T> sums;
  dev::square_product<false>(sums, tiles, (s.k + DEPTH - 1) / DEPTH, [&](T* as, T* bs, int t) {
    const auto at = [=](int row, int chunk) { return as + row * (DEPTH + PAD) + chunk * dev::VEC<T>; };
    if (s.whole)
      gather.template load<true>(in, s, group * s.channels, at);
    else
      gather.template load<false>(in, s, group * s.channels, at);
    load_taps<PAD>(bs, w, s, t * DEPTH, col0, whole_w);
  });
  sums.each([&](int r, int c, float sum) {
    if (row0 + r < s.m && col0 + c < s.n) dev::conv_finish_one(sum, o, s, group * s.n + col0 + c, row0 + r);
  });
}

// What outputs m0.. of depth read for 64 columns (tap, channel) from col0 on: to[DEPTH, TILE + PAD].
template <int PAD, class T>
__device__ __forceinline__ void load_reads(T* to, const ConvIn<T>& in, const ConvGeometry& s, int m0, int m_end, int col0, int group) {
  constexpr int V = dev::VEC<T>, CHUNKS = TILE / V;
  const int at = static_cast<int>(threadIdx.x) % CHUNKS * V;
#pragma unroll
  for (int i = 0; i < DEPTH * CHUNKS / THREADS; ++i) {
    const int line = (static_cast<int>(threadIdx.x) + i * THREADS) / CHUNKS;
    const dev::ConvRow row = m0 + line < m_end ? dev::conv_row(s, m0 + line) : dev::ConvRow{-1, 0, 0};
    T* dst = to + line * (TILE + PAD) + at;
    if (s.whole) {
      const int k = col0 + at, tap = k / s.channels;
      const dev::ConvChannel<T> from = dev::conv_channel(in, s, group * s.channels + k % s.channels);
      const int pixel = k < s.k ? dev::conv_pixel(s, row, tap / s.taps_x, tap % s.taps_x) : -1;
      dev::cp_async16(dst, pixel < 0 ? in.x0 : from.x + static_cast<size_t>(pixel) * from.width, pixel < 0 ? 0 : 16);
    } else {
#pragma unroll
      for (int e = 0; e < V; ++e) {
        const int k = col0 + at + e, tap = k / s.channels;
        const dev::ConvChannel<T> from = dev::conv_channel(in, s, group * s.channels + k % s.channels);
        const int pixel = k < s.k ? dev::conv_pixel(s, row, tap / s.taps_x, tap % s.taps_x) : -1;
        dst[e] = pixel < 0 ? dev::from_f32<T>(0.f) : from.x[static_cast<size_t>(pixel) * from.width];
      }
    }
  }
}

// dy: [m, groups n], dw: [splits, groups n, k].
template <class T>
__device__ __forceinline__ void conv_dw(const ConvIn<T>& in, const T* __restrict__ dy, float* __restrict__ dw, const ConvGeometry& s) {
  dev::grid_begin();
  __shared__ __align__(16) dev::SquareTiles<T, true> tiles;
  constexpr int PAD = dev::SquareSums<T>::PAD;
  const int row0 = blockIdx.y * TILE, col0 = blockIdx.x * TILE, split = blockIdx.z % s.splits, group = blockIdx.z / s.splits;
  const int first = split * s.k_per_split, end = min(s.m, first + s.k_per_split), n = s.groups * s.n;
  const bool whole_dy = s.n % dev::VEC<T> == 0 && dev::aligned16(dy);
  dy += group * s.n;
  dev::SquareSums<T> sums;
  dev::square_product<true>(sums, tiles, (end - first + DEPTH - 1) / DEPTH, [&](T* as, T* bs, int t) {
    dev::load_lines<DEPTH, TILE, PAD>(as, dy, first + t * DEPTH, end, row0, s.n, n, whole_dy);
    load_reads<PAD>(bs, in, s, first + t * DEPTH, end, col0, group);
  });
  dw += (static_cast<size_t>(split) * n + group * s.n) * s.k;
  sums.each([&](int r, int c, float sum) {
    if (row0 + r < s.n && col0 + c < s.k) dw[static_cast<size_t>(row0 + r) * s.k + col0 + c] = sum;
  });
}

}  // namespace

// x0..x5: as in ConvIn; the rest as in ConvOut, conv_dx() and conv_dw().
#define CONV_BACKWARD_EXPORTS(T, dtype)                                                                                        \
  KERNEL(__launch_bounds__(128) conv_dx_fwd_##dtype)(const T* x, const T* w, const T* bias, const T* res, T* y, ConvGeometry s) { \
    conv_dx<T>(x, w, {bias, res, y}, s);                                                                                       \
  }                                                                                                                            \
  KERNEL_EXPORT(conv_dx_fwd_##dtype)                                                                                           \
  KERNEL(__launch_bounds__(128) conv_dw_bwd_##dtype)(const T* x0, const T* x1, const T* x2, const T* x3, const T* x4,          \
                                                     const T* x5, const T* dy, float* dw, ConvGeometry s) {                    \
    conv_dw<T>({x0, x1, x2, x3, x4, x5}, dy, dw, s);                                                                           \
  }                                                                                                                            \
  KERNEL_EXPORT(conv_dw_bwd_##dtype)

CONV_BACKWARD_EXPORTS(float, f32)
CONV_BACKWARD_EXPORTS(__half, f16)
CONV_BACKWARD_EXPORTS(__nv_bfloat16, bf16)
