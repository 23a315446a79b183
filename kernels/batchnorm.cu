// Batch normalisation of training, x [rows, channels] (Ioffe & Szegedy 2015), rows being the pixels of all images, and its
// backward. T in {f32, f16, bf16}, statistics in f32. Writes with "=" unless it says so.
//
//   n = (x - mean) / sqrt(variance + eps), statistics of each channel over all rows (biased variance); y = n weight + bias
//   batchnorm_moments_fwd_<dtype>  of each chunk of chunk_rows rows the mean and the sum of squared differences from it of
//                                  each channel: moments [chunks, channels]
//   batchnorm_stats_fwd            saved [2, channels] = mean, 1 / sqrt(variance + eps); where running_mean is not null
//                                  running = (1 - momentum) running + momentum (mean or the unbiased variance)
//   batchnorm_fwd_<dtype>          y
//   batchnorm_sums_bwd_<dtype>     of each chunk the sums of dy and of dy n: sums [2, chunks, channels]
//   batchnorm_stats_bwd            means [2, channels] of dy and of dy n; dbias "+=" sum of dy, dweight "+=" sum of dy n
//   batchnorm_bwd_<dtype>          dx = weight (dy - mean(dy) - n mean(dy n)) / sqrt(variance + eps)
//   moments, sums, saved, means, dweight, dbias, running_*: f32
//
// PRECOND moments, sums: grid (ceil(channels/32), chunks), block 256. PRECOND stats: block 256, grid ceil(channels/256).
// PRECOND batchnorm_fwd, batchnorm_bwd: block 256, grid ceil(rows channels / 256), one element per thread, fewer than 2^31.
#include "columns.cuh"

struct BatchNormSpec {
  int rows, channels;
  int chunk_rows;
  float eps, momentum;
};
SPEC_LAYOUT(BatchNormSpec, rows, channels, chunk_rows, eps, momentum)

namespace {

template <class T> __device__ __forceinline__ void moments(const T* __restrict__ x, float2* __restrict__ out, const BatchNormSpec& s) {
  dev::grid_begin();
  const dev::Rows rows = dev::chunk_rows(blockIdx.y, s.chunk_rows, s.rows);
  float2 m;
  if (dev::column_moments(m, x + static_cast<size_t>(rows.first) * s.channels, rows.count, s.channels))
    out[static_cast<size_t>(blockIdx.y) * s.channels + blockIdx.x * 32 + threadIdx.x] = m;
}

template <class T>
__device__ __forceinline__ void forward(const T* __restrict__ x, const float* __restrict__ saved, const T* __restrict__ weight,
                                        const T* __restrict__ bias, T* __restrict__ y, const BatchNormSpec& s) {
  dev::grid_begin();
  const unsigned i = blockIdx.x * 256 + threadIdx.x, channels = s.channels, c = i % channels;
  if (i >= s.rows * channels) return;
  const float normed = (dev::to_f32(x[i]) - saved[c]) * saved[channels + c];
  y[i] = dev::from_f32<T>(fmaf(normed, dev::to_f32(weight[c]), dev::to_f32(bias[c])));
}

template <class T>
__device__ __forceinline__ void sums_backward(const T* __restrict__ x, const float* __restrict__ saved, const T* __restrict__ dy,
                                              float* __restrict__ sums, const BatchNormSpec& s) {
  dev::grid_begin();
  const dev::Rows rows = dev::chunk_rows(blockIdx.y, s.chunk_rows, s.rows);
  float sum[2];
  const bool mine = dev::column_sums(sum, rows.count, s.channels, [&](int row, int c, float(&v)[2]) {
    const size_t at = static_cast<size_t>(rows.first + row) * s.channels + c;
    const float d = dev::to_f32(dy[at]);
    v[0] += d;
    v[1] = fmaf(d, (dev::to_f32(x[at]) - saved[c]) * saved[s.channels + c], v[1]);
  });
  if (!mine) return;
  const size_t to = static_cast<size_t>(blockIdx.y) * s.channels + blockIdx.x * 32 + threadIdx.x;
  sums[to] = sum[0];
  sums[static_cast<size_t>(gridDim.y) * s.channels + to] = sum[1];
}

template <class T>
__device__ __forceinline__ void backward(const T* __restrict__ x, const float* __restrict__ saved, const T* __restrict__ weight,
                                         const float* __restrict__ means, const T* __restrict__ dy, T* __restrict__ dx,
                                         const BatchNormSpec& s) {
  dev::grid_begin();
  const unsigned i = blockIdx.x * 256 + threadIdx.x, channels = s.channels, c = i % channels;
  if (i >= s.rows * channels) return;
  const float rstd = saved[channels + c], normed = (dev::to_f32(x[i]) - saved[c]) * rstd;
  const float v = dev::to_f32(dy[i]) - means[c] - normed * means[channels + c];
  dx[i] = dev::from_f32<T>(dev::to_f32(weight[c]) * rstd * v);
}

}  // namespace

KERNEL(__launch_bounds__(256) batchnorm_stats_fwd)
(const float2* moments, float* saved, float* running_mean, float* running_var, BatchNormSpec s) {
  dev::grid_begin();
  const int c = blockIdx.x * 256 + threadIdx.x, chunks = (s.rows + s.chunk_rows - 1) / s.chunk_rows;
  if (c >= s.channels) return;
  float sum = 0.f, squares = 0.f;
  for (int i = 0; i < chunks; ++i)
    sum = fmaf(static_cast<float>(dev::chunk_rows(i, s.chunk_rows, s.rows).count), moments[static_cast<size_t>(i) * s.channels + c].x, sum);
  const float mean = sum / s.rows;
  for (int i = 0; i < chunks; ++i) {  // Chan, Golub and LeVeque 1979
    const float2 m = moments[static_cast<size_t>(i) * s.channels + c];
    const float d = m.x - mean;
    squares += fmaf(static_cast<float>(dev::chunk_rows(i, s.chunk_rows, s.rows).count) * d, d, m.y);
  }
  saved[c] = mean;
  saved[s.channels + c] = rsqrtf(squares / s.rows + s.eps);
  if (!running_mean) return;
  running_mean[c] = fmaf(s.momentum, mean, (1.f - s.momentum) * running_mean[c]);
  running_var[c] = fmaf(s.momentum, squares / (s.rows - 1), (1.f - s.momentum) * running_var[c]);
}
KERNEL_EXPORT(batchnorm_stats_fwd)

KERNEL(__launch_bounds__(256) batchnorm_stats_bwd)(const float* sums, float* means, float* dweight, float* dbias, BatchNormSpec s) {
  dev::grid_begin();
  const int c = blockIdx.x * 256 + threadIdx.x, chunks = (s.rows + s.chunk_rows - 1) / s.chunk_rows;
  if (c >= s.channels) return;
  float sum = 0.f, sum_n = 0.f;
  for (int i = 0; i < chunks; ++i) {
    sum += sums[static_cast<size_t>(i) * s.channels + c];
    sum_n += sums[static_cast<size_t>(chunks + i) * s.channels + c];
  }
  means[c] = sum / s.rows;
  means[s.channels + c] = sum_n / s.rows;
  dbias[c] += sum;
  dweight[c] += sum_n;
}
KERNEL_EXPORT(batchnorm_stats_bwd)

#define BATCHNORM_EXPORTS(T, dtype)                                                                                         \
  KERNEL(__launch_bounds__(256) batchnorm_moments_fwd_##dtype)(const T* x, float2* out, BatchNormSpec s) { moments(x, out, s); } \
  KERNEL_EXPORT(batchnorm_moments_fwd_##dtype)                                                                              \
  KERNEL(__launch_bounds__(256) batchnorm_fwd_##dtype)                                                                      \
  (const T* x, const float* saved, const T* weight, const T* bias, T* y, BatchNormSpec s) {                                 \
    forward(x, saved, weight, bias, y, s);                                                                                  \
  }                                                                                                                         \
  KERNEL_EXPORT(batchnorm_fwd_##dtype)                                                                                      \
  KERNEL(__launch_bounds__(256) batchnorm_sums_bwd_##dtype)                                                                 \
  (const T* x, const float* saved, const T* dy, float* sums, BatchNormSpec s) { sums_backward(x, saved, dy, sums, s); }     \
  KERNEL_EXPORT(batchnorm_sums_bwd_##dtype)                                                                                 \
  KERNEL(__launch_bounds__(256) batchnorm_bwd_##dtype)                                                                      \
  (const T* x, const float* saved, const T* weight, const float* means, const T* dy, T* dx, BatchNormSpec s) {              \
    backward(x, saved, weight, means, dy, dx, s);                                                                           \
  }                                                                                                                         \
  KERNEL_EXPORT(batchnorm_bwd_##dtype)

BATCHNORM_EXPORTS(float, f32)
BATCHNORM_EXPORTS(__half, f16)
BATCHNORM_EXPORTS(__nv_bfloat16, bf16)
