// Backward of y = x w^T + bias (the bias's gradient: sums.cu). T in {f32, f16, bf16}, sums in f32.
//
//   linear_dx_bwd_<dtype>  "="   dx[m, k] = sum_n dy[m, n] w[n, k]      rows m, cols k, depth n      dx in T
//   linear_dw_bwd_<dtype>  "+="  dw[n, k] += sum_m dy[m, n] x[m, k]     rows n, cols k, depth m      dw in f32
//
// A block computes 64 x 64 of the result. f16, bf16: tensor cores (mma.m16n8k16), four warps of 32 x 32; f32: FMA, 8 x 4
// sums per thread. One block does all of the depth in order, so the bits depend on nothing but the operands.
//
// PRECOND: grid (ceil(cols/64), ceil(rows/64)), grid.y <= 65535, block 128. Any sizes >= 1 and any pointer alignment: operands
//          whose rows are whole 16-byte blocks are copied as such, others by element.
#include "async.cuh"
#include "mma.cuh"

struct LinearBackwardSpec {
  int rows, cols, depth;
};
SPEC_LAYOUT(LinearBackwardSpec, rows, cols, depth)

namespace {

constexpr int TILE = 64, DEPTH = 32, THREADS = 128;

// to[LINES, PER_LINE + PAD] = from[line0.., at0..), zero past `lines` and past `per_line`. from: [lines, per_line].
// `whole`: per_line and from are multiples of 16 bytes; the copy is asynchronous.
template <int LINES, int PER_LINE, int PAD, class T>
__device__ __forceinline__ void load_tile(T* to, const T* __restrict__ from, int line0, int lines, int at0, int per_line, bool whole) {
  constexpr int V = dev::VEC<T>, CHUNKS = PER_LINE / V;
#pragma unroll
  for (int i = 0; i < LINES * CHUNKS / THREADS; ++i) {
    const int c = threadIdx.x + i * THREADS, line = c / CHUNKS, at = c % CHUNKS * V;
    const T* src = from + static_cast<size_t>(line0 + line) * per_line + at0 + at;
    T* dst = to + line * (PER_LINE + PAD) + at;
    if (whole) {
      const bool in = line0 + line < lines && at0 + at < per_line;
      dev::cp_async16(dst, in ? src : from, in ? 16 : 0);
    } else {
#pragma unroll
      for (int e = 0; e < V; ++e) dst[e] = line0 + line < lines && at0 + at + e < per_line ? src[e] : dev::from_f32<T>(0.f);
    }
  }
}

// Sums of one warp, 32 x 32 as mma tiles of 16 x 8. Rows of tiles are an odd number of 16-byte chunks: eight rows of one
// chunk (an ldmatrix) fall on different banks.
template <class T> struct Sums {
  static constexpr int PAD = 8;
  float d[2][4][4] = {};

  // += a b; a: [TILE, DEPTH], or with TRANSPOSED [DEPTH, TILE]; b: [DEPTH, TILE].
  template <bool TRANSPOSED> __device__ __forceinline__ void multiply(const T* a, const T* b) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int k = 0; k < DEPTH; k += 16) {
      uint32_t fa[2][4], fb[2][4];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int row = row0() + i * 16;
        if (TRANSPOSED)
          dev::ldmatrix_x4_trans(fa[i], a + (k + lane / 16 * 8 + lane % 8) * (TILE + PAD) + row + lane / 8 % 2 * 8);
        else
          dev::ldmatrix_x4(fa[i], a + (row + lane % 16) * (DEPTH + PAD) + k + lane / 16 * 8);
      }
#pragma unroll
      for (int j = 0; j < 2; ++j)
        dev::ldmatrix_x4_trans(fb[j], b + (k + lane % 16) * (TILE + PAD) + col0() + j * 16 + lane / 16 * 8);
#pragma unroll
      for (int i = 0; i < 2; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j) dev::mma<T>(d[i][j], fa[i], fb[j / 2][j % 2 * 2], fb[j / 2][j % 2 * 2 + 1]);
    }
  }
  template <class F> __device__ __forceinline__ void each(F&& store) const {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int i = 0; i < 2; ++i)
#pragma unroll
      for (int j = 0; j < 4; ++j)
#pragma unroll
        for (int e = 0; e < 4; ++e) store(row0() + i * 16 + e / 2 * 8 + lane / 4, col0() + j * 8 + lane % 4 * 2 + e % 2, d[i][j][e]);
  }
  static __device__ __forceinline__ int row0() { return threadIdx.x / 64 * 32; }
  static __device__ __forceinline__ int col0() { return threadIdx.x / 32 % 2 * 32; }
};
// Sums of one thread: rows ty + 8 i, columns tx + 16 j.
template <> struct Sums<float> {
  static constexpr int PAD = 4;
  float d[8][4] = {};

  template <bool TRANSPOSED> __device__ __forceinline__ void multiply(const float* a, const float* b) {
    const int tx = threadIdx.x % 16, ty = threadIdx.x / 16;
#pragma unroll 4
    for (int k = 0; k < DEPTH; ++k) {
      float u[8], v[4];
#pragma unroll
      for (int i = 0; i < 8; ++i) u[i] = TRANSPOSED ? a[k * (TILE + PAD) + ty + 8 * i] : a[(ty + 8 * i) * (DEPTH + PAD) + k];
#pragma unroll
      for (int j = 0; j < 4; ++j) v[j] = b[k * (TILE + PAD) + tx + 16 * j];
#pragma unroll
      for (int i = 0; i < 8; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j) d[i][j] = fmaf(u[i], v[j], d[i][j]);
    }
  }
  template <class F> __device__ __forceinline__ void each(F&& store) const {
    const int tx = threadIdx.x % 16, ty = threadIdx.x / 16;
#pragma unroll
    for (int i = 0; i < 8; ++i)
#pragma unroll
      for (int j = 0; j < 4; ++j) store(ty + 8 * i, tx + 16 * j, d[i][j]);
  }
};

// store(row, col, sum) for each sum of a b in this block's tile. a: [rows, depth], or with TRANSPOSED [depth, rows];
// b: [depth, cols].
template <bool TRANSPOSED, class T, class F>
__device__ __forceinline__ void product(const T* __restrict__ a, const T* __restrict__ b, const LinearBackwardSpec& s, F&& store) {
  dev::grid_begin();
  constexpr int PAD = Sums<T>::PAD;
  constexpr int A = TRANSPOSED ? DEPTH * (TILE + PAD) : TILE * (DEPTH + PAD);
  __shared__ __align__(16) T as[2][A];
  __shared__ __align__(16) T bs[2][DEPTH * (TILE + PAD)];
  const int row0 = blockIdx.y * TILE, col0 = blockIdx.x * TILE, tiles = (s.depth + DEPTH - 1) / DEPTH;
  const bool whole_a = (TRANSPOSED ? s.rows : s.depth) % dev::VEC<T> == 0 && dev::aligned16(a);
  const bool whole_b = s.cols % dev::VEC<T> == 0 && dev::aligned16(b);
  auto load = [&](int t) {
    if (TRANSPOSED)
      load_tile<DEPTH, TILE, PAD>(as[t % 2], a, t * DEPTH, s.depth, row0, s.rows, whole_a);
    else
      load_tile<TILE, DEPTH, PAD>(as[t % 2], a, row0, s.rows, t * DEPTH, s.depth, whole_a);
    load_tile<DEPTH, TILE, PAD>(bs[t % 2], b, t * DEPTH, s.depth, col0, s.cols, whole_b);
    dev::cp_async_commit();
  };
  Sums<T> sums;
  load(0);
  for (int t = 0; t < tiles; ++t) {
    dev::cp_async_wait<0>();
    __syncthreads();  // tiles t are in for all; all have read tiles t - 1, whose place the next take
    if (t + 1 < tiles) load(t + 1);
    sums.template multiply<TRANSPOSED>(as[t % 2], bs[t % 2]);
  }
  sums.each([&](int r, int c, float sum) {
    if (row0 + r < s.rows && col0 + c < s.cols) store(static_cast<size_t>(row0 + r) * s.cols + col0 + c, sum);
  });
}

}  // namespace

#define LINEAR_BACKWARD_EXPORTS(T, dtype)                                                                    \
  KERNEL(__launch_bounds__(128) linear_dx_bwd_##dtype)(const T* dy, const T* w, T* dx, LinearBackwardSpec s) { \
    product<false>(dy, w, s, [&](size_t at, float sum) { dx[at] = dev::from_f32<T>(sum); });                 \
  }                                                                                                          \
  KERNEL_EXPORT(linear_dx_bwd_##dtype)                                                                       \
  KERNEL(__launch_bounds__(128) linear_dw_bwd_##dtype)(const T* dy, const T* x, float* dw, LinearBackwardSpec s) { \
    product<true>(dy, x, s, [&](size_t at, float sum) { dw[at] += sum; });                                   \
  }                                                                                                          \
  KERNEL_EXPORT(linear_dw_bwd_##dtype)

LINEAR_BACKWARD_EXPORTS(float, f32)
LINEAR_BACKWARD_EXPORTS(__half, f16)
LINEAR_BACKWARD_EXPORTS(__nv_bfloat16, bf16)
