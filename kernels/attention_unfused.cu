// Attention in three launches with the scores in device memory between them, which attention.cu does in one: a plain
// reference for it, and the rung in front of it in `arclet bench --measure ladder`. T in {f32, f16, bf16}, scores, softmax
// and sums in f32. Everything is written with "=".
//
//   attention_scores_fwd_<dtype>:   scores = scale q k^T
//   attention_softmax_fwd_f32:      scores = e^(scores - row maximum) / row sum, in place
//   attention_values_fwd_<dtype>:   o = scores v, the scores rounded to T
//
//   q, k, v, o: as in attention.cu;  scores: [images, heads, q_len, kv_len]
//
// A product is made in tiles of 64 x 64 by four warps of 16 rows, along the sum in steps of 32 whose operands are loaded into
// shared memory, then multiplied; f16 and bf16 on tensor cores.
//
// PRECOND: q_len, kv_len >= 1; head_dim a multiple of 8; strides multiples of 8; q, k, v 16-byte aligned; grid.y = heads and
//          grid.z = images, both <= 65535; block 128.
// PRECOND attention_<scores|values>_fwd_<dtype>: grid.x = ceil(q_len/64) ceil(n/64), n = kv_len or head_dim; dynamic shared
//          memory 10240 bytes, for f32 18432.
// PRECOND attention_softmax_fwd_f32: grid.x = ceil(q_len/4).
#include "mma.cuh"
#include "reduce.cuh"

struct AttentionUnfusedSpec {
  int heads, head_dim;
  int q_len, kv_len;
  int q_stride, kv_stride, out_stride;  // elements from one token to the next
  float scale;
};
SPEC_LAYOUT(AttentionUnfusedSpec, heads, head_dim, q_len, kv_len, q_stride, kv_stride, out_stride, scale)

namespace {

constexpr float LOG2_E = 1.44269504088896341f;
constexpr int THREADS = 128;
constexpr int TILE = 64;
constexpr int STEP = 32;

// Elements from one row of a tile to the next: 16 bytes more than it holds, so that eight rows of one chunk (an ldmatrix, or
// a column of f32) fall on different banks.
template <class T, int COLS> constexpr int LD = COLS + dev::VEC<T>;

// tile[ROWS, COLS] = src[row0.., col0..], zero past `rows` and `cols`, which is a multiple of 8.
template <int ROWS, int COLS, class T>
__device__ __forceinline__ void load_tile(T* tile, const T* __restrict__ src, int stride, int row0, int rows, int col0, int cols) {
  constexpr int CHUNKS = COLS / dev::VEC<T>;
#pragma unroll
  for (int i = 0; i < ROWS * CHUNKS / THREADS; ++i) {
    const int c = threadIdx.x + i * THREADS, r = c / CHUNKS, col = c % CHUNKS * dev::VEC<T>;
    uint4 chunk = make_uint4(0, 0, 0, 0);
    if (row0 + r < rows && col0 + col < cols)
      chunk = *reinterpret_cast<const uint4*>(src + static_cast<size_t>(row0 + r) * stride + col0 + col);
    *reinterpret_cast<uint4*>(tile + r * LD<T, COLS> + col) = chunk;
  }
}

// tile[TILE, STEP] = weights[row0.., col0..] of a matrix [rows, cols] in f32, zero past its ends. A warp loads a row at a time.
template <class T>
__device__ __forceinline__ void load_weights(T* tile, const float* __restrict__ weights, int row0, int rows, int col0, int cols) {
  const int lane = threadIdx.x % 32, col = col0 + lane;
#pragma unroll 4
  for (int r = threadIdx.x / 32; r < TILE; r += THREADS / 32) {
    const bool in = row0 + r < rows && col < cols;
    tile[r * LD<T, STEP> + lane] = dev::from_f32<T>(in ? weights[static_cast<size_t>(row0 + r) * cols + col] : 0.f);
  }
}

// acc[16, 64] of the warp += its rows of a[TILE, STEP] times b: [64, STEP], transposed, or [STEP, 64]. Layout of acc, for f32
// too: see mma.cuh; acc[j] are columns 8 j..8 j + 8.
template <bool TRANSPOSED, class T>
__device__ __forceinline__ void multiply(float (&acc)[8][4], const T* a, const T* b) {
  constexpr int LDB = LD<T, TRANSPOSED ? STEP : TILE>;
  const int lane = threadIdx.x % 32;
  a += threadIdx.x / 32 * 16 * LD<T, STEP>;
  if constexpr (sizeof(T) == 2) {
#pragma unroll
    for (int c = 0; c < STEP / 16; ++c) {
      uint32_t rows[4];
      dev::ldmatrix_x4(rows, a + lane % 16 * LD<T, STEP> + c * 16 + lane / 16 * 8);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        uint32_t cols[4];
        if constexpr (TRANSPOSED)
          dev::ldmatrix_x4(cols, b + (j * 16 + lane % 8 + lane / 16 * 8) * LDB + c * 16 + lane / 8 % 2 * 8);
        else
          dev::ldmatrix_x4_trans(cols, b + (c * 16 + lane % 16) * LDB + j * 16 + lane / 16 * 8);
        dev::mma<T>(acc[2 * j], rows, cols[0], cols[1]);
        dev::mma<T>(acc[2 * j + 1], rows, cols[2], cols[3]);
      }
    }
  } else {
    a += lane / 4 * LD<T, STEP>;
#pragma unroll 2
    for (int k = 0; k < STEP; ++k)
#pragma unroll
      for (int j = 0; j < 8; ++j)
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const int col = j * 8 + lane % 4 * 2 + e % 2;
          acc[j][e] = fmaf(a[e / 2 * 8 * LD<T, STEP> + k], TRANSPOSED ? b[col * LDB + k] : b[k * LDB + col], acc[j][e]);
        }
  }
}

// Which tile of a product of n columns the block makes.
struct Corner {
  int row, col;
  __device__ __forceinline__ explicit Corner(int n) {
    const int across = (n + TILE - 1) / TILE;
    row = blockIdx.x / across * TILE;
    col = blockIdx.x % across * TILE;
  }
};

// Row and column that acc[j][e] of this thread has in the tile.
__device__ __forceinline__ int row_of(int e) { return threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4 + e / 2 * 8; }
__device__ __forceinline__ int col_of(int j, int e) { return j * 8 + threadIdx.x % 4 * 2 + e % 2; }

// The scores of the block's image and head.
template <class Float> __device__ __forceinline__ Float* matrix(Float* scores, const AttentionUnfusedSpec& s) {
  return scores + (static_cast<size_t>(blockIdx.z) * s.heads + blockIdx.y) * s.q_len * s.kv_len;
}

// The first element of the block's image and head in a tensor of `len` tokens.
template <class T> __device__ __forceinline__ T* tokens(T* x, int len, int stride, const AttentionUnfusedSpec& s) {
  return x + static_cast<size_t>(blockIdx.z) * len * stride + static_cast<size_t>(blockIdx.y) * s.head_dim;
}

template <class T>
__device__ __forceinline__ void attention_scores(const T* __restrict__ q, const T* __restrict__ k, float* __restrict__ scores,
                                                 const AttentionUnfusedSpec& s) {
  dev::grid_begin();
  DYN_SHARED(T, queries);
  T* keys = queries + TILE * LD<T, STEP>;
  const Corner at(s.kv_len);
  q = tokens(q, s.q_len, s.q_stride, s);
  k = tokens(k, s.kv_len, s.kv_stride, s);
  float acc[8][4] = {};
  for (int d = 0; d < s.head_dim; d += STEP) {
    load_tile<TILE, STEP>(queries, q, s.q_stride, at.row, s.q_len, d, s.head_dim);
    load_tile<TILE, STEP>(keys, k, s.kv_stride, at.col, s.kv_len, d, s.head_dim);
    __syncthreads();  // both are in
    multiply<true>(acc, queries, keys);
    __syncthreads();  // both have been read
  }
  scores = matrix(scores, s);
#pragma unroll
  for (int j = 0; j < 8; ++j)
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const int row = at.row + row_of(e), col = at.col + col_of(j, e);
      if (row < s.q_len && col < s.kv_len) scores[static_cast<size_t>(row) * s.kv_len + col] = acc[j][e] * s.scale;
    }
}

// A row per warp.
__device__ __forceinline__ void attention_softmax(float* scores, const AttentionUnfusedSpec& s) {
  dev::grid_begin();
  const int row = blockIdx.x * (THREADS / 32) + threadIdx.x / 32, lane = threadIdx.x % 32;
  if (row >= s.q_len) return;
  scores = matrix(scores, s) + static_cast<size_t>(row) * s.kv_len;
  float top = -INFINITY, sum = 0.f;
  for (int c = lane; c < s.kv_len; c += 32) top = fmaxf(top, scores[c]);
  top = dev::warp_max(top);
  for (int c = lane; c < s.kv_len; c += 32) {
    scores[c] = dev::exp2_approx((scores[c] - top) * LOG2_E);
    sum += scores[c];
  }
  const float inverse = 1.f / dev::warp_sum(sum);
  for (int c = lane; c < s.kv_len; c += 32) scores[c] *= inverse;
}

template <class T>
__device__ __forceinline__ void attention_values(const float* __restrict__ scores, const T* __restrict__ v, T* __restrict__ o,
                                                 const AttentionUnfusedSpec& s) {
  dev::grid_begin();
  DYN_SHARED(T, weights);
  T* values = weights + TILE * LD<T, STEP>;
  const Corner at(s.head_dim);
  scores = matrix(scores, s);
  v = tokens(v, s.kv_len, s.kv_stride, s);
  float acc[8][4] = {};
  for (int key = 0; key < s.kv_len; key += STEP) {
    load_weights(weights, scores, at.row, s.q_len, key, s.kv_len);
    load_tile<STEP, TILE>(values, v, s.kv_stride, key, s.kv_len, at.col, s.head_dim);
    __syncthreads();  // both are in
    multiply<false>(acc, weights, values);
    __syncthreads();  // both have been read
  }
  o = tokens(o, s.q_len, s.out_stride, s);
#pragma unroll
  for (int j = 0; j < 8; ++j)
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const int row = at.row + row_of(e), col = at.col + col_of(j, e);
      if (row < s.q_len && col < s.head_dim) o[static_cast<size_t>(row) * s.out_stride + col] = dev::from_f32<T>(acc[j][e]);
    }
}

}  // namespace

KERNEL(__launch_bounds__(128) attention_softmax_fwd_f32)(float* scores, AttentionUnfusedSpec s) { attention_softmax(scores, s); }
KERNEL_EXPORT(attention_softmax_fwd_f32)

#define ATTENTION_UNFUSED_EXPORTS(T, dtype)                              \
  KERNEL(__launch_bounds__(128) attention_scores_fwd_##dtype)            \
  (const T* q, const T* k, float* scores, AttentionUnfusedSpec s) {      \
    attention_scores(q, k, scores, s);                                   \
  }                                                                      \
  KERNEL_EXPORT(attention_scores_fwd_##dtype)                            \
  KERNEL(__launch_bounds__(128) attention_values_fwd_##dtype)            \
  (const float* scores, const T* v, T* o, AttentionUnfusedSpec s) {      \
    attention_values(scores, v, o, s);                                   \
  }                                                                      \
  KERNEL_EXPORT(attention_values_fwd_##dtype)

ATTENTION_UNFUSED_EXPORTS(float, f32)
ATTENTION_UNFUSED_EXPORTS(__half, f16)
ATTENTION_UNFUSED_EXPORTS(__nv_bfloat16, bf16)
