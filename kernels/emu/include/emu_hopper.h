// Host side of hopper.cuh: mbarriers, TMA tile loads, wgmma, named barriers, clusters (sm_90a). Asynchronous work
// completes as late as the rules allow: a TMA load when no thread can run, a wgmma at its wait.
//
// Not modelled: the proxies. A kernel that writes shared memory with ordinary stores and has TMA or wgmma read it
// needs fence.proxy.async, and nothing here misses it.
#pragma once
#include "emu.h"

namespace emu {
void mbar_init(uint64_t* b, uint32_t count, Site);
void mbar_arrive(uint64_t* b, uint32_t tx_bytes, Site);
void mbar_wait(uint64_t* b, uint32_t parity, Site);
void tma_load_2d(void* dst, const void* map, uint64_t* bar, int x, int y, Site);
void bar_sync(int id, int threads, Site);
uint32_t smem_offset(const void* p);
void wgmma_fence();
void wgmma(float* d, int n, uint64_t a, uint64_t b, bool bf16, Site);  // m64 n k16, both operands in shared memory
void wgmma_commit();
void wgmma_wait(int keep, Site);
unsigned cluster_rank();
unsigned cluster_size();
void cluster_arrive(Site);
void cluster_wait(Site);
void* cluster_map(const void* p, unsigned rank, Site);
}  // namespace emu

namespace dev {
EMU_INL void mbar_init(uint64_t* b, uint32_t n, EMU_SITE) { emu::mbar_init(b, n, EMU_HERE); }
EMU_INL void mbar_fence_init() {}
EMU_INL void mbar_expect_tx(uint64_t* b, uint32_t bytes, EMU_SITE) { emu::mbar_arrive(b, bytes, EMU_HERE); }
EMU_INL void mbar_arrive(uint64_t* b, EMU_SITE) { emu::mbar_arrive(b, 0, EMU_HERE); }
EMU_INL void mbar_wait(uint64_t* b, uint32_t parity, EMU_SITE) { emu::mbar_wait(b, parity, EMU_HERE); }
EMU_INL void tma_prefetch(const TensorMap*) {}
EMU_INL void tma_load_2d(void* dst, const TensorMap* map, uint64_t* bar, int x, int y, EMU_SITE) {
  emu::tma_load_2d(dst, map, bar, x, y, EMU_HERE);
}
EMU_INL uint64_t wgmma_desc_k128(const void* p) {
  return (uint64_t)((emu::smem_offset(p) & 0x3FFFF) >> 4) | (uint64_t)1 << 16 | (uint64_t)64 << 32 | (uint64_t)1 << 62;
}
EMU_INL void wgmma_fence() { emu::wgmma_fence(); }
EMU_INL void wgmma_commit() { emu::wgmma_commit(); }
template <int N> EMU_INL void wgmma_wait(EMU_SITE) { emu::wgmma_wait(N, EMU_HERE); }
template <class T, int N> EMU_INL void wgmma(float (&d)[N / 2], uint64_t a, uint64_t b, EMU_SITE) {
  static_assert(N % 8 == 0 && N >= 8 && N <= 256, "the shapes of wgmma");
  emu::wgmma(d, N, a, b, std::is_same<T, __nv_bfloat16>::value, EMU_HERE);
}
template <int N> EMU_INL void reg_dealloc() {}
template <int N> EMU_INL void reg_alloc() {}
EMU_INL void bar_sync(int id, int threads, EMU_SITE) { emu::bar_sync(id, threads, EMU_HERE); }
EMU_INL unsigned cluster_rank() { return emu::cluster_rank(); }
EMU_INL unsigned cluster_size() { return emu::cluster_size(); }
EMU_INL void cluster_arrive(EMU_SITE) { emu::cluster_arrive(EMU_HERE); }
EMU_INL void cluster_wait(EMU_SITE) { emu::cluster_wait(EMU_HERE); }
EMU_INL void cluster_sync(EMU_SITE) {
  emu::cluster_arrive(EMU_HERE);
  emu::cluster_wait(EMU_HERE);
}
template <class T> EMU_INL T* cluster_map(T* p, unsigned rank, EMU_SITE) {
  return static_cast<T*>(emu::cluster_map(p, rank, EMU_HERE));
}
}  // namespace dev
