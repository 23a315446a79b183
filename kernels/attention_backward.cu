// Backward of self-attention, which computes the probabilities again from the logarithm of each row's sum that the forward
// pass left (FlashAttention-2, Dao 2023, algorithm 2), and the forward pass that leaves it in f32 (for f16 and bf16:
// attention.cu). All write with "=". Sums are f32; f16 and bf16 multiply on tensor cores, with p and ds rounded to T.
//
//   s = q k^T scale, p = exp(s - lse), o = p v
//   attention_lse_fwd_f32                     o, lse = log sum_j exp(s_j)
//   attention_delta_bwd_<dtype>               delta = rowsum(do o)
//   attention_dq_bwd_<f32 | dtype_hdP>        dq = ds k          with ds = p (do v^T - delta) scale
//   attention_dkv_bwd_<f32 | dtype_hdP>       dk = ds^T q, dv = p^T do
//
//   qkv, dqkv: [images, tokens, 3, heads, head_dim]; o, do: [images, tokens, heads, head_dim]; lse, delta: [images, heads, tokens]
//
// A block takes rows of one head - queries, in dkv keys - and goes through the other side tile by tile. No two blocks write
// the same numbers, and each sum has one order.
//
// PRECOND: tokens >= 1; head_dim a multiple of 8 in 32..=128; scale > 0; pointers 16-byte aligned; grid.y and grid.z <= 65535;
//          block 128. Above 48 KiB of shared memory the host must opt in.
// PRECOND attention_lse_fwd_f32, .._dq_bwd_f32, .._dkv_bwd_f32: grid (ceil(tokens/32), heads, images); dynamic shared memory
//          512 (head_dim + 4) + 8448 bytes, in fwd 384 (head_dim + 4) + 8448.
// PRECOND .._<f16|bf16>_hd<P>, P in {32, 64, 96, 128}: head_dim <= P; grid (ceil(tokens/64), heads, images); dynamic shared
//          memory 512 (P + 8) + 512 bytes.
// PRECOND attention_delta_bwd: grid ceil(images tokens heads / 4), no dynamic shared memory.
#include "async.cuh"
#include "mma.cuh"
#include "reduce.cuh"

struct AttentionBackwardSpec {
  int images, heads, head_dim, tokens;
  float scale;
};
SPEC_LAYOUT(AttentionBackwardSpec, images, heads, head_dim, tokens, scale)

namespace {

// ---- f32: 32 rows per block, 32 of the other side per step ------------------------------------------------------------
// Four neighbouring threads have one row: eight of its scores each, and every fourth of its columns.

constexpr int ROWS = 32, THREADS = 128, PER_ROW = THREADS / ROWS, SCORES = ROWS / PER_ROW, COLUMNS = 128 / PER_ROW;
constexpr int SCORES_LD = ROWS + 1;

// tile[32, head_dim + 4] = src[row0.., 0..head_dim), zero past `rows`; rows of src are `stride` apart.
__device__ __forceinline__ void load_tile(float* tile, const float* __restrict__ src, int row0, int rows, size_t stride, int head_dim) {
  for (int i = threadIdx.x; i < ROWS * head_dim; i += THREADS) {
    const int r = i / head_dim, col = i % head_dim;
    tile[r * (head_dim + 4) + col] = row0 + r < rows ? src[(row0 + r) * stride + col] : 0.f;
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
  __device__ __forceinline__ void store(float* to, int part, int head_dim) const {
#pragma unroll
    for (int i = 0; i < COLUMNS; ++i)
      if (part + i * PER_ROW < head_dim) to[part + i * PER_ROW] = v[i];
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
struct Place {
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

__device__ __forceinline__ void forward(const float* __restrict__ qkv, float* __restrict__ o, float* __restrict__ lse,
                                        const AttentionBackwardSpec& s) {
  dev::grid_begin();
  DYN_SHARED(float, smem);  // queries, keys, values, probabilities
  const Place at(s);
  float *keys = smem + at.side, *values = keys + at.side, *probs = values + at.side + at.r * SCORES_LD;
  const float *q = qkv + at.qkv, *k = q + at.dim, *v = k + at.dim;
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

__device__ __forceinline__ void dq_backward(const float* __restrict__ qkv, const float* __restrict__ d, const float* __restrict__ lse,
                                            const float* __restrict__ delta, float* __restrict__ dqkv, const AttentionBackwardSpec& s) {
  dev::grid_begin();
  DYN_SHARED(float, smem);  // queries, gradients of o, keys, values, ds
  const Place at(s);
  float *slopes = smem + at.side, *keys = slopes + at.side, *values = keys + at.side;
  float* ds = values + at.side + at.r * SCORES_LD;
  const float *q = qkv + at.qkv, *k = q + at.dim, *v = k + at.dim;
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

__device__ __forceinline__ void dkv_backward(const float* __restrict__ qkv, const float* __restrict__ d, const float* __restrict__ lse,
                                             const float* __restrict__ delta, float* __restrict__ dqkv, const AttentionBackwardSpec& s) {
  dev::grid_begin();
  DYN_SHARED(float, smem);  // keys, values, queries, gradients of o, p^T, ds^T
  const Place at(s);
  float *values = smem + at.side, *queries = values + at.side, *slopes = queries + at.side;
  float *p = slopes + at.side + at.r * SCORES_LD, *ds = p + ROWS * SCORES_LD;
  const float *q = qkv + at.qkv, *k = q + at.dim, *v = k + at.dim;
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
    float* to = dqkv + at.qkv + row * at.stride;
    dk.store(to + at.dim, at.part, s.head_dim);
    dv.store(to + 2 * at.dim, at.part, s.head_dim);
  }
}

// ---- f16, bf16: 64 rows per block, 16 per warp, 64 of the other side per step -----------------------------------------
// Fragment layout: see mma.cuh; element e of fragment j is row lane / 4 + e / 2 * 8, column 8 j + lane % 4 * 2 + e % 2.

constexpr int TILE = 64;
constexpr float LOG2_E = 1.44269504088896341f;

// tile[64, P + 8] = src[row0.., 0..head_dim), zero past `rows` and past head_dim; rows of src are `stride` apart. The row is an
// odd number of 16-byte chunks, so eight rows of one chunk (an ldmatrix) fall on different banks.
template <class T, int P>
__device__ __forceinline__ void copy_tile(T* tile, const T* __restrict__ src, int row0, int rows, size_t stride, int head_dim) {
#pragma unroll
  for (int i = 0; i < TILE * P / 8 / THREADS; ++i) {
    const int c = threadIdx.x + i * THREADS, r = c / (P / 8), col = c % (P / 8) * 8;
    const bool in = row0 + r < rows && col < head_dim;
    dev::cp_async16(tile + r * (P + 8) + col, in ? src + (row0 + r) * stride + col : src, in ? 16 : 0);
  }
}

// dots[16, 8 J] = a[16, P] . b[8 J, P]^T
template <class T, int P, int J> __device__ __forceinline__ void multiply_rows(float (&dots)[J][4], const T* a, const T* b) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int j = 0; j < J; ++j)
#pragma unroll
    for (int e = 0; e < 4; ++e) dots[j][e] = 0.f;
#pragma unroll 2  // more are too many registers
  for (int c = 0; c < P / 16; ++c) {
    uint32_t fa[4];
    dev::ldmatrix_x4(fa, a + lane % 16 * (P + 8) + c * 16 + lane / 16 * 8);
#pragma unroll
    for (int j = 0; j < J / 2; ++j) {
      uint32_t fb[4];
      dev::ldmatrix_x4(fb, b + (j * 16 + lane % 8 + lane / 16 * 8) * (P + 8) + c * 16 + lane / 8 % 2 * 8);
      dev::mma<T>(dots[2 * j], fa, fb[0], fb[1]);
      dev::mma<T>(dots[2 * j + 1], fa, fb[2], fb[3]);
    }
  }
}

// acc[16, P] += weights[16, 8 J] . b[8 J, P]; the fragments of the weights are the A operand as they stand.
template <class T, int P, int J>
__device__ __forceinline__ void add_weighted(float (&acc)[P / 8][4], const float (&weights)[J][4], const T* b) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int c = 0; c < J / 2; ++c) {
    const uint32_t a[4] = {dev::pack2<T>(weights[2 * c][0], weights[2 * c][1]), dev::pack2<T>(weights[2 * c][2], weights[2 * c][3]),
                           dev::pack2<T>(weights[2 * c + 1][0], weights[2 * c + 1][1]),
                           dev::pack2<T>(weights[2 * c + 1][2], weights[2 * c + 1][3])};
#pragma unroll
    for (int j = 0; j < P / 16; ++j) {
      uint32_t fb[4];
      dev::ldmatrix_x4_trans(fb, b + (c * 16 + lane % 16) * (P + 8) + j * 16 + lane / 16 * 8);
      dev::mma<T>(acc[2 * j], a, fb[0], fb[1]);
      dev::mma<T>(acc[2 * j + 1], a, fb[2], fb[3]);
    }
  }
}

// to[row0.., 0..head_dim) = the warp's acc[16, P], rows `stride` apart.
template <class T, int P>
__device__ __forceinline__ void store_rows(T* to, const float (&acc)[P / 8][4], int row0, int rows, size_t stride, int head_dim) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int j = 0; j < P / 8; ++j)
#pragma unroll
    for (int h = 0; h < 2; ++h)
      if (const int row = row0 + lane / 4 + h * 8, col = j * 8 + lane % 4 * 2; row < rows && col < head_dim)
        *reinterpret_cast<uint32_t*>(to + row * stride + col) = dev::pack2<T>(acc[j][2 * h], acc[j][2 * h + 1]);
}

template <class T, int P>
__device__ __forceinline__ void dq_tiles(const T* __restrict__ qkv, const T* __restrict__ d, const float* __restrict__ lse,
                                         const float* __restrict__ delta, T* __restrict__ dqkv, const AttentionBackwardSpec& s) {
  dev::grid_begin();
  DYN_SHARED(T, smem);  // queries, gradients of o, keys, values
  constexpr int SIDE = TILE * (P + 8);
  const Place at(s);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, q0 = blockIdx.x * TILE, own = warp * 16 * (P + 8);
  T *keys = smem + 2 * SIDE, *values = smem + 3 * SIDE;
  const T *q = qkv + at.qkv, *k = q + at.dim, *v = k + at.dim;
  copy_tile<T, P>(smem, q, q0, s.tokens, at.stride, s.head_dim);
  copy_tile<T, P>(smem + SIDE, d + at.o, q0, s.tokens, at.dim, s.head_dim);
  float row_lse[2], row_delta[2];
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const int row = q0 + warp * 16 + lane / 4 + h * 8;
    row_lse[h] = row < s.tokens ? lse[at.rows + row] * LOG2_E : 0.f;
    row_delta[h] = row < s.tokens ? delta[at.rows + row] : 0.f;
  }
  const float scale_log2 = s.scale * LOG2_E;
  float acc[P / 8][4] = {};
  for (int first = 0; first < s.tokens; first += TILE) {
    if (first) __syncthreads();  // the keys and values before have been read
    copy_tile<T, P>(keys, k, first, s.tokens, at.stride, s.head_dim);
    copy_tile<T, P>(values, v, first, s.tokens, at.stride, s.head_dim);
    dev::cp_async_commit();
    dev::cp_async_wait<0>();
    __syncthreads();  // these are in for all
    float scores[8][4], ds[8][4];
    multiply_rows<T, P>(scores, smem + own, keys);
    multiply_rows<T, P>(ds, smem + SIDE + own, values);
#pragma unroll
    for (int j = 0; j < 8; ++j)
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const float p = dev::exp2_approx(fmaf(scores[j][e], scale_log2, -row_lse[e / 2]));
        const bool in = first + j * 8 + lane % 4 * 2 + e % 2 < s.tokens;
        ds[j][e] = in ? p * (ds[j][e] - row_delta[e / 2]) * s.scale : 0.f;
      }
    add_weighted<T, P>(acc, ds, keys);
  }
  store_rows<T, P>(dqkv + at.qkv, acc, q0 + warp * 16, s.tokens, at.stride, s.head_dim);
}

template <class T, int P>
__device__ __forceinline__ void dkv_tiles(const T* __restrict__ qkv, const T* __restrict__ d, const float* __restrict__ lse,
                                          const float* __restrict__ delta, T* __restrict__ dqkv, const AttentionBackwardSpec& s) {
  dev::grid_begin();
  DYN_SHARED(T, smem);  // keys, values, queries, gradients of o; lse and delta of the queries
  constexpr int SIDE = TILE * (P + 8);
  const Place at(s);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, k0 = blockIdx.x * TILE, own = warp * 16 * (P + 8);
  T *queries = smem + 2 * SIDE, *slopes = smem + 3 * SIDE;
  float *tile_lse = reinterpret_cast<float*>(smem + 4 * SIDE), *tile_delta = tile_lse + TILE;
  const T *q = qkv + at.qkv, *k = q + at.dim, *v = k + at.dim;
  copy_tile<T, P>(smem, k, k0, s.tokens, at.stride, s.head_dim);
  copy_tile<T, P>(smem + SIDE, v, k0, s.tokens, at.stride, s.head_dim);
  const float scale_log2 = s.scale * LOG2_E;
  float dk[P / 8][4] = {}, dv[P / 8][4] = {};
  for (int first = 0; first < s.tokens; first += TILE) {
    if (first) __syncthreads();  // the queries before have been read
    copy_tile<T, P>(queries, q, first, s.tokens, at.stride, s.head_dim);
    copy_tile<T, P>(slopes, d + at.o, first, s.tokens, at.dim, s.head_dim);
    dev::cp_async_commit();
    if (const int row = threadIdx.x; row < TILE) {
      const bool in = first + row < s.tokens;
      // Behind the last query p is 2^-inf, and ds with it 0.
      tile_lse[row] = in ? lse[at.rows + first + row] * LOG2_E : INFINITY;
      tile_delta[row] = in ? delta[at.rows + first + row] : 0.f;
    }
    dev::cp_async_wait<0>();
    __syncthreads();  // these are in for all
    constexpr int J = P > 96 ? 4 : 8;  // queries at a time, by eights: all 64 are too many registers for long heads
#pragma unroll 1
    for (int at_query = 0; at_query < TILE; at_query += 8 * J) {
      const T *some = queries + at_query * (P + 8), *some_slopes = slopes + at_query * (P + 8);
      const int query = at_query + lane % 4 * 2;
      float p[J][4], ds[J][4];
      multiply_rows<T, P>(p, smem + own, some);
#pragma unroll
      for (int j = 0; j < J; ++j)
#pragma unroll
        for (int e = 0; e < 4; ++e) p[j][e] = dev::exp2_approx(fmaf(p[j][e], scale_log2, -tile_lse[query + j * 8 + e % 2]));
      add_weighted<T, P>(dv, p, some_slopes);
      multiply_rows<T, P>(ds, smem + SIDE + own, some_slopes);
#pragma unroll
      for (int j = 0; j < J; ++j)
#pragma unroll
        for (int e = 0; e < 4; ++e) ds[j][e] = p[j][e] * (ds[j][e] - tile_delta[query + j * 8 + e % 2]) * s.scale;
      add_weighted<T, P>(dk, ds, some);
    }
  }
  store_rows<T, P>(dqkv + at.qkv + at.dim, dk, k0 + warp * 16, s.tokens, at.stride, s.head_dim);
  store_rows<T, P>(dqkv + at.qkv + 2 * at.dim, dv, k0 + warp * 16, s.tokens, at.stride, s.head_dim);
}

}  // namespace

KERNEL(__launch_bounds__(128, 2) attention_lse_fwd_f32)(const float* qkv, float* o, float* lse, AttentionBackwardSpec s) {
  forward(qkv, o, lse, s);
}
KERNEL_EXPORT(attention_lse_fwd_f32)
KERNEL(__launch_bounds__(128) attention_dq_bwd_f32)
(const float* qkv, const float* d, const float* lse, const float* delta, float* dqkv, AttentionBackwardSpec s) {
  dq_backward(qkv, d, lse, delta, dqkv, s);
}
KERNEL_EXPORT(attention_dq_bwd_f32)
KERNEL(__launch_bounds__(128) attention_dkv_bwd_f32)
(const float* qkv, const float* d, const float* lse, const float* delta, float* dqkv, AttentionBackwardSpec s) {
  dkv_backward(qkv, d, lse, delta, dqkv, s);
}
KERNEL_EXPORT(attention_dkv_bwd_f32)

#define ATTENTION_DELTA_EXPORT(T, dtype)                                                                                        \
  KERNEL(__launch_bounds__(128) attention_delta_bwd_##dtype)(const T* o, const T* d, float* delta, AttentionBackwardSpec s) {    \
    delta_backward(o, d, delta, s);                                                                                              \
  }                                                                                                                              \
  KERNEL_EXPORT(attention_delta_bwd_##dtype)

#define ATTENTION_BACKWARD_EXPORT(T, dtype, P)                                                                                  \
  KERNEL(__launch_bounds__(128, 2) attention_dq_bwd_##dtype##_hd##P)                                                             \
  (const T* qkv, const T* d, const float* lse, const float* delta, T* dqkv, AttentionBackwardSpec s) {                           \
    dq_tiles<T, P>(qkv, d, lse, delta, dqkv, s);                                                                                 \
  }                                                                                                                              \
  KERNEL_EXPORT(attention_dq_bwd_##dtype##_hd##P)                                                                                \
  KERNEL(__launch_bounds__(128, 2) attention_dkv_bwd_##dtype##_hd##P)                                                            \
  (const T* qkv, const T* d, const float* lse, const float* delta, T* dqkv, AttentionBackwardSpec s) {                           \
    dkv_tiles<T, P>(qkv, d, lse, delta, dqkv, s);                                                                                \
  }                                                                                                                              \
  KERNEL_EXPORT(attention_dkv_bwd_##dtype##_hd##P)

#define ATTENTION_BACKWARD_EXPORTS(T, dtype) \
  ATTENTION_DELTA_EXPORT(T, dtype)           \
  ATTENTION_BACKWARD_EXPORT(T, dtype, 32)    \
  ATTENTION_BACKWARD_EXPORT(T, dtype, 64)    \
  ATTENTION_BACKWARD_EXPORT(T, dtype, 96)    \
  ATTENTION_BACKWARD_EXPORT(T, dtype, 128)

ATTENTION_DELTA_EXPORT(float, f32)
ATTENTION_BACKWARD_EXPORTS(__half, f16)
ATTENTION_BACKWARD_EXPORTS(__nv_bfloat16, bf16)
