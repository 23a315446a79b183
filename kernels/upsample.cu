// Resizing of images [images, height, width, channels] and its backward, one thread per element of what is written (nearest
// forward: per 16 bytes where that fits), each sum in the order of rows, then columns. T in {f32, f16, bf16}, sums in f32.
// Writes with "=".
//
//   upsample_nearest_fwd_<dtype>   y[o] = x[min(floor(o scale), in - 1)] in both dimensions, o scale rounded to f32
//   upsample_bilinear_fwd_<dtype>  y[o] = x between the pixels around (o + 1/2) in / out - 1/2, not below 0, in both dimensions
//   upsample_*_bwd_<dtype>         dx = the sum of what the outputs take of the pixel
//   x, dx: [images, height, width, channels]; y, dy: [images, out_height, out_width, channels]
//
// PRECOND: block 256, grid ceil(elements/256), or ceil(elements/VEC/256) for nearest where 16 bytes fit; fewer than 2^31 elements
// and (2 out + 1) in < 2^31.
#include "prelude.cuh"

struct UpsampleSpec {
  int images, height, width, channels;
  int out_height, out_width;
  float scale_h, scale_w;  // in / out, rounded to f32, as nearest takes it
};
SPEC_LAYOUT(UpsampleSpec, images, height, width, channels, out_height, out_width, scale_h, scale_w)

namespace {

// One of the two dimensions.
struct Axis {
  int in, out;
  float scale;
};
__device__ __forceinline__ Axis rows_of(const UpsampleSpec& s) { return {s.height, s.out_height, s.scale_h}; }
__device__ __forceinline__ Axis columns_of(const UpsampleSpec& s) { return {s.width, s.out_width, s.scale_w}; }

struct Range {
  int begin, end;
};

__device__ __forceinline__ int nearest(const Axis& a, int o) { return min(static_cast<int>(__fmul_rn(static_cast<float>(o), a.scale)), a.in - 1); }

// Outputs that take input i: where they would begin and end without rounding, then by the rule itself.
__device__ __forceinline__ Range takers(const Axis& a, int i) {
  Range r;
  r.begin = max(static_cast<int>(static_cast<long long>(i) * a.out / a.in) - 2, 0);
  while (r.begin < a.out && nearest(a, r.begin) < i) ++r.begin;
  for (r.end = r.begin; r.end < a.out && nearest(a, r.end) == i;) ++r.end;
  return r;
}

// The pixels that output o lies between, and how far from the first.
struct Between {
  int first, second;
  float part;
};
__device__ __forceinline__ Between between(const Axis& a, int o) {
  const int at = max((2 * o + 1) * a.in - a.out, 0), first = at / (2 * a.out);
  return {first, min(first + 1, a.in - 1), static_cast<float>(at % (2 * a.out)) / static_cast<float>(2 * a.out)};
}

// What output o takes of input i.
__device__ __forceinline__ float share(const Axis& a, int o, int i) {
  const Between b = between(a, o);
  return (b.first == i ? 1.f - b.part : 0.f) + (b.second == i ? b.part : 0.f);
}

// Outputs among which are all that take of input i: (o + 1/2) in / out - 1/2 lies in [i - 1, i + 1], or beyond the border.
__device__ __forceinline__ Range around(const Axis& a, int i) {
  const long long twice = 2LL * a.in, from = (2LL * i - 1) * a.out / twice - 1, to = (2LL * i + 3) * a.out / twice + 1;
  return {i == 0 ? 0 : max(static_cast<int>(from), 0), i == a.in - 1 ? a.out : min(static_cast<int>(to), a.out)};
}

// Element `e` of images of that size.
struct Element {
  unsigned image, row, col, channel;
};
__device__ __forceinline__ bool element(Element& to, unsigned e, unsigned height, unsigned width, const UpsampleSpec& s) {
  const unsigned channels = s.channels, pixel = e / channels;
  if (pixel >= s.images * height * width) return false;
  to = {pixel / (width * height), pixel / width % height, pixel % width, e % channels};
  return true;
}

template <class T> __device__ __forceinline__ void nearest_forward(const T* __restrict__ x, T* __restrict__ y, const UpsampleSpec& s) {
  dev::grid_begin();
  const bool whole = s.channels % dev::VEC<T> == 0 && dev::aligned16(x, y);
  const unsigned at = (blockIdx.x * 256 + threadIdx.x) * (whole ? dev::VEC<T> : 1);
  Element e;
  if (!element(e, at, s.out_height, s.out_width, s)) return;
  const size_t row = static_cast<size_t>(e.image) * s.height + nearest(rows_of(s), e.row);
  const T* from = x + (row * s.width + nearest(columns_of(s), e.col)) * s.channels + e.channel;
  if (whole)
    *reinterpret_cast<uint4*>(y + at) = *reinterpret_cast<const uint4*>(from);
  else
    y[at] = *from;
}

template <class T> __device__ __forceinline__ void nearest_backward(const T* __restrict__ dy, T* __restrict__ dx, const UpsampleSpec& s) {
  dev::grid_begin();
  const unsigned at = blockIdx.x * 256 + threadIdx.x;
  Element e;
  if (!element(e, at, s.height, s.width, s)) return;
  dy += static_cast<size_t>(e.image) * s.out_height * s.out_width * s.channels + e.channel;
  const Range rows = takers(rows_of(s), e.row), cols = takers(columns_of(s), e.col);
  float sum = 0.f;
  for (int row = rows.begin; row < rows.end; ++row)
    for (int col = cols.begin; col < cols.end; ++col) sum += dev::to_f32(dy[static_cast<size_t>(row * s.out_width + col) * s.channels]);
  dx[at] = dev::from_f32<T>(sum);
}

template <class T> __device__ __forceinline__ void bilinear_forward(const T* __restrict__ x, T* __restrict__ y, const UpsampleSpec& s) {
  dev::grid_begin();
  const unsigned at = blockIdx.x * 256 + threadIdx.x;
  Element e;
  if (!element(e, at, s.out_height, s.out_width, s)) return;
  x += static_cast<size_t>(e.image) * s.height * s.width * s.channels + e.channel;
  const Between rows = between(rows_of(s), e.row), cols = between(columns_of(s), e.col);
  auto along = [&](int row) {
    const T* line = x + static_cast<size_t>(row) * s.width * s.channels;
    const float first = dev::to_f32(line[static_cast<size_t>(cols.first) * s.channels]);
    const float second = dev::to_f32(line[static_cast<size_t>(cols.second) * s.channels]);
    return fmaf(cols.part, second, (1.f - cols.part) * first);
  };
  y[at] = dev::from_f32<T>(fmaf(rows.part, along(rows.second), (1.f - rows.part) * along(rows.first)));
}

template <class T> __device__ __forceinline__ void bilinear_backward(const T* __restrict__ dy, T* __restrict__ dx, const UpsampleSpec& s) {
  dev::grid_begin();
  const unsigned at = blockIdx.x * 256 + threadIdx.x;
  Element e;
  if (!element(e, at, s.height, s.width, s)) return;
  dy += static_cast<size_t>(e.image) * s.out_height * s.out_width * s.channels + e.channel;
  const Axis down = rows_of(s), across = columns_of(s);
  const Range rows = around(down, e.row), cols = around(across, e.col);
  float sum = 0.f;
  for (int row = rows.begin; row < rows.end; ++row) {
    const float down_share = share(down, row, e.row);
    for (int col = cols.begin; col < cols.end; ++col)
      sum = fmaf(down_share * share(across, col, e.col), dev::to_f32(dy[static_cast<size_t>(row * s.out_width + col) * s.channels]), sum);
  }
  dx[at] = dev::from_f32<T>(sum);
}

}  // namespace

#define UPSAMPLE_EXPORTS(T, dtype)                                                                                         \
  KERNEL(__launch_bounds__(256) upsample_nearest_fwd_##dtype)(const T* x, T* y, UpsampleSpec s) { nearest_forward(x, y, s); } \
  KERNEL_EXPORT(upsample_nearest_fwd_##dtype)                                                                              \
  KERNEL(__launch_bounds__(256) upsample_nearest_bwd_##dtype)(const T* dy, T* dx, UpsampleSpec s) { nearest_backward(dy, dx, s); } \
  KERNEL_EXPORT(upsample_nearest_bwd_##dtype)                                                                              \
  KERNEL(__launch_bounds__(256) upsample_bilinear_fwd_##dtype)(const T* x, T* y, UpsampleSpec s) { bilinear_forward(x, y, s); } \
  KERNEL_EXPORT(upsample_bilinear_fwd_##dtype)                                                                             \
  KERNEL(__launch_bounds__(256) upsample_bilinear_bwd_##dtype)(const T* dy, T* dx, UpsampleSpec s) { bilinear_backward(dy, dx, s); } \
  KERNEL_EXPORT(upsample_bilinear_bwd_##dtype)

UPSAMPLE_EXPORTS(float, f32)
UPSAMPLE_EXPORTS(__half, f16)
UPSAMPLE_EXPORTS(__nv_bfloat16, bf16)
