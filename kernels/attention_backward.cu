// Self-attention for training: the forward pass that leaves the logarithm of each row's sum, and the backward pass, which
// computes the probabilities again from it (FlashAttention-2, Dao 2023, algorithm 2). All write with "=". T in {f32, f16,
// bf16}; everything between load and store is f32 (FMA).
//
//   s = q k^T scale, p = exp(s - lse), o = p v
//   attention_lse_fwd_<dtype>    o, lse = log sum_j exp(s_j)
//   attention_delta_bwd_<dtype>  delta = rowsum(do o)
//   attention_dq_bwd_<dtype>     dq = ds k          with ds = p (do v^T - delta) scale
//   attention_dkv_bwd_<dtype>    dk = ds^T q, dv = p^T do
//
//   qkv, dqkv: [images, tokens, 3, heads, head_dim]; o, do: [images, tokens, heads, head_dim]; lse, delta: [images, heads, tokens]
//
// A block takes 32 rows of one head - queries, in dkv keys - and goes through the other side 32 at a time. Four neighbouring
// threads have one row: eight of its scores each, and every fourth of its columns. No two blocks write the same numbers, and
// each sum has one order.
//
// PRECOND: tokens >= 1; head_dim a multiple of 8 in 32..=128; grid (ceil(tokens/32), heads, images), grid.y and grid.z <= 65535,
//          block 128; dynamic shared memory 4 (128 .. (head_dim + 4) + 2112) bytes for four tiles, in fwd for three. Above
//          48 KiB the host must opt in. attention_delta_bwd: grid ceil(images tokens heads / 4), block 128, none.
#include "reduce.cuh"

struct AttentionBackwardSpec {
  int images, heads, head_dim, tokens;
  float scale;
};
SPEC_LAYOUT(AttentionBackwardSpec, images, heads, head_dim, tokens, scale)

namespace {

constexpr int ROWS = 32, THREADS = 128, PER_ROW = THREADS / ROWS, SCORES = ROWS / PER_ROW, COLUMNS = 128 / PER_ROW;
constexpr int SCORES_LD = ROWS + 1;

// tile[32, head_dim + 4] = src[row0.., 0..head_dim), zero past `rows`; rows of src are `stride` apart.
template <class T>
__device__ __forceinline__ void load_tile(float* tile, const T* __restrict__ src, int row0, int rows, size_t stride, int head_dim) {
  for (int i = threadIdx.x; i < ROWS * head_dim; i += THREADS) {
    const int r = i / head_dim, col = i % head_dim;
    tile[r * (head_dim + 4) + col] = row0 + r < rows ? dev::to_f32(src[(row0 + r) * stride + col]) : 0.f;
  }
}

// This thread's share of a row: columns part, part + 4, ...
struct Share {
  float v[COLUMNS];

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int i = 0; i < COLUMNS; ++i) v[i] = 0.f;
  }
  __device__ __forceinline__ void scale(float by) {
#pragma unroll
    for (int i = 0; i < COLUMNS; ++i) v[i] *= by;
  }
  // += weights[32] . tile[32, ld]
  __device__ __forceinline__ void add(const float* weights, const float* tile, int ld, int part, int head_dim) {
    for (int j = 0; j < ROWS; ++j) {
      const float w = weights[j];
      const float* row = tile + j * ld + part;
#pragma unroll
      for (int i = 0; i < COLUMNS; ++i)
        if (part + i * PER_ROW < head_dim) v[i] = fmaf(w, row[i * PER_ROW], v[i]);
    }
  }
  template <class T> __device__ __forceinline__ void store(T* to, int part, int head_dim) const {
#pragma unroll
    for (int i = 0; i < COLUMNS; ++i)
      if (part + i * PER_ROW < head_dim) to[part + i * PER_ROW] = dev::from_f32<T>(v[i]);
  }
};

// dots[i] = row . tile row (part + 4 i)
__device__ __forceinline__ void multiply(float (&dots)[SCORES], const float* row, const float* tile, int ld, int part, int head_dim) {
#pragma unroll
  for (int i = 0; i < SCORES; ++i) dots[i] = 0.f;
  for (int d = 0; d < head_dim; d += 4) {
    float a[4], b[4];
    dev::load_vec(row + d, a);
#pragma unroll
    for (int i = 0; i < SCORES; ++i) {
      dev::load_vec(tile + (part + i * PER_ROW) * ld + d, b);
#pragma unroll
      for (int e = 0; e < 4; ++e) dots[i] = fmaf(a[e], b[e], dots[i]);
    }
  }
}

// Where this block and thread are, and the operands of its head.
template <class T> struct Place {
  int row0, r, part, ld, side;
  size_t stride, dim;   // from one token to the next, of qkv and of o
  size_t qkv, o, rows;  // of the head's first element, and of its first row of lse and delta

  __device__ __forceinline__ explicit Place(const AttentionBackwardSpec& s)
      : row0(blockIdx.x * ROWS),
        r(threadIdx.x / PER_ROW),
        part(threadIdx.x % PER_ROW),
        ld(s.head_dim + 4),
        side(ROWS * ld),
        stride(static_cast<size_t>(3) * s.heads * s.head_dim),
        dim(static_cast<size_t>(s.heads) * s.head_dim),
        qkv(blockIdx.z * stride * s.tokens + blockIdx.y * s.head_dim),
        o(blockIdx.z * dim * s.tokens + blockIdx.y * s.head_dim),
        rows((static_cast<size_t>(blockIdx.z) * s.heads + blockIdx.y) * s.tokens) {}
};

template <class T>
__device__ __forceinline__ void forward(const T* __restrict__ qkv, T* __restrict__ o, float* __restrict__ lse,
                                        const AttentionBackwardSpec& s) {
  dev::grid_begin();
  DYN_SHARED(float, smem);  // queries, keys, values, probabilities
  const Place<T> at(s);
  float *keys = smem + at.side, *values = keys + at.side, *probs = values + at.side + at.r * SCORES_LD;
  const T *q = qkv + at.qkv, *k = q + at.dim, *v = k + at.dim;
  load_tile(smem, q, at.row0, s.tokens, at.stride, s.head_dim);
  Share acc;
  acc.clear();
  float top = -INFINITY, sum = 0.f;
  for (int first = 0; first < s.tokens; first += ROWS) {
    if (first) __syncthreads();  // the keys and values before have been read
    load_tile(keys, k, first, s.tokens, at.stride, s.head_dim);
    load_tile(values, v, first, s.tokens, at.stride, s.head_dim);
    __syncthreads();  // these are in for all
    float scores[SCORES];
    multiply(scores, smem + at.r * at.ld, keys, at.ld, at.part, s.head_dim);
    float m = top;
#pragma unroll
    for (int i = 0; i < SCORES; ++i) {
      scores[i] = first + at.part + i * PER_ROW < s.tokens ? scores[i] * s.scale : -INFINITY;
      m = fmaxf(m, scores[i]);
    }
    m = dev::warp_max<PER_ROW>(m);
    const float rescale = expf(top - m);
    top = m;
    sum *= rescale;
    acc.scale(rescale);
    __syncwarp();  // the probabilities before have been read
#pragma unroll
    for (int i = 0; i < SCORES; ++i) {
      const float p = expf(scores[i] - m);
      sum += p;
      probs[at.part + i * PER_ROW] = p;
    }
    __syncwarp();  // the row's probabilities are there
    acc.add(probs, values, at.ld, at.part, s.head_dim);
  }
  sum = dev::warp_sum<PER_ROW>(sum);
  if (const int row = at.row0 + at.r; row < s.tokens) {
    acc.scale(1.f / sum);
    acc.store(o + at.o + row * at.dim, at.part, s.head_dim);
    if (at.part == 0) lse[at.rows + row] = top + logf(sum);
  }
}

// One warp per row of one head.
template <class T>
__device__ __forceinline__ void delta_backward(const T* __restrict__ o, const T* __restrict__ d, float* __restrict__ delta,
                                               const AttentionBackwardSpec& s) {
  dev::grid_begin();
  const size_t row = static_cast<size_t>(blockIdx.x) * 4 + threadIdx.x / 32;  // (image, token, head)
  if (row >= static_cast<size_t>(s.images) * s.tokens * s.heads) return;
  float sum = 0.f;
  for (int c = threadIdx.x % 32; c < s.head_dim; c += 32)
    sum = fmaf(dev::to_f32(o[row * s.head_dim + c]), dev::to_f32(d[row * s.head_dim + c]), sum);
  sum = dev::warp_sum(sum);
  const size_t head = row % s.heads, token = row / s.heads % s.tokens, image = row / s.heads / s.tokens;
  if (threadIdx.x % 32 == 0) delta[(image * s.heads + head) * s.tokens + token] = sum;
}

template <class T>
__device__ __forceinline__ void dq_backward(const T* __restrict__ qkv, const T* __restrict__ d, const float* __restrict__ lse,
                                            const float* __restrict__ delta, T* __restrict__ dqkv, const AttentionBackwardSpec& s) {
  dev::grid_begin();
  DYN_SHARED(float, smem);  // queries, gradients of o, keys, values, ds
  const Place<T> at(s);
  float *slopes = smem + at.side, *keys = slopes + at.side, *values = keys + at.side;
  float* ds = values + at.side + at.r * SCORES_LD;
  const T *q = qkv + at.qkv, *k = q + at.dim, *v = k + at.dim;
  load_tile(smem, q, at.row0, s.tokens, at.stride, s.head_dim);
  load_tile(slopes, d + at.o, at.row0, s.tokens, at.dim, s.head_dim);
  const int row = at.row0 + at.r;
  const float row_lse = row < s.tokens ? lse[at.rows + row] : 0.f, row_delta = row < s.tokens ? delta[at.rows + row] : 0.f;
  Share acc;
  acc.clear();
  for (int first = 0; first < s.tokens; first += ROWS) {
    if (first) __syncthreads();  // the keys and values before have been read
    load_tile(keys, k, first, s.tokens, at.stride, s.head_dim);
    load_tile(values, v, first, s.tokens, at.stride, s.head_dim);
    __syncthreads();  // these are in for all
    float scores[SCORES], dp[SCORES];
    multiply(scores, smem + at.r * at.ld, keys, at.ld, at.part, s.head_dim);
    multiply(dp, slopes + at.r * at.ld, values, at.ld, at.part, s.head_dim);
#pragma unroll
    for (int i = 0; i < SCORES; ++i) {
      const bool in = first + at.part + i * PER_ROW < s.tokens;
      ds[at.part + i * PER_ROW] = in ? expf(fmaf(scores[i], s.scale, -row_lse)) * (dp[i] - row_delta) * s.scale : 0.f;
    }
    __syncwarp();  // the row's ds are there
    acc.add(ds, keys, at.ld, at.part, s.head_dim);
  }
  if (row < s.tokens) acc.store(dqkv + at.qkv + row * at.stride, at.part, s.head_dim);
}

template <class T>
__device__ __forceinline__ void dkv_backward(const T* __restrict__ qkv, const T* __restrict__ d, const float* __restrict__ lse,
                                             const float* __restrict__ delta, T* __restrict__ dqkv, const AttentionBackwardSpec& s) {
  dev::grid_begin();
  DYN_SHARED(float, smem);  // keys, values, queries, gradients of o, p^T, ds^T
  const Place<T> at(s);
  float *values = smem + at.side, *queries = values + at.side, *slopes = queries + at.side;
  float *p = slopes + at.side + at.r * SCORES_LD, *ds = p + ROWS * SCORES_LD;
  const T *q = qkv + at.qkv, *k = q + at.dim, *v = k + at.dim;
  load_tile(smem, k, at.row0, s.tokens, at.stride, s.head_dim);
  load_tile(values, v, at.row0, s.tokens, at.stride, s.head_dim);
  Share dk, dv;
  dk.clear();
  dv.clear();
  for (int first = 0; first < s.tokens; first += ROWS) {
    if (first) __syncthreads();  // the queries before have been read
    load_tile(queries, q, first, s.tokens, at.stride, s.head_dim);
    load_tile(slopes, d + at.o, first, s.tokens, at.dim, s.head_dim);
    __syncthreads();  // these are in for all
    float scores[SCORES], dp[SCORES];
    multiply(scores, smem + at.r * at.ld, queries, at.ld, at.part, s.head_dim);
    multiply(dp, values + at.r * at.ld, slopes, at.ld, at.part, s.head_dim);
#pragma unroll
    for (int i = 0; i < SCORES; ++i) {
      const int query = first + at.part + i * PER_ROW;
      const bool in = query < s.tokens;
      const float prob = in ? expf(fmaf(scores[i], s.scale, -lse[at.rows + query])) : 0.f;
      p[at.part + i * PER_ROW] = prob;
      ds[at.part + i * PER_ROW] = in ? prob * (dp[i] - delta[at.rows + query]) * s.scale : 0.f;
    }
    __syncwarp();  // the key's p and ds are there
    dv.add(p, slopes, at.ld, at.part, s.head_dim);
    dk.add(ds, queries, at.ld, at.part, s.head_dim);
  }
  if (const int row = at.row0 + at.r; row < s.tokens) {
    T* to = dqkv + at.qkv + row * at.stride;
    dk.store(to + at.dim, at.part, s.head_dim);
    dv.store(to + 2 * at.dim, at.part, s.head_dim);
  }
}

}  // namespace

#define ATTENTION_BACKWARD_EXPORTS(T, dtype)                                                                                     \
  KERNEL(__launch_bounds__(128) attention_lse_fwd_##dtype)(const T* qkv, T* o, float* lse, AttentionBackwardSpec s) {            \
    forward(qkv, o, lse, s);                                                                                                     \
  }                                                                                                                              \
  KERNEL_EXPORT(attention_lse_fwd_##dtype)                                                                                       \
  KERNEL(__launch_bounds__(128) attention_delta_bwd_##dtype)(const T* o, const T* d, float* delta, AttentionBackwardSpec s) {    \
    delta_backward(o, d, delta, s);                                                                                              \
  }                                                                                                                              \
  KERNEL_EXPORT(attention_delta_bwd_##dtype)                                                                                     \
  KERNEL(__launch_bounds__(128) attention_dq_bwd_##dtype)                                                                        \
  (const T* qkv, const T* d, const float* lse, const float* delta, T* dqkv, AttentionBackwardSpec s) {                           \
    dq_backward(qkv, d, lse, delta, dqkv, s);                                                                                    \
  }                                                                                                                              \
  KERNEL_EXPORT(attention_dq_bwd_##dtype)                                                                                        \
  KERNEL(__launch_bounds__(128) attention_dkv_bwd_##dtype)                                                                       \
  (const T* qkv, const T* d, const float* lse, const float* delta, T* dqkv, AttentionBackwardSpec s) {                           \
    dkv_backward(qkv, d, lse, delta, dqkv, s);                                                                                   \
  }                                                                                                                              \
  KERNEL_EXPORT(attention_dkv_bwd_##dtype)

ATTENTION_BACKWARD_EXPORTS(float, f32)
ATTENTION_BACKWARD_EXPORTS(__half, f16)
ATTENTION_BACKWARD_EXPORTS(__nv_bfloat16, bf16)
