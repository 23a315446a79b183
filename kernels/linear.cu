// Linear layer with its epilogue fused: y[M,N] = epilogue(x[M,K] . w[N,K]^T), T in {f32, f16, bf16}.
//
//   acc = sum_k x[m,k] w[n,k]                                      f32
//   v   = act(acc + bias[n])                                       act: 0 none, 1 GELU (erf), 2 GELU (tanh), 3 SiLU
//   y   = v                                                        residual 0
//   y   = res[m % residual_rows, n] + v                            residual 1
//   y   = res[m % residual_rows, n] + gate[b, n] v                 residual 2; b = m / rows_per_gate, adaLN (Peebles & Xie 2023)
//
// linear_fwd_<dtype>         writes y with "=" (splits == 1), or raw f32 sums to partial[z] with "=" (splits > 1).
// linear_reduce_fwd_<dtype>  writes y with "=" from partial[0] + partial[1] + ..., in that order.
// y may be res itself (the same pointer, residual_rows >= m): each element is read and written by one thread.
//
// f16, bf16: tensor cores (mma.m16n8k16), 4 warps of 32x32 each. f32: FMA, never TF32, 4x4 per thread.
// Every output is summed over k in one fixed order, whatever M and N are.
//
// PRECOND linear_fwd: grid (ceil(n/64), ceil(m/64), splits), grid.y and grid.z <= 65535;
//                     block 128 (f16, bf16) or 256 (f32); dynamic shared memory 32768 bytes (LINEAR_SMEM);
//                     splits > 1: k_per_split % 32 == 0 and splits * k_per_split >= k.
// PRECOND linear_reduce_fwd: block 256, any 1-D grid; one thread does 16 bytes of y: ceil(m * ceil(n / (16 / sizeof(T))) / 256)
//                     blocks do it in one pass.
// Any m, n, k >= 1 and any pointer alignment: rows that are whole 16-byte blocks are copied as such, others by element.
#include "async.cuh"
#include "mma.cuh"

struct LinearSpec {
  int m, n, k;
  int act;
  int residual;
  int residual_rows;
  int rows_per_gate;
  int gate_stride;  // elements from one gate row to the next
  int splits;
  int k_per_split;
};
SPEC_LAYOUT(LinearSpec, m, n, k, act, residual, residual_rows, rows_per_gate, gate_stride, splits, k_per_split)

namespace {

constexpr int TILE = 64;    // rows of y and columns of y in a block's tile
constexpr int STAGES = 4;   // k-tiles in shared memory
constexpr int CHUNKS = 4;   // 16-byte chunks in a row of a k-tile: 32 (16-bit) or 16 (f32) values of k
constexpr int STAGE_BYTES = 2 * TILE * CHUNKS * 16;
constexpr int LINEAR_SMEM = STAGES * STAGE_BYTES;
static_assert(LINEAR_SMEM == 32768, "the host launches with this size");

template <class T> constexpr int THREADS = sizeof(T) == 4 ? 256 : 128;
template <class T> constexpr int BK = CHUNKS * dev::VEC<T>;
// Row stride in floats of the sums staged for the epilogue: no bank conflicts for the way each type writes them.
template <class T> constexpr int STAGED = sizeof(T) == 4 ? 80 : 72;
static_assert(TILE * STAGED<float> * 4 <= LINEAR_SMEM, "the staged sums fit");

// Offset (in elements) of a 16-byte chunk in a k-tile. A row is half a line of banks; the exclusive or makes any eight
// consecutive rows of one chunk, and any two rows whole, fall on different banks.
template <class T> __device__ __forceinline__ int tile_at(int row, int chunk) {
  return (row * CHUNKS + (chunk ^ ((row >> 1) & 3))) * dev::VEC<T>;
}
// Offset of a staged sum; the exclusive or keeps the two 16-byte reads of an eight-column chunk on different banks.
template <class T> __device__ __forceinline__ int staged_at(int row, int col) {
  return row * STAGED<T> + ((((col >> 2) ^ (col >> 5)) << 2) | (col & 3));
}

// tile[64, BK] = src[row0.., k0..]; zero past `rows` and past k_end. src: [rows, k].
// WHOLE: k, k_end and src are multiples of 16 bytes; the copy is asynchronous.
template <class T, bool WHOLE>
__device__ __forceinline__ void load_tile(T* tile, const T* __restrict__ src, int row0, int rows, int k0, int k_end, int k) {
#pragma unroll
  for (int i = 0; i < TILE * CHUNKS / THREADS<T>; ++i) {
    const int c = threadIdx.x + i * THREADS<T>, r = c / CHUNKS, q = c % CHUNKS, kk = k0 + q * dev::VEC<T>;
    const T* from = src + static_cast<size_t>(row0 + r) * k + kk;
    T* to = tile + tile_at<T>(r, q);
    if (WHOLE) {
      const bool in = row0 + r < rows && kk < k_end;
      dev::cp_async16(to, in ? from : src, in ? 16 : 0);
    } else {
      float v[dev::VEC<T>];
#pragma unroll
      for (int e = 0; e < dev::VEC<T>; ++e) v[e] = row0 + r < rows && kk + e < k_end ? dev::to_f32(from[e]) : 0.f;
      dev::store_vec(to, v);
    }
  }
}

// Sums of one warp of the 16-bit kernels: 32x32 as 2x4 mma tiles. Sums of one thread in f32: rows ty + 16 i, columns tx + 16 j.
template <class T> struct Sums {
  float d[2][4][4];
};
template <> struct Sums<float> {
  float d[4][4];
};

// sums += xs[64, BK] . ws[64, BK]^T
template <class T> __device__ __forceinline__ void multiply_tile(Sums<T>& sums, const T* xs, const T* ws) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, wm = warp / 2 * 32, wn = warp % 2 * 32;
  uint32_t a[2][2][4], b[2][2][4];
#pragma unroll
  for (int s = 0; s < 2; ++s) {
#pragma unroll
    for (int i = 0; i < 2; ++i) dev::ldmatrix_x4(a[s][i], xs + tile_at<T>(wm + i * 16 + lane % 16, 2 * s + lane / 16));
#pragma unroll
    for (int j = 0; j < 2; ++j)
      dev::ldmatrix_x4(b[s][j], ws + tile_at<T>(wn + j * 16 + lane % 8 + lane / 16 * 8, 2 * s + lane / 8 % 2));
  }
#pragma unroll
  for (int s = 0; s < 2; ++s)
#pragma unroll
    for (int i = 0; i < 2; ++i)
#pragma unroll
      for (int j = 0; j < 4; ++j) dev::mma<T>(sums.d[i][j], a[s][i], b[s][j / 2][j % 2 * 2], b[s][j / 2][j % 2 * 2 + 1]);
}
template <> __device__ __forceinline__ void multiply_tile<float>(Sums<float>& sums, const float* xs, const float* ws) {
  const int tx = threadIdx.x % 16, ty = threadIdx.x / 16;
#pragma unroll
  for (int q = 0; q < CHUNKS; ++q) {
    float a[4][4], b[4][4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      dev::load_vec(xs + tile_at<float>(ty + 16 * i, q), a[i]);
      dev::load_vec(ws + tile_at<float>(tx + 16 * i, q), b[i]);
    }
#pragma unroll
    for (int e = 0; e < 4; ++e)
#pragma unroll
      for (int i = 0; i < 4; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j) sums.d[i][j] = fmaf(a[i][e], b[j][e], sums.d[i][j]);
  }
}

// sums = x[row0.., k_begin..k_end) . w[col0.., k_begin..k_end)^T through a ring of STAGES k-tiles.
template <class T, bool WHOLE>
__device__ __forceinline__ void multiply(Sums<T>& sums, T* smem, const T* __restrict__ x, const T* __restrict__ w,
                                         const LinearSpec& s, int row0, int col0, int k_begin, int k_end) {
  constexpr int SIDE = TILE * BK<T>;  // elements of one operand's k-tile
  const int tiles = (k_end - k_begin + BK<T> - 1) / BK<T>;
  auto load = [&](int t) {
    T* stage = smem + (t % STAGES) * 2 * SIDE;
    load_tile<T, WHOLE>(stage, x, row0, s.m, k_begin + t * BK<T>, k_end, s.k);
    load_tile<T, WHOLE>(stage + SIDE, w, col0, s.n, k_begin + t * BK<T>, k_end, s.k);
  };
#pragma unroll
  for (int t = 0; t < STAGES - 1; ++t) {
    if (t < tiles) load(t);
    dev::cp_async_commit();
  }
  for (int t = 0; t < tiles; ++t) {
    dev::cp_async_wait<STAGES - 2>();
    __syncthreads();  // tile t is in for all; all have read tile t - 1, whose place the next load takes
    if (t + STAGES - 1 < tiles) load(t + STAGES - 1);
    dev::cp_async_commit();
    const T* stage = smem + (t % STAGES) * 2 * SIDE;
    multiply_tile<T>(sums, stage, stage + SIDE);
  }
}

// staged[64, 64] = the block's sums
template <class T> __device__ __forceinline__ void stage_sums(float* staged, const Sums<T>& sums) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, wm = warp / 2 * 32, wn = warp % 2 * 32;
#pragma unroll
  for (int i = 0; i < 2; ++i)
#pragma unroll
    for (int j = 0; j < 4; ++j)
#pragma unroll
      for (int h = 0; h < 2; ++h)
        *reinterpret_cast<float2*>(staged + staged_at<T>(wm + i * 16 + h * 8 + lane / 4, wn + j * 8 + lane % 4 * 2)) =
            make_float2(sums.d[i][j][h * 2], sums.d[i][j][h * 2 + 1]);
}
template <> __device__ __forceinline__ void stage_sums<float>(float* staged, const Sums<float>& sums) {
  const int tx = threadIdx.x % 16, ty = threadIdx.x / 16;
#pragma unroll
  for (int i = 0; i < 4; ++i)
#pragma unroll
    for (int j = 0; j < 4; ++j) staged[staged_at<float>(ty + 16 * i, tx + 16 * j)] = sums.d[i][j];
}

// v[0..VEC) = p[0..count), 16 bytes at once where `whole`.
template <class T>
__device__ __forceinline__ void load_chunk(const T* p, bool whole, int count, float (&v)[dev::VEC<T>]) {
  if (whole) {
    dev::load_vec(p, v);
  } else {
#pragma unroll
    for (int e = 0; e < dev::VEC<T>; ++e) v[e] = e < count ? dev::to_f32(p[e]) : 0.f;
  }
}

// Epilogue of columns col..col + VEC of one row; writes y. `whole`: all of them exist and every access is 16-byte aligned.
template <class T>
__device__ __forceinline__ void epilogue(float (&v)[dev::VEC<T>], const T* __restrict__ bias, const T* res,
                                         const T* __restrict__ gate, T* y, const LinearSpec& s, int row, int col, bool whole) {
  constexpr int V = dev::VEC<T>;
  const int count = s.n - col;
  if (bias) {
    float b[V];
    load_chunk(bias + col, whole, count, b);
#pragma unroll
    for (int e = 0; e < V; ++e) v[e] += b[e];
  }
  if (s.act == 1) {
#pragma unroll
    for (int e = 0; e < V; ++e) v[e] = dev::gelu_erf(v[e]);
  } else if (s.act == 2) {
#pragma unroll
    for (int e = 0; e < V; ++e) v[e] = dev::gelu_tanh(v[e]);
  } else if (s.act == 3) {
#pragma unroll
    for (int e = 0; e < V; ++e) v[e] = dev::silu(v[e]);
  }
  if (s.residual == 2) {
    float g[V];
    load_chunk(gate + static_cast<size_t>(row / s.rows_per_gate) * s.gate_stride + col, whole, count, g);
#pragma unroll
    for (int e = 0; e < V; ++e) v[e] *= g[e];
  }
  if (s.residual) {
    float r[V];
    load_chunk(res + static_cast<size_t>(row % s.residual_rows) * s.n + col, whole, count, r);
#pragma unroll
    for (int e = 0; e < V; ++e) v[e] += r[e];
  }
  T* to = y + static_cast<size_t>(row) * s.n + col;
  if (whole) {
    dev::store_vec(to, v);
  } else {
#pragma unroll
    for (int e = 0; e < V; ++e)
      if (e < count) to[e] = dev::from_f32<T>(v[e]);
  }
}

// Whether rows of y, bias, res and gate can be moved in 16-byte chunks.
template <class T>
__device__ __forceinline__ bool whole_rows(const T* bias, const T* res, const T* gate, const T* y, const LinearSpec& s) {
  return s.n % dev::VEC<T> == 0 && (s.residual != 2 || s.gate_stride % dev::VEC<T> == 0) && dev::aligned16(bias, res, gate, y);
}

// x: [m, k], w: [n, k], bias: [n] or null, res: [residual_rows, n] or null, gate: [.., gate_stride] or null, y: [m, n],
// partial: [splits, m, n] f32, or null where splits == 1.
template <class T>
__device__ __forceinline__ void linear(const T* __restrict__ x, const T* __restrict__ w, const T* __restrict__ bias, const T* res,
                                       const T* __restrict__ gate, T* y, float* __restrict__ partial, const LinearSpec& s) {
  dev::grid_begin();
  DYN_SHARED(unsigned char, smem);
  constexpr int V = dev::VEC<T>;
  const int row0 = blockIdx.y * TILE, col0 = blockIdx.x * TILE;
  const int k_begin = blockIdx.z * s.k_per_split, k_end = s.splits == 1 ? s.k : min(s.k, k_begin + s.k_per_split);
  Sums<T> sums = {};
  if (s.k % V == 0 && dev::aligned16(x, w))
    multiply<T, true>(sums, reinterpret_cast<T*>(smem), x, w, s, row0, col0, s.splits == 1 ? 0 : k_begin, k_end);
  else
    multiply<T, false>(sums, reinterpret_cast<T*>(smem), x, w, s, row0, col0, s.splits == 1 ? 0 : k_begin, k_end);

  float* staged = reinterpret_cast<float*>(smem);
  __syncthreads();  // the k-tiles have been read
  stage_sums<T>(staged, sums);
  __syncthreads();
  const bool whole = s.splits == 1 ? whole_rows(bias, res, gate, y, s) : s.n % V == 0 && dev::aligned16(partial);
#pragma unroll
  for (int i = 0; i < TILE * TILE / V / THREADS<T>; ++i) {
    const int c = threadIdx.x + i * THREADS<T>, r = c / (TILE / V), q = c % (TILE / V) * V, row = row0 + r, col = col0 + q;
    if (row >= s.m || col >= s.n) continue;
    float v[V];
#pragma unroll
    for (int e = 0; e < V; e += 4) {
      const float4 u = *reinterpret_cast<const float4*>(staged + staged_at<T>(r, q + e));
      v[e] = u.x;
      v[e + 1] = u.y;
      v[e + 2] = u.z;
      v[e + 3] = u.w;
    }
    if (s.splits == 1) {
      epilogue<T>(v, bias, res, gate, y, s, row, col, whole);
      continue;
    }
    float* to = partial + (static_cast<size_t>(blockIdx.z) * s.m + row) * s.n + col;
    if (whole) {
#pragma unroll
      for (int e = 0; e < V; e += 4) *reinterpret_cast<float4*>(to + e) = make_float4(v[e], v[e + 1], v[e + 2], v[e + 3]);
    } else {
#pragma unroll
      for (int e = 0; e < V; ++e)
        if (col + e < s.n) to[e] = v[e];
    }
  }
}

// partial: [splits, m, n] f32; the rest as in linear().
template <class T>
__device__ __forceinline__ void linear_reduce(const float* __restrict__ partial, const T* __restrict__ bias, const T* res,
                                              const T* __restrict__ gate, T* y, const LinearSpec& s) {
  dev::grid_begin();
  constexpr int V = dev::VEC<T>;
  const bool whole = whole_rows(bias, res, gate, y, s) && dev::aligned16(partial);
  const size_t per_row = (s.n + V - 1) / V, chunks = per_row * s.m, plane = static_cast<size_t>(s.m) * s.n;
  for (size_t i = dev::first_index(); i < chunks; i += dev::index_stride()) {
    const int row = static_cast<int>(i / per_row), col = static_cast<int>(i % per_row) * V;
    const float* from = partial + static_cast<size_t>(row) * s.n + col;
    float v[V] = {};
    for (int z = 0; z < s.splits; ++z, from += plane) {
      if (whole) {
#pragma unroll
        for (int e = 0; e < V; e += 4) {
          const float4 u = *reinterpret_cast<const float4*>(from + e);
          v[e] += u.x;
          v[e + 1] += u.y;
          v[e + 2] += u.z;
          v[e + 3] += u.w;
        }
      } else {
#pragma unroll
        for (int e = 0; e < V; ++e)
          if (col + e < s.n) v[e] += from[e];
      }
    }
    epilogue<T>(v, bias, res, gate, y, s, row, col, whole);
  }
}

}  // namespace

#define LINEAR_EXPORTS(T, dtype)                                                                                         \
  KERNEL(__launch_bounds__(THREADS<T>) linear_fwd_##dtype)                                                               \
  (const T* x, const T* w, const T* bias, const T* res, const T* gate, T* y, float* partial, LinearSpec s) {             \
    linear<T>(x, w, bias, res, gate, y, partial, s);                                                                     \
  }                                                                                                                      \
  KERNEL_EXPORT(linear_fwd_##dtype)                                                                                      \
  KERNEL(__launch_bounds__(256) linear_reduce_fwd_##dtype)                                                               \
  (const float* partial, const T* bias, const T* res, const T* gate, T* y, LinearSpec s) {                               \
    linear_reduce<T>(partial, bias, res, gate, y, s);                                                                    \
  }                                                                                                                      \
  KERNEL_EXPORT(linear_reduce_fwd_##dtype)

LINEAR_EXPORTS(float, f32)
LINEAR_EXPORTS(__half, f16)
LINEAR_EXPORTS(__nv_bfloat16, bf16)
