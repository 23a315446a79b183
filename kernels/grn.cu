// Global response normalisation of images [images, pixels, channels] (Woo et al. 2023, ConvNeXt V2) and its backward.
// T in {f32, f16, bf16}, sums in f32. Writes with "=".
//
//   G[c] = sqrt(sum over pixels of x^2), m = mean over channels of G + eps, N[c] = G[c] / m
//   y = x + x N weight + bias
//   grn_squares_fwd_<dtype>  of each chunk of chunk_pixels pixels the sums of x^2: squares [images, chunks, channels]
//   grn_factor_fwd           factor [images, channels] = N
//   grn_fwd_<dtype>          y
//   grn_sums_bwd_<dtype>     of each chunk the sums of x^2, of dy x and of dy: sums [3, images, chunks, channels]
//   grn_factor_bwd_<dtype>   with dN = weight sum(dy x) and dG = dN / m - mean(dN G) / m^2 of each image:
//                            factors [2, images, channels] = 1 + N weight, dG / G (0 where G is 0);
//                            affine [2, images, channels] = the image's part of dweight, N sum(dy x), and of dbias, sum(dy)
//   grn_bwd_<dtype>          dx = dy (1 + N weight) + x dG / G
//   x, y, dy, dx: [images, pixels, channels] in T; weight, bias: [channels] in T; all other arrays f32
//
// PRECOND squares, sums: grid (ceil(channels/32), chunks, images), block 256. PRECOND factor: grid images, block 256.
// PRECOND grn_fwd, grn_bwd: block 256, grid ceil(elements/256), one element per thread, fewer than 2^31.
#include "columns.cuh"
#include "reduce.cuh"

struct GrnSpec {
  int images, pixels, channels;
  int chunk_pixels;
  float eps;
};
SPEC_LAYOUT(GrnSpec, images, pixels, channels, chunk_pixels, eps)

namespace {

// The sum over the block, the same bits in every thread: once per kernel.
__device__ __forceinline__ float2 block_sum(float a, float b) {
  __shared__ float2 partial[8];
  a = dev::warp_sum(a);
  b = dev::warp_sum(b);
  if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = make_float2(a, b);
  __syncthreads();
  float2 sum = partial[0];
  for (int w = 1; w < 8; ++w) {
    sum.x += partial[w].x;
    sum.y += partial[w].y;
  }
  return sum;
}

// The sum over the chunks of this block's image.
__device__ __forceinline__ float over_chunks(const float* __restrict__ sums, int c, const GrnSpec& s) {
  const int chunks = (s.pixels + s.chunk_pixels - 1) / s.chunk_pixels;
  sums += static_cast<size_t>(blockIdx.x) * chunks * s.channels + c;
  float sum = 0.f;
  for (int i = 0; i < chunks; ++i) sum += sums[static_cast<size_t>(i) * s.channels];
  return sum;
}

template <class T> __device__ __forceinline__ void squares(const T* __restrict__ x, float* __restrict__ out, const GrnSpec& s) {
  dev::grid_begin();
  const dev::Rows rows = dev::chunk_rows(blockIdx.y, s.chunk_pixels, s.pixels);
  x += (static_cast<size_t>(blockIdx.z) * s.pixels + rows.first) * s.channels;
  float sum[1];
  const bool mine = dev::column_sums(sum, rows.count, s.channels, [&](int row, int c, float(&v)[1]) {
    const float u = dev::to_f32(x[static_cast<size_t>(row) * s.channels + c]);
    v[0] = fmaf(u, u, v[0]);
  });
  if (mine) out[(static_cast<size_t>(blockIdx.z) * gridDim.y + blockIdx.y) * s.channels + blockIdx.x * 32 + threadIdx.x] = sum[0];
}

template <class T>
__device__ __forceinline__ void forward(const T* __restrict__ x, const float* __restrict__ factor, const T* __restrict__ weight,
                                        const T* __restrict__ bias, T* __restrict__ y, const GrnSpec& s) {
  dev::grid_begin();
  const unsigned i = blockIdx.x * 256 + threadIdx.x, channels = s.channels, c = i % channels, image = i / channels / s.pixels;
  if (i >= s.images * s.pixels * channels) return;
  const float v = dev::to_f32(x[i]), scaled = v * factor[image * channels + c];
  y[i] = dev::from_f32<T>(v + fmaf(scaled, dev::to_f32(weight[c]), dev::to_f32(bias[c])));
}

template <class T>
__device__ __forceinline__ void sums_backward(const T* __restrict__ x, const T* __restrict__ dy, float* __restrict__ sums, const GrnSpec& s) {
  dev::grid_begin();
  const dev::Rows rows = dev::chunk_rows(blockIdx.y, s.chunk_pixels, s.pixels);
  const size_t first = (static_cast<size_t>(blockIdx.z) * s.pixels + rows.first) * s.channels;
  float sum[3];
  const bool mine = dev::column_sums(sum, rows.count, s.channels, [&](int row, int c, float(&v)[3]) {
    const size_t at = first + static_cast<size_t>(row) * s.channels + c;
    const float u = dev::to_f32(x[at]), d = dev::to_f32(dy[at]);
    v[0] = fmaf(u, u, v[0]);
    v[1] = fmaf(d, u, v[1]);
    v[2] += d;
  });
  if (!mine) return;
  const size_t to = (static_cast<size_t>(blockIdx.z) * gridDim.y + blockIdx.y) * s.channels + blockIdx.x * 32 + threadIdx.x;
  const size_t plane = static_cast<size_t>(s.images) * gridDim.y * s.channels;
#pragma unroll
  for (int k = 0; k < 3; ++k) sums[k * plane + to] = sum[k];
}

// What the second loop needs of the first is left in factors and affine by the same thread.
template <class T>
__device__ __forceinline__ void factor_backward(const float* __restrict__ sums, const T* __restrict__ weight, float* factors,
                                                float* affine, const GrnSpec& s) {
  dev::grid_begin();
  const int chunks = (s.pixels + s.chunk_pixels - 1) / s.chunk_pixels;
  const size_t plane = static_cast<size_t>(s.images) * chunks * s.channels, half = static_cast<size_t>(s.images) * s.channels;
  const size_t image = static_cast<size_t>(blockIdx.x) * s.channels;
  float norms = 0.f, pulls = 0.f;
  for (int c = threadIdx.x; c < s.channels; c += 256) {
    const float norm = sqrtf(over_chunks(sums, c, s)), product = over_chunks(sums + plane, c, s);
    norms += norm;
    pulls = fmaf(dev::to_f32(weight[c]) * product, norm, pulls);
    factors[image + c] = norm;
    affine[image + c] = product;
    affine[half + image + c] = over_chunks(sums + 2 * plane, c, s);
  }
  const float2 sum = block_sum(norms, pulls);
  const float m = sum.x / s.channels + s.eps, pull = sum.y / s.channels / (m * m);
  for (int c = threadIdx.x; c < s.channels; c += 256) {
    const float norm = factors[image + c], product = affine[image + c], w = dev::to_f32(weight[c]);
    factors[image + c] = fmaf(norm / m, w, 1.f);
    factors[half + image + c] = norm > 0.f ? (w * product / m - pull) / norm : 0.f;
    affine[image + c] = norm / m * product;
  }
}

template <class T>
__device__ __forceinline__ void backward(const T* __restrict__ x, const float* __restrict__ factors, const T* __restrict__ dy,
                                         T* __restrict__ dx, const GrnSpec& s) {
  dev::grid_begin();
  const unsigned i = blockIdx.x * 256 + threadIdx.x, channels = s.channels;
  if (i >= s.images * s.pixels * channels) return;
  const unsigned at = i / channels / s.pixels * channels + i % channels;
  const float pull = factors[s.images * channels + at];
  dx[i] = dev::from_f32<T>(fmaf(dev::to_f32(dy[i]), factors[at], dev::to_f32(x[i]) * pull));
}

}  // namespace

KERNEL(__launch_bounds__(256) grn_factor_fwd)(const float* squares, float* factor, GrnSpec s) {
  dev::grid_begin();
  float* const to = factor + static_cast<size_t>(blockIdx.x) * s.channels;
  float norms = 0.f;
  for (int c = threadIdx.x; c < s.channels; c += 256) {
    to[c] = sqrtf(over_chunks(squares, c, s));
    norms += to[c];
  }
  const float m = block_sum(norms, 0.f).x / s.channels + s.eps;
  for (int c = threadIdx.x; c < s.channels; c += 256) to[c] /= m;
}
KERNEL_EXPORT(grn_factor_fwd)

#define GRN_EXPORTS(T, dtype)                                                                                               \
  KERNEL(__launch_bounds__(256) grn_squares_fwd_##dtype)(const T* x, float* out, GrnSpec s) { squares(x, out, s); }           \
  KERNEL_EXPORT(grn_squares_fwd_##dtype)                                                                                    \
  KERNEL(__launch_bounds__(256) grn_fwd_##dtype)                                                                            \
  (const T* x, const float* factor, const T* weight, const T* bias, T* y, GrnSpec s) { forward(x, factor, weight, bias, y, s); } \
  KERNEL_EXPORT(grn_fwd_##dtype)                                                                                            \
  KERNEL(__launch_bounds__(256) grn_sums_bwd_##dtype)(const T* x, const T* dy, float* sums, GrnSpec s) {                    \
    sums_backward(x, dy, sums, s);                                                                                          \
  }                                                                                                                         \
  KERNEL_EXPORT(grn_sums_bwd_##dtype)                                                                                       \
  KERNEL(__launch_bounds__(256) grn_factor_bwd_##dtype)                                                                     \
  (const float* sums, const T* weight, float* factors, float* affine, GrnSpec s) {                                          \
    factor_backward(sums, weight, factors, affine, s);                                                                      \
  }                                                                                                                         \
  KERNEL_EXPORT(grn_factor_bwd_##dtype)                                                                                     \
  KERNEL(__launch_bounds__(256) grn_bwd_##dtype)(const T* x, const float* factors, const T* dy, T* dx, GrnSpec s) {         \
    backward(x, factors, dy, dx, s);                                                                                        \
  }                                                                                                                         \
  KERNEL_EXPORT(grn_bwd_##dtype)

GRN_EXPORTS(float, f32)
GRN_EXPORTS(__half, f16)
GRN_EXPORTS(__nv_bfloat16, bf16)
