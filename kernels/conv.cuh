// What the convolutions share: their geometry, where taps read, and what happens to a sum before it is stored.
//
//   sum = sum over (tap row, tap column, channel) of x w                          f32
//   v   = act(sum + bias[n] + (residual == 1 ? res : 0))    act: 0 none, 1 GELU (erf), 2 GELU (tanh), 3 SiLU, 4 ReLU
//   y   = v + (residual == 2 ? res : 0)
//
// The input is up to six tensors [images, height, width, c_i] whose channels follow each other; end_i is the number of channels
// of the first i + 1 of them, and of all from the last one on.
//
// Output q of an axis reads the input at  q stride + origin + t step  for its taps t, which are number  first + t every  of the
// kernel; it is pixel  place + q scale  of y. A convolution has origin = -padding, step = dilation and all taps; a transposed
// one of stride s (and the gradient of a convolution's input) is s such each way, with stride 1 and scale s.
#pragma once
#include "async.cuh"

struct ConvGeometry {
  int m, n, k;                    // outputs that are computed, their channels in a group, terms of a sum
  int groups, channels;           // channels of a group of x
  int height, width;              // of x
  int rows, cols;                 // outputs of an image that are computed, each way
  int out_height, out_width;      // of y
  int taps_y, taps_x;             // that are read
  int stride_y, stride_x, origin_y, origin_x, step_y, step_x;
  int place_y, place_x, scale_y, scale_x;
  int first_y, first_x, every_y, every_x, kernel_x, kernel_taps;
  int row_len;                    // numbers of a tap of a row of w
  int end0, end1, end2, end3, end4, end5;
  int act, residual, bias_stride;  // elements from the bias of an image to the next, 0 for one bias
  int splits, k_per_split;         // chunks of k
  int whole;                       // rows of all operands are whole 16-byte blocks
};
SPEC_LAYOUT(ConvGeometry, m, n, k, groups, channels, height, width, rows, cols, out_height, out_width, taps_y, taps_x, stride_y, stride_x,
            origin_y, origin_x, step_y, step_x, place_y, place_x, scale_y, scale_x, first_y, first_x, every_y, every_x, kernel_x,
            kernel_taps, row_len, end0, end1, end2, end3, end4, end5, act, residual, bias_stride, splits, k_per_split, whole)

// Tensors whose channels follow each other; those behind the last are null.
template <class T> struct ConvIn {
  const T *x0, *x1, *x2, *x3, *x4, *x5;
};
// Pointers of the epilogue; bias and res may be null.
template <class T> struct ConvOut {
  const T* bias;  // [images or 1, groups n]
  const T* res;   // of y's shape
  T* y;           // [images, out_height, out_width, groups n]
};

namespace dev {

// One of the tensors: its numbers from its channel `channel` on, and how many channels a pixel of it has.
template <class T> struct ConvChannel {
  const T* x;
  int width;
};
// Where channel `channel` of all is.
template <class T> __device__ __forceinline__ ConvChannel<T> conv_channel(const ConvIn<T>& in, const ConvGeometry& s, int channel) {
  const T* x = in.x0;
  int base = 0, end = s.end0;
  if (channel >= s.end0) x = in.x1, base = s.end0, end = s.end1;
  if (channel >= s.end1) x = in.x2, base = s.end1, end = s.end2;
  if (channel >= s.end2) x = in.x3, base = s.end2, end = s.end3;
  if (channel >= s.end3) x = in.x4, base = s.end3, end = s.end4;
  if (channel >= s.end4) x = in.x5, base = s.end4, end = s.end5;
  return {x + (channel - base), end - base};
}

// Output `row` of all that are computed: where its taps begin, in pixels of x. Outside where there is no such output.
struct ConvRow {
  int image, y, x;  // image < 0: there is none
};
__device__ __forceinline__ ConvRow conv_row(const ConvGeometry& s, int row) {
  if (row >= s.m) return {-1, 0, 0};
  const int col = row % s.cols, line = row / s.cols;
  return {line / s.rows, line % s.rows * s.stride_y + s.origin_y, col * s.stride_x + s.origin_x};
}
// Pixel of x that tap (ty, tx) of an output reads, over all images; negative in the padding.
__device__ __forceinline__ int conv_pixel(const ConvGeometry& s, const ConvRow& r, int ty, int tx) {
  const int y = r.y + ty * s.step_y, x = r.x + tx * s.step_x;
  const bool in = r.image >= 0 && y >= 0 && y < s.height && x >= 0 && x < s.width;
  return in ? (r.image * s.height + y) * s.width + x : -1;
}
// Pixel of y that output `row` is.
__device__ __forceinline__ int conv_place(const ConvGeometry& s, int row) {
  const int col = row % s.cols, line = row / s.cols;
  const int y = line % s.rows * s.scale_y + s.place_y, x = col * s.scale_x + s.place_x;
  return (line / s.rows * s.out_height + y) * s.out_width + x;
}

// What a block's rows of outputs read, as 16-byte chunks of k, CHUNKS to a row of a tile: those of this thread, whose row and chunk
// are numbers (thread + i THREADS) / CHUNKS and % CHUNKS.
template <class T, int CHUNKS, int ROWS, int THREADS> struct ConvGather {
  static constexpr int N = ROWS * CHUNKS / THREADS, STEP = CHUNKS * VEC<T>;
  ConvRow rows[N];
  int k, channel, tx, ty;

  __device__ __forceinline__ ConvGather(const ConvGeometry& s, int row0, int k_begin) {
#pragma unroll
    for (int i = 0; i < N; ++i) rows[i] = conv_row(s, row0 + (static_cast<int>(threadIdx.x) + i * THREADS) / CHUNKS);
    k = k_begin + static_cast<int>(threadIdx.x) % CHUNKS * VEC<T>;
    channel = k % s.channels;
    tx = k / s.channels % max(s.taps_x, 1);
    ty = k / s.channels / max(s.taps_x, 1);
  }
  // The next tile, to at(row, chunk); zero in the padding, past m and past k. WHOLE: chunks lie in one tap and one input; the
  // copies are asynchronous.
  template <bool WHOLE, class At>
  __device__ __forceinline__ void load(const ConvIn<T>& in, const ConvGeometry& s, int first_channel, At&& at) {
    constexpr int V = VEC<T>;
    const int first = static_cast<int>(threadIdx.x) / CHUNKS, chunk = static_cast<int>(threadIdx.x) % CHUNKS;
    if (WHOLE) {
      const ConvChannel<T> from = conv_channel(in, s, first_channel + channel);
#pragma unroll
      for (int i = 0; i < N; ++i) {
        const int pixel = k < s.k ? conv_pixel(s, rows[i], ty, tx) : -1;
        const T* src = pixel < 0 ? in.x0 : from.x + static_cast<size_t>(pixel) * from.width;
        cp_async16(at(first + i * (THREADS / CHUNKS), chunk), src, pixel < 0 ? 0 : 16);
      }
      channel += STEP;
      while (channel >= s.channels) {
        channel -= s.channels;
        if (++tx == s.taps_x) tx = 0, ++ty;
      }
    } else {
      float v[N][V];
#pragma unroll
      for (int e = 0; e < V; ++e) {
        const int c = (k + e) % s.channels, tap = (k + e) / s.channels;
        const ConvChannel<T> from = conv_channel(in, s, first_channel + c);
#pragma unroll
        for (int i = 0; i < N; ++i) {
          const int pixel = k + e < s.k ? conv_pixel(s, rows[i], tap / s.taps_x, tap % s.taps_x) : -1;
          v[i][e] = pixel < 0 ? 0.f : to_f32(from.x[static_cast<size_t>(pixel) * from.width]);
        }
      }
#pragma unroll
      for (int i = 0; i < N; ++i) store_vec(at(first + i * (THREADS / CHUNKS), chunk), v[i]);
    }
    k += STEP;
  }
};

// Whether the rows of the epilogue's operands can be moved in 16-byte chunks.
template <class T> __device__ __forceinline__ bool conv_whole(const ConvOut<T>& o, const ConvGeometry& s) {
  return s.n % VEC<T> == 0 && aligned16(o.bias, o.res, o.y);
}

// v[0..VEC) = p[0..count), 16 bytes at once where `whole`.
template <class T> __device__ __forceinline__ void conv_load(const T* p, bool whole, int count, float (&v)[VEC<T>]) {
  if (whole) {
    load_vec(p, v);
  } else {
#pragma unroll
    for (int e = 0; e < VEC<T>; ++e) v[e] = e < count ? to_f32(p[e]) : 0.f;
  }
}

// What becomes of one sum; r: what is added.
__device__ __forceinline__ float conv_value(const ConvGeometry& s, float v, float r) {
  if (s.residual == 1) v += r;
  if (s.act == 1) v = gelu_erf(v);
  if (s.act == 2) v = gelu_tanh(v);
  if (s.act == 3) v = silu(v);
  if (s.act == 4) v = relu(v);
  return s.residual == 2 ? v + r : v;
}

// From the sums v of channels col..col + VEC of a group of output `row` to y. Nothing where row >= m or col >= n.
template <class T>
__device__ __forceinline__ void conv_finish(float (&v)[VEC<T>], const ConvOut<T>& o, const ConvGeometry& s, int group, int row, int col,
                                            bool whole) {
  constexpr int V = VEC<T>;
  if (row >= s.m || col >= s.n) return;
  const int count = s.n - col, image = row / (s.rows * s.cols), channel = group * s.n + col;
  const size_t at = static_cast<size_t>(conv_place(s, row)) * s.groups * s.n + channel;
  float u[V] = {};
  if (o.bias) {
    conv_load(o.bias + static_cast<size_t>(image) * s.bias_stride + channel, whole, count, u);
#pragma unroll
    for (int e = 0; e < V; ++e) v[e] += u[e];
  }
  if (s.residual) conv_load(o.res + at, whole, count, u);
#pragma unroll
  for (int e = 0; e < V; ++e) v[e] = conv_value(s, v[e], u[e]);
  if (whole) {
    store_vec(o.y + at, v);
  } else {
#pragma unroll
    for (int e = 0; e < V; ++e)
      if (e < count) o.y[at + e] = from_f32<T>(v[e]);
  }
}

// The same of one channel of all.
template <class T>
__device__ __forceinline__ void conv_finish_one(float v, const ConvOut<T>& o, const ConvGeometry& s, int channel, int row) {
  const int image = row / (s.rows * s.cols);
  const size_t at = static_cast<size_t>(conv_place(s, row)) * s.groups * s.n + channel;
  if (o.bias) v += to_f32(o.bias[static_cast<size_t>(image) * s.bias_stride + channel]);
  o.y[at] = from_f32<T>(conv_value(s, v, s.residual ? to_f32(o.res[at]) : 0.f));
}

}  // namespace dev
