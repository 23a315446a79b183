// Host side of hopper.cuh: mbarrier, TMA tile loads, wgmma, named barriers (sm_90a). Asynchronous work completes
// as late as the rules allow: a TMA load when no thread can run, a wgmma at its wait.
#pragma once
#include "emu.h"

struct alignas(64) CUtensorMap { uint64_t opaque[16]; };  // filled by cuTensorMapEncodeTiled

namespace emu {
void mbar_init(uint64_t* b, uint32_t count, Site);
void mbar_arrive(uint64_t* b, uint32_t tx_bytes, Site);
void mbar_wait(uint64_t* b, uint32_t parity, Site);
void tma_load_2d(void* dst, const void* map, uint64_t* bar, int x, int y, Site);
void bar_sync(int id, int threads, Site);
uint32_t smem_offset(const void* p);
void wgmma(float* d, int n, uint64_t a, uint64_t b, bool bf16, Site);  // m64 n k16, both operands in shared memory
void wgmma_commit();
void wgmma_wait(int keep, Site);
}  // namespace emu

namespace dev {
EMU_INL void mbar_init(uint64_t* b, uint32_t n, EMU_SITE) { emu::mbar_init(b, n, EMU_HERE); }
EMU_INL void mbar_fence_init() {}
EMU_INL void mbar_expect_tx(uint64_t* b, uint32_t bytes, EMU_SITE) { emu::mbar_arrive(b, bytes, EMU_HERE); }
EMU_INL void mbar_arrive(uint64_t* b, EMU_SITE) { emu::mbar_arrive(b, 0, EMU_HERE); }
EMU_INL void mbar_wait(uint64_t* b, uint32_t parity, EMU_SITE) { emu::mbar_wait(b, parity, EMU_HERE); }
EMU_INL void tma_load_2d(void* dst, const CUtensorMap* map, uint64_t* bar, int x, int y, EMU_SITE) {
  emu::tma_load_2d(dst, map, bar, x, y, EMU_HERE);
}
// K-major, 128-byte swizzle, 8-row groups 1024 bytes apart
EMU_INL uint64_t wgmma_desc_k128(const void* p) {
  return (uint64_t)((emu::smem_offset(p) & 0x3FFFF) >> 4) | (uint64_t)1 << 16 | (uint64_t)64 << 32 | (uint64_t)1 << 62;
}
EMU_INL void wgmma_fence() {}
EMU_INL void wgmma_commit() { emu::wgmma_commit(); }
template <int N> EMU_INL void wgmma_wait(EMU_SITE) { emu::wgmma_wait(N, EMU_HERE); }
template <int N> EMU_INL void reg_dealloc() {}
template <int N> EMU_INL void reg_alloc() {}
EMU_INL void bar_sync(int id, int threads, EMU_SITE) { emu::bar_sync(id, threads, EMU_HERE); }
EMU_INL void wgmma_m64n128k16_f16(float (&d)[64], uint64_t a, uint64_t b, EMU_SITE) { emu::wgmma(d, 128, a, b, false, EMU_HERE); }
EMU_INL void wgmma_m64n128k16_bf16(float (&d)[64], uint64_t a, uint64_t b, EMU_SITE) { emu::wgmma(d, 128, a, b, true, EMU_HERE); }
}  // namespace dev
