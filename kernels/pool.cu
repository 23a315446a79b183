// Pooling of images [images, height, width, channels] and its backward, one thread per element of what is written, each sum
// in the order of rows, then columns. T in {f32, f16, bf16}, sums in f32. Writes with "=". The kernel does not overlap padding alone:
// pad <= kernel / 2.
//
//   max_pool_fwd_<dtype>      y = the largest of the window; NaN where there is one
//   max_pool_bwd_<dtype>      dx = the sum of dy of the windows whose first maximum (or last NaN) the element is
//   average_pool_fwd_<dtype>  y = the mean of the window: over kernel_h kernel_w where include_pad is 1, else over what is inside
//   average_pool_bwd_<dtype>  dx = the sum of the shares of dy
//   global_average_fwd_<dtype>  y [images, channels] = the mean over all pixels of x [images, height, width, channels]
//   x, dx: [images, height, width, channels]; y, dy: [images, out_height, out_width, channels]
//
// A kernel_h of 0 is adaptive: window o of n outputs covers floor(o size / n) up to ceil((o + 1) size / n). Four blocks
// a multiprocessor are asked for where ptxas would spill for more.
//
// PRECOND: block 256, grid ceil(elements/256), fewer than 2^31 elements. PRECOND global_average: grid (ceil(channels/32), images).
#include "columns.cuh"

struct PoolSpec {
  int images, height, width, channels;
  int out_height, out_width;
  int kernel_h, kernel_w;
  int stride_h, stride_w;
  int pad_h, pad_w;
  int include_pad;
};
SPEC_LAYOUT(PoolSpec, images, height, width, channels, out_height, out_width, kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w,
            include_pad)

namespace {

// One of the two dimensions.
struct Axis {
  int in, out, kernel, stride, pad;
};
__device__ __forceinline__ Axis rows_of(const PoolSpec& s) { return {s.height, s.out_height, s.kernel_h, s.stride_h, s.pad_h}; }
__device__ __forceinline__ Axis columns_of(const PoolSpec& s) { return {s.width, s.out_width, s.kernel_w, s.stride_w, s.pad_w}; }

struct Range {
  int begin, end;
};

// Inputs that window o covers.
__device__ __forceinline__ Range window(const Axis& a, int o) {
  if (a.kernel == 0) return {o * a.in / a.out, ((o + 1) * a.in + a.out - 1) / a.out};
  const int begin = o * a.stride - a.pad;
  return {max(begin, 0), min(begin + a.kernel, a.in)};
}

// Windows that cover input i.
__device__ __forceinline__ Range windows(const Axis& a, int i) {
  if (a.kernel == 0) return {i * a.out / a.in, ((i + 1) * a.out + a.in - 1) / a.in};
  const int above = i + a.pad - a.kernel + 1;
  return {above > 0 ? (above + a.stride - 1) / a.stride : 0, min((i + a.pad) / a.stride + 1, a.out)};
}

// By how many elements a mean is divided.
__device__ __forceinline__ float divisor(const PoolSpec& s, const Range& rows, const Range& cols) {
  if (s.include_pad && s.kernel_h) return static_cast<float>(s.kernel_h * s.kernel_w);
  return static_cast<float>((rows.end - rows.begin) * (cols.end - cols.begin));
}

// The largest of a window and where it is, as PyTorch chooses.
template <class T>
__device__ __forceinline__ void largest(const T* __restrict__ x, const Range& rows, const Range& cols, const PoolSpec& s, float& value, int& at) {
  value = -INFINITY;
  at = rows.begin * s.width + cols.begin;
  for (int row = rows.begin; row < rows.end; ++row)
    for (int col = cols.begin; col < cols.end; ++col) {
      const float v = dev::to_f32(x[static_cast<size_t>(row * s.width + col) * s.channels]);
      if (v > value || v != v) {
        value = v;
        at = row * s.width + col;
      }
    }
}

// Element `e` of images of that size.
struct Element {
  int image, row, col, channel;
};
__device__ __forceinline__ bool element(Element& to, int height, int width, const PoolSpec& s) {
  const unsigned e = blockIdx.x * 256 + threadIdx.x, channels = s.channels, pixel = e / channels, w = width, h = height;
  if (pixel >= s.images * h * w) return false;
  to = {static_cast<int>(pixel / (w * h)), static_cast<int>(pixel / w % h), static_cast<int>(pixel % w), static_cast<int>(e % channels)};
  return true;
}

template <class T> __device__ __forceinline__ void max_forward(const T* __restrict__ x, T* __restrict__ y, const PoolSpec& s) {
  dev::grid_begin();
  Element e;
  if (!element(e, s.out_height, s.out_width, s)) return;
  x += static_cast<size_t>(e.image) * s.height * s.width * s.channels + e.channel;
  float value;
  int at;
  largest(x, window(rows_of(s), e.row), window(columns_of(s), e.col), s, value, at);
  y[blockIdx.x * 256 + threadIdx.x] = dev::from_f32<T>(value);
}

template <class T>
__device__ __forceinline__ void max_backward(const T* __restrict__ x, const T* __restrict__ dy, T* __restrict__ dx, const PoolSpec& s) {
  dev::grid_begin();
  Element e;
  if (!element(e, s.height, s.width, s)) return;
  x += static_cast<size_t>(e.image) * s.height * s.width * s.channels + e.channel;
  dy += static_cast<size_t>(e.image) * s.out_height * s.out_width * s.channels + e.channel;
  const Axis down = rows_of(s), across = columns_of(s);
  const Range rows = windows(down, e.row), cols = windows(across, e.col);
  float sum = 0.f;
  for (int row = rows.begin; row < rows.end; ++row)
    for (int col = cols.begin; col < cols.end; ++col) {
      float value;
      int at;
      largest(x, window(down, row), window(across, col), s, value, at);
      if (at == e.row * s.width + e.col) sum += dev::to_f32(dy[static_cast<size_t>(row * s.out_width + col) * s.channels]);
    }
  dx[blockIdx.x * 256 + threadIdx.x] = dev::from_f32<T>(sum);
}

template <class T> __device__ __forceinline__ void average_forward(const T* __restrict__ x, T* __restrict__ y, const PoolSpec& s) {
  dev::grid_begin();
  Element e;
  if (!element(e, s.out_height, s.out_width, s)) return;
  x += static_cast<size_t>(e.image) * s.height * s.width * s.channels + e.channel;
  const Range rows = window(rows_of(s), e.row), cols = window(columns_of(s), e.col);
  float sum = 0.f;
  for (int row = rows.begin; row < rows.end; ++row)
    for (int col = cols.begin; col < cols.end; ++col) sum += dev::to_f32(x[static_cast<size_t>(row * s.width + col) * s.channels]);
  y[blockIdx.x * 256 + threadIdx.x] = dev::from_f32<T>(sum / divisor(s, rows, cols));
}

template <class T> __device__ __forceinline__ void average_backward(const T* __restrict__ dy, T* __restrict__ dx, const PoolSpec& s) {
  dev::grid_begin();
  Element e;
  if (!element(e, s.height, s.width, s)) return;
  dy += static_cast<size_t>(e.image) * s.out_height * s.out_width * s.channels + e.channel;
  const Axis down = rows_of(s), across = columns_of(s);
  const Range rows = windows(down, e.row), cols = windows(across, e.col);
  float sum = 0.f;
  for (int row = rows.begin; row < rows.end; ++row)
    for (int col = cols.begin; col < cols.end; ++col)
      sum += dev::to_f32(dy[static_cast<size_t>(row * s.out_width + col) * s.channels]) / divisor(s, window(down, row), window(across, col));
  dx[blockIdx.x * 256 + threadIdx.x] = dev::from_f32<T>(sum);
}

template <class T> __device__ __forceinline__ void global_average(const T* __restrict__ x, T* __restrict__ y, const PoolSpec& s) {
  dev::grid_begin();
  const int pixels = s.height * s.width;
  x += static_cast<size_t>(blockIdx.y) * pixels * s.channels;
  float sum[1];
  const bool mine = dev::column_sums(sum, pixels, s.channels, [&](int row, int c, float(&v)[1]) {
    v[0] += dev::to_f32(x[static_cast<size_t>(row) * s.channels + c]);
  });
  if (mine) y[static_cast<size_t>(blockIdx.y) * s.channels + blockIdx.x * 32 + threadIdx.x] = dev::from_f32<T>(sum[0] / pixels);
}

}  // namespace

#define POOL_EXPORTS(T, dtype)                                                                                                \
  KERNEL(__launch_bounds__(256) max_pool_fwd_##dtype)(const T* x, T* y, PoolSpec s) { max_forward(x, y, s); }                 \
  KERNEL_EXPORT(max_pool_fwd_##dtype)                                                                                         \
  KERNEL(__launch_bounds__(256, 4) max_pool_bwd_##dtype)(const T* x, const T* dy, T* dx, PoolSpec s) { max_backward(x, dy, dx, s); } \
  KERNEL_EXPORT(max_pool_bwd_##dtype)                                                                                         \
  KERNEL(__launch_bounds__(256) average_pool_fwd_##dtype)(const T* x, T* y, PoolSpec s) { average_forward(x, y, s); }         \
  KERNEL_EXPORT(average_pool_fwd_##dtype)                                                                                     \
  KERNEL(__launch_bounds__(256, 4) average_pool_bwd_##dtype)(const T* dy, T* dx, PoolSpec s) { average_backward(dy, dx, s); }    \
  KERNEL_EXPORT(average_pool_bwd_##dtype)                                                                                     \
  KERNEL(__launch_bounds__(256) global_average_fwd_##dtype)(const T* x, T* y, PoolSpec s) { global_average(x, y, s); }        \
  KERNEL_EXPORT(global_average_fwd_##dtype)

POOL_EXPORTS(float, f32)
POOL_EXPORTS(__half, f16)
POOL_EXPORTS(__nv_bfloat16, bf16)
