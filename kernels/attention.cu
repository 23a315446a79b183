// Attention: o = softmax(q k^T scale) v per (image, head); self- and cross-attention, T in {f32, f16, bf16}. Writes o with "=".
// One pass over the keys with a running maximum and sum (FlashAttention-2, Dao 2023, algorithm 1), all of it in f32;
// for f16 and bf16 the products run on tensor cores, with the probabilities rounded to T.
//
//   q: [images, q_len,  heads, head_dim], token rows q_stride apart: (b, r, h) starts at (b q_len + r) q_stride + h head_dim
//   k: [images, kv_len, heads, head_dim], token rows kv_stride apart;  v: the same;  o: as q, rows out_stride apart
//   Packed qkv of D = heads head_dim channels: q = base, k = base + D, v = base + 2 D, all strides 3 D.
//
// PRECOND: q_len, kv_len >= 1; head_dim a multiple of 8 in 32..=128; scale > 0; strides multiples of 8; pointers 16-byte
//          aligned; grid.y and grid.z <= 65535; block 128. Above 48 KiB of shared memory the host must opt in.
// PRECOND attention_fwd_<f16|bf16>_hd<P>, P in {32, 48, 64, 80, 96, 112, 128}: head_dim <= P;
//          grid (ceil(q_len/64), heads, images); dynamic shared memory 512 (P + 8) bytes (69632 for P = 128).
//          attention_lse_fwd_<f16|bf16>_hd<P> also leaves lse [images, heads, q_len] = log sum_j exp(score_j), in f32, for the
//          backward pass (attention_backward.cu, where f32's is).
// PRECOND attention_fwd_f32: grid (ceil(q_len/32), heads, images); dynamic shared memory 640 (head_dim + 4) + 4608 bytes
//          (89088 for head_dim 128).
#include "async.cuh"
#include "mma.cuh"
#include "reduce.cuh"

struct AttentionSpec {
  int heads, head_dim;
  int q_len, kv_len;
  int q_stride, kv_stride, out_stride;  // elements from one token to the next
  float scale;
};
SPEC_LAYOUT(AttentionSpec, heads, head_dim, q_len, kv_len, q_stride, kv_stride, out_stride, scale)

namespace {

constexpr float LOG2_E = 1.44269504088896341f;
constexpr int THREADS = 128;

// ---- f16, bf16: 64 queries per block, 16 per warp, 64 keys per step ------------------------------------------------

constexpr int ROWS = 64;

// tile[64, P + 8] = src[row0.., 0..head_dim), zero past `rows` and past head_dim. The row is an odd number of 16-byte
// chunks, so eight rows of one chunk (an ldmatrix) fall on different banks.
template <class T, int P>
__device__ __forceinline__ void load_tile(T* tile, const T* __restrict__ src, int row0, int rows, int stride, int head_dim) {
#pragma unroll
  for (int i = 0; i < ROWS * P / 8 / THREADS; ++i) {
    const int c = threadIdx.x + i * THREADS, r = c / (P / 8), col = c % (P / 8) * 8;
    const bool in = row0 + r < rows && col < head_dim;
    dev::cp_async16(tile + r * (P + 8) + col, in ? src + static_cast<size_t>(row0 + r) * stride + col : src, in ? 16 : 0);
  }
}

// scores[16, 64] of the warp = its 16 queries . keys[64, P]^T. Fragment layout: see mma.cuh; scores[j] are keys 8 j..8 j + 8.
template <class T, int P>
__device__ __forceinline__ void multiply_keys(float (&scores)[8][4], const uint32_t (&queries)[P / 16][4], const T* keys) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int j = 0; j < 8; ++j)
#pragma unroll
    for (int e = 0; e < 4; ++e) scores[j][e] = 0.f;
#pragma unroll
  for (int c = 0; c < P / 16; ++c)
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      uint32_t b[4];
      dev::ldmatrix_x4(b, keys + (j * 16 + lane % 8 + lane / 16 * 8) * (P + 8) + c * 16 + lane / 8 % 2 * 8);
      dev::mma<T>(scores[2 * j], queries[c], b[0], b[1]);
      dev::mma<T>(scores[2 * j + 1], queries[c], b[2], b[3]);
    }
}

// Turns scores into unnormalised probabilities 2^(score scale_log2 - shift), shift the running maximum of the exponents, and
// rescales what was summed under the old one. A thread holds 16 scores of each of two rows; `sum` is its own share, added
// up over the four threads of a row at the end.
template <int N>
__device__ __forceinline__ void online_softmax(float (&scores)[8][4], float (&acc)[N][4], float (&shift)[2], float (&sum)[2],
                                               float scale_log2) {
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    float m = scores[0][2 * h];
#pragma unroll
    for (int j = 0; j < 8; ++j) m = fmaxf(m, fmaxf(scores[j][2 * h], scores[j][2 * h + 1]));
    const float old = shift[h];
    shift[h] = fmaxf(old, dev::warp_max<4>(m) * scale_log2);
    const float rescale = dev::exp2_approx(old - shift[h]);
    sum[h] *= rescale;
#pragma unroll
    for (int j = 0; j < N; ++j) {
      acc[j][2 * h] *= rescale;
      acc[j][2 * h + 1] *= rescale;
    }
#pragma unroll
    for (int j = 0; j < 8; ++j)
#pragma unroll
      for (int e = 2 * h; e < 2 * h + 2; ++e) {
        scores[j][e] = dev::exp2_approx(fmaf(scores[j][e], scale_log2, -shift[h]));
        sum[h] += scores[j][e];
      }
  }
}

// acc[16, P] += probabilities[16, 64] . values[64, P]; the score fragments are the A operand as they stand.
template <class T, int P>
__device__ __forceinline__ void multiply_values(float (&acc)[P / 8][4], const float (&scores)[8][4], const T* values) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int c = 0; c < 4; ++c) {
    const uint32_t a[4] = {dev::pack2<T>(scores[2 * c][0], scores[2 * c][1]), dev::pack2<T>(scores[2 * c][2], scores[2 * c][3]),
                           dev::pack2<T>(scores[2 * c + 1][0], scores[2 * c + 1][1]),
                           dev::pack2<T>(scores[2 * c + 1][2], scores[2 * c + 1][3])};
#pragma unroll
    for (int j = 0; j < P / 16; ++j) {
      uint32_t b[4];
      dev::ldmatrix_x4_trans(b, values + (c * 16 + lane % 16) * (P + 8) + j * 16 + lane / 16 * 8);
      dev::mma<T>(acc[2 * j], a, b[0], b[1]);
      dev::mma<T>(acc[2 * j + 1], a, b[2], b[3]);
    }
  }
}

template <class T, int P>
__device__ __forceinline__ void attention(const T* __restrict__ q, const T* __restrict__ k, const T* __restrict__ v,
                                          T* __restrict__ o, float* __restrict__ lse, const AttentionSpec& s) {
  dev::grid_begin();
  DYN_SHARED(T, smem);  // two stages of (keys, values); the queries pass through the second stage's keys
  constexpr int SIDE = ROWS * (P + 8);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, q0 = blockIdx.x * ROWS;
  const size_t image = blockIdx.z, head = static_cast<size_t>(blockIdx.y) * s.head_dim;
  q += image * s.q_len * s.q_stride + head;
  k += image * s.kv_len * s.kv_stride + head;
  v += image * s.kv_len * s.kv_stride + head;
  o += image * s.q_len * s.out_stride + head;

  load_tile<T, P>(smem + 2 * SIDE, q, q0, s.q_len, s.q_stride, s.head_dim);
  dev::cp_async_commit();
  load_tile<T, P>(smem, k, 0, s.kv_len, s.kv_stride, s.head_dim);
  dev::cp_async_commit();
  load_tile<T, P>(smem + SIDE, v, 0, s.kv_len, s.kv_stride, s.head_dim);
  dev::cp_async_commit();
  dev::cp_async_wait<2>();
  __syncthreads();  // the queries are in
  uint32_t queries[P / 16][4];
#pragma unroll
  for (int c = 0; c < P / 16; ++c)
    dev::ldmatrix_x4(queries[c], smem + 2 * SIDE + (warp * 16 + lane % 16) * (P + 8) + c * 16 + lane / 16 * 8);

  float acc[P / 8][4] = {}, shift[2] = {-INFINITY, -INFINITY}, sum[2] = {0.f, 0.f};
  const float scale_log2 = s.scale * LOG2_E;
  const int tiles = (s.kv_len + ROWS - 1) / ROWS;
  for (int t = 0; t < tiles; ++t) {
    T *keys = smem + t % 2 * 2 * SIDE, *next = smem + (t + 1) % 2 * 2 * SIDE;
    dev::cp_async_wait<1>();
    __syncthreads();  // these keys are in for all; the other stage (queries, or keys and values of t - 1) has been read
    if (t + 1 < tiles) load_tile<T, P>(next, k, (t + 1) * ROWS, s.kv_len, s.kv_stride, s.head_dim);
    dev::cp_async_commit();
    if (t + 1 < tiles) load_tile<T, P>(next + SIDE, v, (t + 1) * ROWS, s.kv_len, s.kv_stride, s.head_dim);
    dev::cp_async_commit();

    float scores[8][4];
    multiply_keys<T, P>(scores, queries, keys);
    if (const int left = s.kv_len - t * ROWS; left < ROWS) {
#pragma unroll
      for (int j = 0; j < 8; ++j)
#pragma unroll
        for (int e = 0; e < 4; ++e)
          if (j * 8 + lane % 4 * 2 + e % 2 >= left) scores[j][e] = -INFINITY;
    }
    online_softmax(scores, acc, shift, sum, scale_log2);
    dev::cp_async_wait<2>();
    __syncthreads();  // these values are in for all
    multiply_values<T, P>(acc, scores, keys + SIDE);
  }

  // o leaves in 16-byte stores through the first stage's keys, which all had read by the last barrier; a warp's 16 rows
  // are its own
  T* out = smem + warp * 16 * (P + 8);
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const float total = dev::warp_sum<4>(sum[h]), inverse = 1.f / total;
    const int row = q0 + warp * 16 + h * 8 + lane / 4;
    if (lse && lane % 4 == 0 && row < s.q_len)
      lse[(image * s.heads + blockIdx.y) * s.q_len + row] = (shift[h] + log2f(total)) / LOG2_E;
#pragma unroll
    for (int j = 0; j < P / 8; ++j)
      *reinterpret_cast<uint32_t*>(out + (h * 8 + lane / 4) * (P + 8) + j * 8 + lane % 4 * 2) =
          dev::pack2<T>(acc[j][2 * h] * inverse, acc[j][2 * h + 1] * inverse);
  }
  __syncwarp();
#pragma unroll
  for (int i = 0; i < P / 16; ++i) {
    const int c = lane + i * 32, r = c / (P / 8), col = c % (P / 8) * 8, row = q0 + warp * 16 + r;
    if (row < s.q_len && col < s.head_dim)
      *reinterpret_cast<uint4*>(o + static_cast<size_t>(row) * s.out_stride + col) =
          *reinterpret_cast<const uint4*>(out + r * (P + 8) + col);
  }
}

// ---- f32: 32 queries per block, 8 per warp, 32 keys per step -------------------------------------------------------
// A thread computes 4 queries (its half warp's) x 2 keys of the scores, then 4 queries x 8 columns of o.

constexpr int ROWS_F32 = 32;
constexpr int PROBS_LD = ROWS_F32 + 4;  // puts the two half warps' rows on different banks

// tile[32, head_dim + 4] = src[row0.., 0..head_dim), zero past `rows`. A warp copies a row at a time.
__device__ __forceinline__ void load_tile_f32(float* tile, const float* __restrict__ src, int row0, int rows, int stride,
                                              int head_dim) {
  const int col = threadIdx.x % 32 * 4;
  if (col >= head_dim) return;
#pragma unroll
  for (int i = 0; i < ROWS_F32 / 4; ++i) {
    const int r = threadIdx.x / 32 + i * 4;
    const bool in = row0 + r < rows;
    dev::cp_async16(tile + r * (head_dim + 4) + col, in ? src + static_cast<size_t>(row0 + r) * stride + col : src, in ? 16 : 0);
  }
}

__device__ __forceinline__ void attention_f32(const float* __restrict__ q, const float* __restrict__ k,
                                              const float* __restrict__ v, float* __restrict__ o, const AttentionSpec& s) {
  dev::grid_begin();
  DYN_SHARED(float, smem);  // queries; two stages of (keys, values); probabilities, 8 rows per warp
  const int ld = s.head_dim + 4, side = ROWS_F32 * ld;
  const int warp = threadIdx.x / 32, half = threadIdx.x % 32 / 16, lane = threadIdx.x % 16, q0 = blockIdx.x * ROWS_F32;
  const size_t image = blockIdx.z, head = static_cast<size_t>(blockIdx.y) * s.head_dim;
  q += image * s.q_len * s.q_stride + head;
  k += image * s.kv_len * s.kv_stride + head;
  v += image * s.kv_len * s.kv_stride + head;
  o += image * s.q_len * s.out_stride + head;
  float* stages = smem + side;
  float* probs = stages + 4 * side + (warp * 8 + half * 4) * PROBS_LD;
  const float* queries = smem + (warp * 8 + half * 4) * ld;

  load_tile_f32(smem, q, q0, s.q_len, s.q_stride, s.head_dim);
  load_tile_f32(stages, k, 0, s.kv_len, s.kv_stride, s.head_dim);
  dev::cp_async_commit();
  load_tile_f32(stages + side, v, 0, s.kv_len, s.kv_stride, s.head_dim);
  dev::cp_async_commit();

  float acc[4][2][4] = {}, maximum[4], sum[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    maximum[i] = -INFINITY;
    sum[i] = 0.f;
  }
  const float scale_log2 = s.scale * LOG2_E;
  const int tiles = (s.kv_len + ROWS_F32 - 1) / ROWS_F32;
  for (int t = 0; t < tiles; ++t) {
    float *keys = stages + t % 2 * 2 * side, *next = stages + (t + 1) % 2 * 2 * side;
    dev::cp_async_wait<1>();
    __syncthreads();  // these keys are in for all; the other stage and the probabilities of t - 1 have been read
    if (t + 1 < tiles) load_tile_f32(next, k, (t + 1) * ROWS_F32, s.kv_len, s.kv_stride, s.head_dim);
    dev::cp_async_commit();
    if (t + 1 < tiles) load_tile_f32(next + side, v, (t + 1) * ROWS_F32, s.kv_len, s.kv_stride, s.head_dim);
    dev::cp_async_commit();

    float scores[4][2] = {};
#pragma unroll 2
    for (int d = 0; d < s.head_dim; d += 4) {
      float a[4][4], b[2][4];
#pragma unroll
      for (int i = 0; i < 4; ++i) dev::load_vec(queries + i * ld + d, a[i]);
#pragma unroll
      for (int j = 0; j < 2; ++j) dev::load_vec(keys + (lane + 16 * j) * ld + d, b[j]);
#pragma unroll
      for (int e = 0; e < 4; ++e)
#pragma unroll
        for (int i = 0; i < 4; ++i)
#pragma unroll
          for (int j = 0; j < 2; ++j) scores[i][j] = fmaf(a[i][e], b[j][e], scores[i][j]);
    }
    const int left = s.kv_len - t * ROWS_F32;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (lane >= left) scores[i][0] = -INFINITY;
      if (lane + 16 >= left) scores[i][1] = -INFINITY;
      const float m = dev::warp_max<16>(fmaxf(maximum[i], fmaxf(scores[i][0], scores[i][1])));
      const float rescale = dev::exp2_approx((maximum[i] - m) * scale_log2);
      maximum[i] = m;
      sum[i] *= rescale;
#pragma unroll
      for (int c = 0; c < 2; ++c)
#pragma unroll
        for (int e = 0; e < 4; ++e) acc[i][c][e] *= rescale;
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const float p = dev::exp2_approx((scores[i][j] - m) * scale_log2);
        sum[i] += p;
        probs[i * PROBS_LD + lane + 16 * j] = p;
      }
    }
    dev::cp_async_wait<2>();
    __syncthreads();  // these values are in for all, and the warp's probabilities

    const float* values = keys + side + lane * 4;
#pragma unroll 2
    for (int key = 0; key < ROWS_F32; key += 4) {
      float p[4][4];
#pragma unroll
      for (int i = 0; i < 4; ++i) dev::load_vec(probs + i * PROBS_LD + key, p[i]);
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        if (lane * 4 + c * 64 >= s.head_dim) continue;
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          float row[4];
          dev::load_vec(values + (key + e) * ld + c * 64, row);
#pragma unroll
          for (int i = 0; i < 4; ++i)
#pragma unroll
            for (int f = 0; f < 4; ++f) acc[i][c][f] = fmaf(p[i][e], row[f], acc[i][c][f]);
        }
      }
    }
  }

#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float inverse = 1.f / dev::warp_sum<16>(sum[i]);
    const int row = q0 + warp * 8 + half * 4 + i;
    if (row >= s.q_len) continue;
    float* to = o + static_cast<size_t>(row) * s.out_stride + lane * 4;
#pragma unroll
    for (int c = 0; c < 2; ++c) {
#pragma unroll
      for (int e = 0; e < 4; ++e) acc[i][c][e] *= inverse;
      if (lane * 4 + c * 64 < s.head_dim) dev::store_vec(to + c * 64, acc[i][c]);
    }
  }
}

}  // namespace

KERNEL(__launch_bounds__(128, 2) attention_fwd_f32)
(const float* q, const float* k, const float* v, float* o, AttentionSpec s) { attention_f32(q, k, v, o, s); }
KERNEL_EXPORT(attention_fwd_f32)

// Blocks per multiprocessor: as many as the registers allow without spills.
#define ATTENTION_EXPORT(T, dtype, P)                                 \
  KERNEL(__launch_bounds__(128, P <= 48 ? 4 : P <= 80 ? 3 : 2) attention_fwd_##dtype##_hd##P) \
  (const T* q, const T* k, const T* v, T* o, AttentionSpec s) {       \
    attention<T, P>(q, k, v, o, nullptr, s);                          \
  }                                                                   \
  KERNEL_EXPORT(attention_fwd_##dtype##_hd##P)                        \
  KERNEL(__launch_bounds__(128, P <= 48 ? 4 : P <= 80 ? 3 : 2) attention_lse_fwd_##dtype##_hd##P) \
  (const T* q, const T* k, const T* v, T* o, float* lse, AttentionSpec s) { \
    attention<T, P>(q, k, v, o, lse, s);                              \
  }                                                                   \
  KERNEL_EXPORT(attention_lse_fwd_##dtype##_hd##P)

#define ATTENTION_EXPORTS(T, dtype) \
  ATTENTION_EXPORT(T, dtype, 32)    \
  ATTENTION_EXPORT(T, dtype, 48)    \
  ATTENTION_EXPORT(T, dtype, 64)    \
  ATTENTION_EXPORT(T, dtype, 80)    \
  ATTENTION_EXPORT(T, dtype, 96)    \
  ATTENTION_EXPORT(T, dtype, 112)   \
  ATTENTION_EXPORT(T, dtype, 128)

ATTENTION_EXPORTS(__half, f16)
ATTENTION_EXPORTS(__nv_bfloat16, bf16)
