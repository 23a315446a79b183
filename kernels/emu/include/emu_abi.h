// What kernels compiled for the host and the emulation runtime share: the thread header, kernel metadata and
// the runtime's entry points. No macros of the CUDA language here; those are in emu.h.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

// Functions of the device language are always inlined: a call per intrinsic would dominate the running time.
#define EMU_INL inline __attribute__((always_inline))

struct uint3 { unsigned x, y, z; };
struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned vx = 1, unsigned vy = 1, unsigned vz = 1) : x(vx), y(vy), z(vz) {}
};

namespace emu {

// Each CUDA thread is a fiber with a slot of its own, aligned to the slot size: this header, the fiber's
// bookkeeping, a guard page, then its stack. So the header is found from the stack pointer alone.
constexpr size_t FIBER_SLOT = 128 << 10;
struct Thread {
  uint3 thread_index, block_index;
  dim3 block_dim, grid_dim;
  unsigned tid;             // linear index in the block
  unsigned char* dyn_smem;  // dynamic shared memory of the block
};
EMU_INL Thread* self() {
  Thread* t;
  __asm__("mov %%rsp, %0\n\tand %1, %0" : "=r"(t) : "i"(-(long)FIBER_SLOT) : "cc");
  return t;
}

// Source line of an emulated instruction, taken where the kernel calls it.
struct Site {
  const char* file;
  int line;
};
// Two defaults, because g++ folds a braced aggregate at the declaration.
#define EMU_SITE const char *f_ = __builtin_FILE(), int l_ = __builtin_LINE()
#define EMU_HERE (::emu::Site{f_, l_})

// ---- synchronisation (schedule.cpp, warp.cpp) ----
void sync_threads(Site);
int sync_threads_vote(int predicate, int kind, Site);  // kind: 0 count, 1 and, 2 or
void sync_warp(uint32_t mask, Site);
void threadfence();
void grid_wait(Site);
void nanosleep(Site);
[[noreturn]] void trap(const char* message, Site);

// Every lane in `mask` deposits `arg`; the last to arrive runs `fn` over all of them; then all go on.
using Collective = void (*)(void* const (&lane_arg)[32], uint32_t mask);
void warp_collective(Collective fn, void* arg, uint32_t mask, const char* what, Site);
struct ShuffleArg {
  uint64_t in, out;
  int select, width;
};
void shuffle_up(void* const (&)[32], uint32_t);
void shuffle_down(void* const (&)[32], uint32_t);
void shuffle_xor(void* const (&)[32], uint32_t);
void shuffle_index(void* const (&)[32], uint32_t);
void vote(void* const (&)[32], uint32_t);

// ---- memory (async_copy.cpp, atomics.cpp) ----
void cp_async(void* dst, const void* src, int size, int src_bytes, Site);
void cp_async_commit();
void cp_async_wait(int keep);
enum class AtomicOp : uint8_t { Add, Min, Max, Exch, Cas, And, Or, Xor, Inc, Dec };
enum class AtomicType : uint8_t { I32, U32, I64, U64, F32, F64 };
// Returns the old bits; `operand` and `compare` are bit patterns, zero-extended.
uint64_t atomic(void* p, AtomicOp op, AtomicType type, uint64_t operand, uint64_t compare, Site);

// ---- tensor cores (mma.cpp) ----
void ldmatrix(uint32_t* regs, const void* row, int matrices, bool transposed, Site);
void mma_m16n8k16(float* d, const uint32_t* a, uint32_t b0, uint32_t b1, bool bf16, Site);

// ---- kernel metadata: one record per exported kernel, collected by the linker in section `emu_kernels` ----
struct alignas(32) KernelInfo {
  const char* name;
  void (*entry)(void** params);
  uint32_t checked;  // 1: compiled with the access hooks
  uint32_t params;
  const uint32_t* sizes;  // bytes of each parameter
};
static_assert(sizeof(KernelInfo) == 32, "the linker packs the records without gaps");

template <class F> struct Params;
template <class... A> struct Params<void (*)(A...)> {
  static constexpr uint32_t count = sizeof...(A);
  static constexpr uint32_t sizes[] = {(uint32_t)sizeof(A)..., 0};
};
template <class... A, size_t... I> EMU_INL void call_indexed(void (*f)(A...), void** p, std::index_sequence<I...>) {
  f(*static_cast<std::remove_cv_t<std::remove_reference_t<A>>*>(p[I])...);
}
// Calls `f` with parameters laid out as cuLaunchKernel's kernelParams.
template <class... A> EMU_INL void call(void (*f)(A...), void** p) { call_indexed(f, p, std::index_sequence_for<A...>{}); }

}  // namespace emu

// Layout of a spec struct, for the test that compares it with its Rust twin.
extern "C" {
struct EmuSpecField {
  const char* name;
  uint32_t offset, size;
};
struct EmuSpec {
  const char* name;
  uint32_t size, fields;
  const EmuSpecField* field;
};
}
