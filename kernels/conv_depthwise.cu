// Depthwise convolutions: each channel by itself. T in {f32, f16, bf16}, sums in f32 in the order of the taps.
//
//   conv_depthwise_fwd_<dtype>  "="  y = epilogue(conv(x), w); geometry and epilogue as in conv.cuh, of as many groups as
//                                    channels: n = channels = 1, m outputs of `groups` channels each
//   conv_depthwise_dw_bwd_<dtype>  "+="  dw[c, tap] += the sum over outputs of dy[output, c] x[its tap, c], dw in f32
//
// Forward, a block computes 8 outputs of a line by 64 channels: a thread 4 of them of two channels. The weights of the channels lie in
// shared memory, tap by tap.
//
// PRECOND conv_depthwise_fwd: grid (ceil(groups/64), ceil(cols/8), images rows), block 64, grid.y and grid.z <= 65535; dynamic
//         shared memory 64 kernel_taps floats.
// PRECOND conv_depthwise_dw_bwd: grid (ceil(groups/32), kernel_taps), block 256. All taps are read in their order.
#include "columns.cuh"
#include "conv.cuh"

namespace {

constexpr int CHANNELS = 64, OUTPUTS = 4;

// w: [groups, kernel_taps].
template <class T>
__device__ __forceinline__ void depthwise(const ConvIn<T>& in, const T* __restrict__ w, const ConvOut<T>& o, const ConvGeometry& s) {
  dev::grid_begin();
  DYN_SHARED(float, ws);  // [kernel_taps, CHANNELS]
  const int channel0 = blockIdx.x * CHANNELS;
  for (int i = threadIdx.x; i < s.kernel_taps * CHANNELS; i += blockDim.x) {
    const int channel = channel0 + i % CHANNELS;
    ws[i] = channel < s.groups ? dev::to_f32(w[static_cast<size_t>(channel) * s.kernel_taps + i / CHANNELS]) : 0.f;
  }
  __syncthreads();
  const int lane = threadIdx.x % 32, col0 = blockIdx.y * 2 * OUTPUTS + threadIdx.x / 32 * OUTPUTS, line = blockIdx.z;
#pragma unroll
  for (int half = 0; half < CHANNELS; half += 32) {
    const int channel = channel0 + half + lane;
    if (channel >= s.groups) continue;
    const dev::ConvChannel<T> from = dev::conv_channel(in, s, channel);
    float sums[OUTPUTS] = {};
    dev::ConvRow rows[OUTPUTS];
#pragma unroll
    for (int i = 0; i < OUTPUTS; ++i) rows[i] = dev::conv_row(s, col0 + i < s.cols ? line * s.cols + col0 + i : s.m);
    for (int ty = 0; ty < s.taps_y; ++ty)
      for (int tx = 0; tx < s.taps_x; ++tx) {
        const int tap = (s.first_y + ty * s.every_y) * s.kernel_x + s.first_x + tx * s.every_x;
        const float weight = ws[tap * CHANNELS + half + lane];
#pragma unroll
        for (int i = 0; i < OUTPUTS; ++i) {
          const int pixel = dev::conv_pixel(s, rows[i], ty, tx);
          if (pixel >= 0) sums[i] = fmaf(dev::to_f32(from.x[static_cast<size_t>(pixel) * from.width]), weight, sums[i]);
        }
      }
#pragma unroll
    for (int i = 0; i < OUTPUTS; ++i)
      if (col0 + i < s.cols) dev::conv_finish_one(sums[i], o, s, channel, line * s.cols + col0 + i);
  }
}

// dy: [m, groups], dw: [groups, kernel_taps].
template <class T>
__device__ __forceinline__ void depthwise_dw(const ConvIn<T>& in, const T* __restrict__ dy, float* __restrict__ dw, const ConvGeometry& s) {
  dev::grid_begin();
  const int tap = blockIdx.y, channel = blockIdx.x * 32 + threadIdx.x % 32;
  const dev::ConvChannel<T> from = dev::conv_channel(in, s, min(channel, s.groups - 1));
  float sum[1];
  const bool mine = dev::column_sums(sum, s.m, s.groups, [&](int row, int col, float(&v)[1]) {
    const int pixel = dev::conv_pixel(s, dev::conv_row(s, row), tap / s.taps_x, tap % s.taps_x);
    if (pixel < 0) return;
    const float x = dev::to_f32(from.x[static_cast<size_t>(pixel) * from.width]);
    v[0] = fmaf(dev::to_f32(dy[static_cast<size_t>(row) * s.groups + col]), x, v[0]);
  });
  if (mine) dw[static_cast<size_t>(channel) * s.kernel_taps + tap] += sum[0];
}

}  // namespace

// x0..x5: as in ConvIn; w: [groups, kernel_taps]; the rest as in ConvOut.
#define DEPTHWISE_EXPORT(T, dtype)                                                                                              \
  KERNEL(__launch_bounds__(64) conv_depthwise_fwd_##dtype)(const T* x0, const T* x1, const T* x2, const T* x3, const T* x4,    \
                                                           const T* x5, const T* w, const T* bias, const T* res, T* y, ConvGeometry s) { \
    depthwise<T>({x0, x1, x2, x3, x4, x5}, w, {bias, res, y}, s);                                                               \
  }                                                                                                                             \
  KERNEL_EXPORT(conv_depthwise_fwd_##dtype)                                                                                     \
  KERNEL(__launch_bounds__(256) conv_depthwise_dw_bwd_##dtype)(const T* x0, const T* x1, const T* x2, const T* x3, const T* x4, \
                                                               const T* x5, const T* dy, float* dw, ConvGeometry s) {          \
    depthwise_dw<T>({x0, x1, x2, x3, x4, x5}, dy, dw, s);                                                                       \
  }                                                                                                                             \
  KERNEL_EXPORT(conv_depthwise_dw_bwd_##dtype)

DEPTHWISE_EXPORT(float, f32)
DEPTHWISE_EXPORT(__half, f16)
DEPTHWISE_EXPORT(__nv_bfloat16, bf16)
