// Group normalisation of images [images, pixels, channels] (Wu & He 2018) with its affine map and, where silu is 1, SiLU
// behind it, and the backward of all. T in {f32, f16, bf16}, statistics in f32. Writes with "=". Groups are neighbouring
// channels, cg = channels / groups of them.
//
//   n = (x - mean) / sqrt(variance + eps)                over pixels and channels of a group; u = n weight + bias
//   groupnorm_moments_fwd_<dtype>  of each chunk of chunk_pixels pixels the mean and the sum of squared differences from it
//                                  of each channel: moments [images, chunks, channels]
//   groupnorm_fwd_<dtype>          y = u, or silu(u)
//   groupnorm_sums_bwd_<dtype>     du = dy, or dy silu'(u): of each chunk the sums of du into dadd and of du n into dmul,
//                                  both [images, chunks, channels]
//   groupnorm_bwd_<dtype>          with g = du weight: dx = (g - mean(g) - n mean(g n)) / sqrt(variance + eps)
//   x, y, dy, dx: [images, pixels, channels]; weight, bias: [channels]
//
// The moments of the channels of a group are joined in one order by a warp of every block that needs them (Chan, Golub and
// LeVeque 1979), the sums likewise. chunks = ceil(pixels / chunk_pixels). Four blocks a multiprocessor are asked for where ptxas
// would spill for more.
//
// PRECOND groupnorm_moments_fwd, groupnorm_sums_bwd: grid (ceil(channels/32), chunks, images), block 256.
// PRECOND groupnorm_fwd, groupnorm_bwd: grid (ceil(pixels/tile_pixels), ceil(groups/span), images), block 256, span <= 64.
#include "columns.cuh"
#include "reduce.cuh"

struct GroupNormSpec {
  int pixels, channels, groups;
  int chunk_pixels;       // of a chunk of moments or sums
  int span, tile_pixels;  // groups and pixels of a block of the two that write images
  int silu;
  float eps;
};
SPEC_LAYOUT(GroupNormSpec, pixels, channels, groups, chunk_pixels, span, tile_pixels, silu, eps)

namespace {

constexpr int MAX_SPAN = 64;

// Mean and 1 / sqrt(variance + eps) of the group whose first channel `moments` points to; all lanes of a warp come.
__device__ __forceinline__ float2 group_stats(const float2* __restrict__ moments, const GroupNormSpec& s) {
  const int cg = s.channels / s.groups, chunks = (s.pixels + s.chunk_pixels - 1) / s.chunk_pixels;
  const float all = static_cast<float>(s.pixels) * cg;
  float sum = 0.f, squares = 0.f;
  for (int i = threadIdx.x % 32; i < chunks * cg; i += 32) {
    const float2 m = moments[static_cast<size_t>(i / cg) * s.channels + i % cg];
    sum = fmaf(static_cast<float>(dev::chunk_rows(i / cg, s.chunk_pixels, s.pixels).count), m.x, sum);
  }
  const float mean = dev::warp_sum(sum) / all;
  for (int i = threadIdx.x % 32; i < chunks * cg; i += 32) {
    const float2 m = moments[static_cast<size_t>(i / cg) * s.channels + i % cg];
    const float count = static_cast<float>(dev::chunk_rows(i / cg, s.chunk_pixels, s.pixels).count), d = m.x - mean;
    squares += fmaf(count * d, d, m.y);
  }
  return make_float2(mean, rsqrtf(dev::warp_sum(squares) / all + s.eps));
}

// The sum over a group's channels and chunks of weight times what is given of them; all lanes of a warp come.
template <class T> __device__ __forceinline__ float group_sum(const float* __restrict__ sums, const T* __restrict__ weight, const GroupNormSpec& s) {
  const int cg = s.channels / s.groups, chunks = (s.pixels + s.chunk_pixels - 1) / s.chunk_pixels;
  float sum = 0.f;
  for (int i = threadIdx.x % 32; i < chunks * cg; i += 32)
    sum = fmaf(dev::to_f32(weight[i % cg]), sums[static_cast<size_t>(i / cg) * s.channels + i % cg], sum);
  return dev::warp_sum(sum);
}

// du from dy and u.
__device__ __forceinline__ float inner(float dy, float u, int silu) {
  if (!silu) return dy;
  const float p = 1.f / (1.f + expf(-u));
  return dy * p * (1.f + u * (1.f - p));
}

template <class T>
__device__ __forceinline__ void moments(const T* __restrict__ x, float2* __restrict__ out, const GroupNormSpec& s) {
  dev::grid_begin();
  const dev::Rows rows = dev::chunk_rows(blockIdx.y, s.chunk_pixels, s.pixels);
  float2 m;
  if (dev::column_moments(m, x + (static_cast<size_t>(blockIdx.z) * s.pixels + rows.first) * s.channels, rows.count, s.channels))
    out[(static_cast<size_t>(blockIdx.z) * gridDim.y + blockIdx.y) * s.channels + blockIdx.x * 32 + threadIdx.x] = m;
}

// V elements at a time: the channels of a group may be fewer, those of the block are a multiple of V.
template <int V, class T>
__device__ __forceinline__ void write_tile(const T* __restrict__ x, const T* __restrict__ weight, const T* __restrict__ bias,
                                           T* __restrict__ y, const float2* stats, int width, int count, const GroupNormSpec& s) {
  const int cg = s.channels / s.groups;
  for (int i = threadIdx.x * V; i < width * count; i += 256 * V) {
    const int c = i % width;
    const size_t at = static_cast<size_t>(i / width) * s.channels + c;
    float v[V], w[V], b[V];
    if constexpr (V > 1) {
      dev::load_vec(x + at, v);
      dev::load_vec(weight + c, w);
      dev::load_vec(bias + c, b);
    } else {
      v[0] = dev::to_f32(x[at]);
      w[0] = dev::to_f32(weight[c]);
      b[0] = dev::to_f32(bias[c]);
    }
#pragma unroll
    for (int e = 0; e < V; ++e) {
      const float2 known = stats[(c + e) / cg];
      v[e] = fmaf((v[e] - known.x) * known.y, w[e], b[e]);
      if (s.silu) v[e] = dev::silu(v[e]);
    }
    if constexpr (V > 1)
      dev::store_vec(y + at, v);
    else
      y[at] = dev::from_f32<T>(v[0]);
  }
}

template <class T>
__device__ __forceinline__ void forward(const T* __restrict__ x, const T* __restrict__ weight, const T* __restrict__ bias,
                                        const float2* __restrict__ moments, T* __restrict__ y, const GroupNormSpec& s) {
  dev::grid_begin();
  __shared__ float2 stats[MAX_SPAN];
  const int cg = s.channels / s.groups, group0 = blockIdx.y * s.span, groups = min(s.span, s.groups - group0);
  const int chunks = (s.pixels + s.chunk_pixels - 1) / s.chunk_pixels, channel0 = group0 * cg;
  moments += static_cast<size_t>(blockIdx.z) * chunks * s.channels + channel0;
  for (int g = threadIdx.x / 32; g < groups; g += 8) {
    const float2 known = group_stats(moments + g * cg, s);
    if (threadIdx.x % 32 == 0) stats[g] = known;
  }
  __syncthreads();
  const dev::Rows tile = dev::chunk_rows(blockIdx.x, s.tile_pixels, s.pixels);
  const size_t first = (static_cast<size_t>(blockIdx.z) * s.pixels + tile.first) * s.channels + channel0;
  x += first;
  y += first;
  weight += channel0;
  bias += channel0;
  const bool whole = (groups * cg | s.channels) % dev::VEC<T> == 0 && dev::aligned16(x, weight, bias, y);
  if (whole)
    write_tile<dev::VEC<T>>(x, weight, bias, y, stats, groups * cg, tile.count, s);
  else
    write_tile<1>(x, weight, bias, y, stats, groups * cg, tile.count, s);
}

template <class T>
__device__ __forceinline__ void sums_backward(const T* __restrict__ x, const T* __restrict__ weight, const T* __restrict__ bias,
                                              const float2* __restrict__ moments, const T* __restrict__ dy, float* __restrict__ dadd,
                                              float* __restrict__ dmul, const GroupNormSpec& s) {
  dev::grid_begin();
  __shared__ float2 stats[33];  // of the groups that this block's 32 channels belong to
  const int cg = s.channels / s.groups, channel0 = blockIdx.x * 32;
  const int group0 = channel0 / cg, groups = (min(channel0 + 32, s.channels) - 1) / cg - group0 + 1;
  moments += static_cast<size_t>(blockIdx.z) * gridDim.y * s.channels + group0 * cg;
  for (int g = threadIdx.x / 32; g < groups; g += 8) {
    const float2 known = group_stats(moments + g * cg, s);
    if (threadIdx.x % 32 == 0) stats[g] = known;
  }
  __syncthreads();
  const dev::Rows rows = dev::chunk_rows(blockIdx.y, s.chunk_pixels, s.pixels);
  const size_t first = (static_cast<size_t>(blockIdx.z) * s.pixels + rows.first) * s.channels;
  float sum[2];
  const bool mine = dev::column_sums(sum, rows.count, s.channels, [&](int row, int c, float(&v)[2]) {
    const size_t at = first + static_cast<size_t>(row) * s.channels + c;
    const float2 known = stats[c / cg - group0];
    const float n = (dev::to_f32(x[at]) - known.x) * known.y;
    const float du = inner(dev::to_f32(dy[at]), fmaf(n, dev::to_f32(weight[c]), dev::to_f32(bias[c])), s.silu);
    v[0] += du;
    v[1] = fmaf(du, n, v[1]);
  });
  if (!mine) return;
  const size_t to = (static_cast<size_t>(blockIdx.z) * gridDim.y + blockIdx.y) * s.channels + channel0 + threadIdx.x;
  dadd[to] = sum[0];
  dmul[to] = sum[1];
}

template <class T>
__device__ __forceinline__ void backward(const T* __restrict__ x, const T* __restrict__ weight, const T* __restrict__ bias,
                                         const float2* __restrict__ moments, const T* __restrict__ dy, const float* __restrict__ dadd,
                                         const float* __restrict__ dmul, T* __restrict__ dx, const GroupNormSpec& s) {
  dev::grid_begin();
  __shared__ float4 stats[MAX_SPAN];  // mean, 1 / deviation, mean(g), mean(g n)
  const int cg = s.channels / s.groups, group0 = blockIdx.y * s.span, groups = min(s.span, s.groups - group0);
  const int chunks = (s.pixels + s.chunk_pixels - 1) / s.chunk_pixels, channel0 = group0 * cg;
  const size_t planes = static_cast<size_t>(blockIdx.z) * chunks * s.channels + channel0;
  const float all = static_cast<float>(s.pixels) * cg;
  for (int g = threadIdx.x / 32; g < groups; g += 8) {
    const float2 known = group_stats(moments + planes + g * cg, s);
    const float mean_g = group_sum(dadd + planes + g * cg, weight + channel0 + g * cg, s) / all;
    const float mean_gn = group_sum(dmul + planes + g * cg, weight + channel0 + g * cg, s) / all;
    if (threadIdx.x % 32 == 0) stats[g] = make_float4(known.x, known.y, mean_g, mean_gn);
  }
  __syncthreads();
  const dev::Rows tile = dev::chunk_rows(blockIdx.x, s.tile_pixels, s.pixels);
  const size_t first = (static_cast<size_t>(blockIdx.z) * s.pixels + tile.first) * s.channels + channel0;
  const int width = groups * cg;
  for (int i = threadIdx.x; i < width * tile.count; i += 256) {
    const int c = i % width;
    const size_t at = first + static_cast<size_t>(i / width) * s.channels + c;
    const float4 known = stats[c / cg];
    const float n = (dev::to_f32(x[at]) - known.x) * known.y, w = dev::to_f32(weight[channel0 + c]);
    const float g = w * inner(dev::to_f32(dy[at]), fmaf(n, w, dev::to_f32(bias[channel0 + c])), s.silu);
    dx[at] = dev::from_f32<T>(known.y * (g - known.z - n * known.w));
  }
}

}  // namespace

#define GROUPNORM_EXPORTS(T, dtype)                                                                                        \
  KERNEL(__launch_bounds__(256) groupnorm_moments_fwd_##dtype)(const T* x, float2* out, GroupNormSpec s) { moments(x, out, s); } \
  KERNEL_EXPORT(groupnorm_moments_fwd_##dtype)                                                                             \
  KERNEL(__launch_bounds__(256, 4) groupnorm_fwd_##dtype)                                                                     \
  (const T* x, const T* weight, const T* bias, const float2* moments, T* y, GroupNormSpec s) {                             \
    forward(x, weight, bias, moments, y, s);                                                                               \
  }                                                                                                                        \
  KERNEL_EXPORT(groupnorm_fwd_##dtype)                                                                                     \
  KERNEL(__launch_bounds__(256) groupnorm_sums_bwd_##dtype)                                                                \
  (const T* x, const T* weight, const T* bias, const float2* moments, const T* dy, float* dadd, float* dmul,               \
   GroupNormSpec s) {                                                                                                      \
    sums_backward(x, weight, bias, moments, dy, dadd, dmul, s);                                                            \
  }                                                                                                                        \
  KERNEL_EXPORT(groupnorm_sums_bwd_##dtype)                                                                                \
  KERNEL(__launch_bounds__(256) groupnorm_bwd_##dtype)                                                                     \
  (const T* x, const T* weight, const T* bias, const float2* moments, const T* dy, const float* dadd, const float* dmul,   \
   T* dx, GroupNormSpec s) {                                                                                               \
    backward(x, weight, bias, moments, dy, dadd, dmul, dx, s);                                                             \
  }                                                                                                                        \
  KERNEL_EXPORT(groupnorm_bwd_##dtype)

GROUPNORM_EXPORTS(float, f32)
GROUPNORM_EXPORTS(__half, f16)
GROUPNORM_EXPORTS(__nv_bfloat16, bf16)
