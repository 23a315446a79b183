// The linear layer of linear.cu on Hopper (sm_90a), f16 and bf16: the same operands, geometry and epilogue (linear.cuh), the
// products by wgmma from tiles that TMA brings in. Writes y, z and stats with "=".
//
// linear_hopper_fwd_<dtype>_<BT>x<BF>: a block computes BF features (columns of y) and BT tokens (rows of y). Features are
// on the M side of wgmma and tokens on its N side, which comes in steps of 8: 196 tokens fill 98 % of 200. One warp
// produces: it keeps a ring of STAGES k-tiles filled; BF / 64 warpgroups consume.
//
// k is summed in `splits` chunks as in linear.cu: each from zero, the chunk sums added in their order. With gridDim.z ==
// splits a chunk has a block of its own; the blocks of a tile are one cluster, leave their sums in shared memory, and
// each finishes its share of the tokens, reading the others'. With gridDim.z == 1 one block does all chunks: the same bits.
//
// As a dependent launch it loads the first tiles of w ahead of its wait: w has to be there before the launch in front.
//
// PRECOND: grid (ceil(n/BF), ceil(m/BT), 1 or splits), cluster (1, 1, gridDim.z), grid.z <= 8; block Tile::THREADS; dynamic
//          shared memory Tile::SHARED bytes; k % 8 == 0, n % 8 == 0; x_map and w_map: tiles of 64 columns, and BT rows of
//          x [m, k] or BF rows of w [n, k]; splits and k_per_split as in linear.cu.
#include "hopper.cuh"
#include "linear.cuh"

namespace {

template <class Type, int FEATURES, int TOKENS, int DEPTH> struct Tile {
  using T = Type;
  static constexpr int BF = FEATURES, BT = TOKENS, BK = 64, STAGES = DEPTH;
  static constexpr int CONSUMERS = BF / 64 * 128, THREADS = CONSUMERS + 32;
  static constexpr int W_BYTES = BF * BK * 2, X_BYTES = BT * BK * 2;
  // Shared memory: the ring, the sums [BT][BF], what is known of each token, two barriers per stage.
  static constexpr int SUMS = STAGES * (W_BYTES + X_BYTES);
  static constexpr int KNOWN = SUMS + BT * BF * 4;
  static constexpr int BARRIERS = (KNOWN + BT * static_cast<int>(sizeof(dev::LinearRow)) + 7) / 8 * 8;
  static constexpr int SHARED = BARRIERS + 2 * STAGES * 8;
  static_assert(W_BYTES % 1024 == 0 && X_BYTES % 1024 == 0, "TMA with the 128-byte swizzle");
  static_assert(SHARED <= 232448, "what a block can have");
};

// Offset of a sum. The exclusive or puts the 4 pairs of tokens and 8 features that a warp writes at once on different banks,
// and keeps eight features from a multiple of 8 on together.
template <class Tile> __device__ __forceinline__ int sum_at(int token, int feature) {
  return token * Tile::BF + (feature ^ (token / 2 % 4 * 8));
}

// The ring of k-tiles: `full` ends a phase when a tile has come, `empty` when all consumer warps have read it.
template <class Tile> struct Ring {
  unsigned char* tiles;
  uint64_t *full, *empty;

  __device__ __forceinline__ explicit Ring(unsigned char* smem)
      : tiles(smem), full(reinterpret_cast<uint64_t*>(smem + Tile::BARRIERS)), empty(full + Tile::STAGES) {}
  __device__ __forceinline__ unsigned char* w(int t) const { return tiles + t % Tile::STAGES * (Tile::W_BYTES + Tile::X_BYTES); }
  __device__ __forceinline__ unsigned char* x(int t) const { return w(t) + Tile::W_BYTES; }
  __device__ __forceinline__ uint64_t* full_at(int t) const { return full + t % Tile::STAGES; }
  __device__ __forceinline__ uint64_t* empty_at(int t) const { return empty + t % Tile::STAGES; }
  // The parity of the barriers of tile t.
  static __device__ __forceinline__ uint32_t parity(int t) { return t / Tile::STAGES & 1; }

  __device__ __forceinline__ void init() const {
    for (int s = 0; s < Tile::STAGES; ++s) {
      dev::mbar_init(full + s, 1);
      dev::mbar_init(empty + s, Tile::CONSUMERS / 32);
    }
    dev::mbar_fence_init();
  }
};

// One thread: fills the ring with k-tiles of w from feature col0 and of x from token row0 on, `tiles` of them from k_begin.
template <class Tile>
__device__ __forceinline__ void produce(const Ring<Tile>& ring, const dev::TensorMap* x_map, const dev::TensorMap* w_map, int row0,
                                        int col0, int k_begin, int tiles) {
  const auto load_w = [&](int t) {
    dev::mbar_expect_tx(ring.full_at(t), Tile::W_BYTES + Tile::X_BYTES);
    dev::tma_load_2d(ring.w(t), w_map, ring.full_at(t), k_begin + t * Tile::BK, col0);
  };
  const auto load_x = [&](int t) { dev::tma_load_2d(ring.x(t), x_map, ring.full_at(t), k_begin + t * Tile::BK, row0); };
  const int ahead = min(tiles, Tile::STAGES);
  for (int t = 0; t < ahead; ++t) load_w(t);
  dev::grid_wait();
  for (int t = 0; t < ahead; ++t) load_x(t);
  for (int t = ahead; t < tiles; ++t) {
    dev::mbar_wait(ring.empty_at(t), ring.parity(t) ^ 1);
    load_w(t);
    load_x(t);
  }
}

// One warpgroup: sums[token][feature] = the products of `tiles` k-tiles, in chunks of `per_chunk`, chunk after chunk added.
template <class Tile>
__device__ __forceinline__ void consume(const Ring<Tile>& ring, float* sums, int tiles, int per_chunk) {
  const int group = threadIdx.x / 128, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int token = lane % 4 * 2, feature = warp * 16 + lane / 4;  // the first of this lane's
  for (int first = 0; first < tiles; first += per_chunk) {
    const int end = min(tiles, first + per_chunk);
    float d[Tile::BT / 2] = {};
    for (int t = first; t < end; ++t) {
      dev::mbar_wait(ring.full_at(t), ring.parity(t));
      const unsigned char *w = ring.w(t) + group * (64 * Tile::BK * 2), *x = ring.x(t);
      dev::wgmma_fence();
#pragma unroll
      for (int k = 0; k < Tile::BK; k += 16)
        dev::wgmma<typename Tile::T, Tile::BT>(d, dev::wgmma_desc_k128(w + k * 2), dev::wgmma_desc_k128(x + k * 2));
      dev::wgmma_commit();
      dev::wgmma_wait<1>();  // tile t - 1 has been read
      if (t > first && lane == 0) dev::mbar_arrive(ring.empty_at(t - 1));
    }
    dev::wgmma_wait<0>();
    if (lane == 0) dev::mbar_arrive(ring.empty_at(end - 1));
#pragma unroll
    for (int i = 0; i < Tile::BT / 2; ++i) {
      float* to = sums + sum_at<Tile>(token + i / 4 * 8 + i % 2, feature + i / 2 % 2 * 8);
      *to = first == 0 ? d[i] : *to + d[i];
    }
  }
}

template <class Tile, class T>
__device__ __forceinline__ void linear(const LinearOut<T>& o, const LinearSpec& s, const dev::TensorMap* x_map,
                                       const dev::TensorMap* w_map) {
  DYN_SHARED(unsigned char, smem);
  constexpr int V = dev::VEC<T>, PER_ROW = Tile::BF / V, STEP = Tile::CONSUMERS / PER_ROW;
  dev::grid_launch_dependents();
  const int row0 = blockIdx.y * Tile::BT, col0 = blockIdx.x * Tile::BF;
  const int blocks = dev::cluster_size(), rank = dev::cluster_rank();  // 1 and 0 without a cluster
  const int k_begin = rank * s.k_per_split, k_end = blocks > 1 ? min(s.k, k_begin + s.k_per_split) : s.k;
  const int tiles = (k_end - k_begin + Tile::BK - 1) / Tile::BK;
  // this block's share of the tokens, to be finished
  const int rows = min(Tile::BT, s.m - row0), share = (rows + blocks - 1) / blocks;
  const int begin = min(rows, rank * share), end = min(rows, begin + share);
  const Ring<Tile> ring(smem);
  float* const sums = reinterpret_cast<float*>(smem + Tile::SUMS);
  auto* const known = reinterpret_cast<dev::LinearRow*>(smem + Tile::KNOWN);
  const bool consumer = threadIdx.x < Tile::CONSUMERS;

  if (threadIdx.x == 0) ring.init();
  __syncthreads();
  if (consumer) {
    dev::grid_wait();
    for (int r = begin + threadIdx.x; r < end; r += Tile::CONSUMERS) known[r] = dev::linear_row(o, s, row0 + r);
    consume(ring, sums, tiles, s.k_per_split / Tile::BK);
  } else if (threadIdx.x == Tile::CONSUMERS) {
    dev::tma_prefetch(w_map);
    dev::tma_prefetch(x_map);
    produce(ring, x_map, w_map, row0, col0, k_begin, tiles);
  }
  if (blocks > 1) dev::cluster_sync();
  else __syncthreads();
  if (consumer) {
    const bool whole = dev::linear_whole(o, s);
    for (int first = begin; first < end; first += STEP) {
      const int r = first + threadIdx.x / PER_ROW, q = threadIdx.x % PER_ROW * V;
      const bool in = r < end;
      float v[V] = {};
#pragma unroll 4
      for (int z = 0; z < (in ? blocks : 0); ++z) {
        const float* const peer = dev::cluster_map(sums, z);
#pragma unroll
        for (int e = 0; e < V; e += 4) {
          const float4 u = *reinterpret_cast<const float4*>(peer + sum_at<Tile>(r, q) + e);
          v[e] += u.x;
          v[e + 1] += u.y;
          v[e + 2] += u.z;
          v[e + 3] += u.w;
        }
      }
      dev::linear_finish(v, o, s, in ? known[r] : dev::LinearRow{}, in ? row0 + r : s.m, col0 + q, whole);
    }
  }
  if (blocks > 1) dev::cluster_sync();  // the others have read this block's sums
}

}  // namespace

// The pointers are those of LinearOut.
#define LINEAR_HOPPER_EXPORT(dtype, TYPE, BT, BF, STAGES)                                                                     \
  KERNEL(__launch_bounds__((Tile<TYPE, BF, BT, STAGES>::THREADS), 1) linear_hopper_fwd_##dtype##_##BT##x##BF)                 \
  (const TYPE* bias, const TYPE* sums, const float2* in_stats, const unsigned* counter, const unsigned* rows, const TYPE* res, \
   const TYPE* gate, const TYPE* scale, TYPE* y, TYPE* z, float2* stats, LinearSpec s,                                        \
   const __grid_constant__ dev::TensorMap x_map, const __grid_constant__ dev::TensorMap w_map) {                              \
    const LinearOut<TYPE> o = {bias, sums, in_stats, counter, rows, res, gate, scale, y, z, stats};                           \
    linear<Tile<TYPE, BF, BT, STAGES>>(o, s, &x_map, &w_map);                                                                 \
  }                                                                                                                           \
  KERNEL_EXPORT(linear_hopper_fwd_##dtype##_##BT##x##BF)

#define LINEAR_HOPPER_TILES(dtype, TYPE)         \
  LINEAR_HOPPER_EXPORT(dtype, TYPE, 104, 64, 6)  \
  LINEAR_HOPPER_EXPORT(dtype, TYPE, 200, 64, 5)  \
  LINEAR_HOPPER_EXPORT(dtype, TYPE, 104, 128, 4) \
  LINEAR_HOPPER_EXPORT(dtype, TYPE, 128, 128, 4) \
  LINEAR_HOPPER_EXPORT(dtype, TYPE, 200, 128, 3)

LINEAR_HOPPER_TILES(f16, __half)
LINEAR_HOPPER_TILES(bf16, __nv_bfloat16)
