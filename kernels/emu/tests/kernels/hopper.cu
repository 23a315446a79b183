// A warp-specialised GEMM of sm_90a: TMA loads into a ring of stages, mbarriers, wgmma. Correct, and with one wait or
// one barrier missing.
#include "hopper.cuh"

namespace {
constexpr int BM = 128, BN = 128, BK = 64, STAGES = 4;
constexpr uint32_t STAGE_BYTES = (BM + BN) * BK * 2;

// C[M,N] f16 = A[M,K] W[N,K]^T, K a multiple of 64; one producer and two consumer warpgroups. Dynamic shared memory:
// STAGES * STAGE_BYTES and 16 bytes of barriers per stage.
template <bool EMPTY_WAIT, bool BARRIER>
__device__ __forceinline__ void gemm(const dev::TensorMap& ta, const dev::TensorMap& tw, __half* C, int M, int N, int K) {
  DYN_SHARED(unsigned char, smem);
  uint64_t* full = reinterpret_cast<uint64_t*>(smem + STAGES * STAGE_BYTES);
  uint64_t* empty = full + STAGES;
  const int wg = (int)threadIdx.x / 128, nk = K / BK, row0 = (int)blockIdx.y * BM, col0 = (int)blockIdx.x * BN;
  if (threadIdx.x == 0) {
    for (int s = 0; s < STAGES; ++s) {
      dev::mbar_init(&full[s], 1);
      dev::mbar_init(&empty[s], 2);
    }
    dev::mbar_fence_init();
  }
  __syncthreads();
  if (wg == 0) {
    dev::reg_dealloc<40>();
    if (threadIdx.x == 0)
      for (int kt = 0; kt < nk; ++kt) {
        const int s = kt % STAGES;
        if (EMPTY_WAIT) dev::mbar_wait(&empty[s], ((kt / STAGES) & 1) ^ 1);
        dev::mbar_expect_tx(&full[s], STAGE_BYTES);
        dev::tma_load_2d(smem + s * STAGE_BYTES, &ta, &full[s], kt * BK, row0);
        dev::tma_load_2d(smem + s * STAGE_BYTES + BM * BK * 2, &tw, &full[s], kt * BK, col0);
      }
    return;
  }
  dev::reg_alloc<232>();
  float acc[64] = {};
  for (int kt = 0; kt < nk; ++kt) {
    const int s = kt % STAGES;
    dev::mbar_wait(&full[s], (kt / STAGES) & 1);
    const unsigned char* a = smem + s * STAGE_BYTES + (wg - 1) * 64 * BK * 2;
    const unsigned char* b = smem + s * STAGE_BYTES + BM * BK * 2;
    dev::wgmma_fence();
    for (int kk = 0; kk < BK; kk += 16) dev::wgmma<__half, 128>(acc, dev::wgmma_desc_k128(a + kk * 2), dev::wgmma_desc_k128(b + kk * 2));
    dev::wgmma_commit();
    dev::wgmma_wait<0>();
    if (BARRIER) dev::bar_sync(wg, 128);  // all four warps have read the stage
    if (threadIdx.x % 128 == 0) dev::mbar_arrive(&empty[s]);
  }
  const int w = (int)(threadIdx.x % 128) / 32, lane = (int)threadIdx.x % 32;
  for (int j = 0; j < 16; ++j)
    for (int h = 0; h < 2; ++h) {
      const int r = row0 + (wg - 1) * 64 + w * 16 + lane / 4 + h * 8, c = col0 + j * 8 + (lane % 4) * 2;
      if (r < M && c < N) *reinterpret_cast<__half2*>(C + (size_t)r * N + c) = __floats2half2_rn(acc[j * 4 + h * 2], acc[j * 4 + h * 2 + 1]);
    }
}
}  // namespace

#define GEMM(name, empty_wait, barrier)                                                                             \
  KERNEL(name)(const __grid_constant__ dev::TensorMap ta, const __grid_constant__ dev::TensorMap tw, __half* C, int M, int N, int K) { \
    gemm<empty_wait, barrier>(ta, tw, C, M, N, K);                                                                  \
  }                                                                                                                 \
  KERNEL_EXPORT(name)
GEMM(emutest_wgmma, true, true)
GEMM(emutest_wgmma_no_empty_wait, false, true)
GEMM(emutest_wgmma_no_barrier, true, false)
