// The hooks that g++ -fsanitize=thread,alignment,bounds puts into checked kernels. The sanitizers' own libraries are
// not linked: these definitions take their place.
#include <cstdio>
#include "check.h"
#include "hooks.h"

using namespace emu;

namespace {
inline __attribute__((always_inline)) void access(const void* p, uint32_t bytes, bool write, void* pc) {
  Fiber& f = current();
  if (reinterpret_cast<uintptr_t>(p) - reinterpret_cast<uintptr_t>(&f) < FIBER_SLOT) {
    ++f.block->worker->stats.accesses;
    return;
  }
  check(f, Access::of_code(p, bytes, write, pc));
}

// A volatile access is a relaxed atomic: it may race with atomics, and a loop over it is a spin-wait.
void volatile_access(void* p, uint32_t bytes, bool write, void* pc) {
  Fiber& f = current();
  if (reinterpret_cast<uintptr_t>(p) - reinterpret_cast<uintptr_t>(&f) < FIBER_SLOT) return;
  check(f, Access::of_code(p, bytes, write, pc, true));
  order_atomic(f, reinterpret_cast<uintptr_t>(p), write);
  if (write) {
    f.block->worker->productive = true;
    f.spins = 0;
    return;
  }
  uint64_t value = 0;
  memcpy(&value, p, bytes < 8 ? bytes : 8);
  note_spin(f, p, value, false, "a spin-wait on a volatile", {"(volatile read)", 0});
}
}  // namespace

extern "C" {
#define HOOK(n)                                                                                        \
  void __tsan_read##n(void* p) { access(p, n, false, __builtin_return_address(0)); }                   \
  void __tsan_write##n(void* p) { access(p, n, true, __builtin_return_address(0)); }                   \
  void __tsan_volatile_read##n(void* p) { volatile_access(p, n, false, __builtin_return_address(0)); } \
  void __tsan_volatile_write##n(void* p) { volatile_access(p, n, true, __builtin_return_address(0)); }
HOOK(1)
HOOK(2) HOOK(4) HOOK(8) HOOK(16)
#define UNALIGNED_HOOK(n)                                                                                        \
  void __tsan_unaligned_read##n(void* p) { access(p, n, false, __builtin_return_address(0)); }                   \
  void __tsan_unaligned_write##n(void* p) { access(p, n, true, __builtin_return_address(0)); }                   \
  void __tsan_unaligned_volatile_read##n(void* p) { volatile_access(p, n, false, __builtin_return_address(0)); } \
  void __tsan_unaligned_volatile_write##n(void* p) { volatile_access(p, n, true, __builtin_return_address(0)); }
    UNALIGNED_HOOK(2) UNALIGNED_HOOK(4) UNALIGNED_HOOK(8) UNALIGNED_HOOK(16) void __tsan_read_range(void* p, size_t n) {
  access(p, (uint32_t)n, false, __builtin_return_address(0));
}
void __tsan_write_range(void* p, size_t n) { access(p, (uint32_t)n, true, __builtin_return_address(0)); }
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_init() {}

struct UbLocation {
  const char* file;
  uint32_t line, column;
};
struct UbType {
  uint16_t kind, info;
  char name[1];
};
void __ubsan_handle_type_mismatch_v1(void* data, uintptr_t address) {
  struct Data {
    UbLocation location;
    UbType* type;
    unsigned char log_alignment, kind;
  };
  const Data& d = *static_cast<Data*>(data);
  char b[192];
  snprintf(b, sizeof b, "misaligned: %#zx as %s, needs %u-byte alignment", (size_t)address, d.type->name, 1u << d.log_alignment);
  fail_at(current(), b, {d.location.file, (int)d.location.line});
}
void __ubsan_handle_out_of_bounds(void* data, uintptr_t index) {
  struct Data {
    UbLocation location;
    UbType *array, *index;
  };
  const Data& d = *static_cast<Data*>(data);
  char b[192];
  snprintf(b, sizeof b, "index %ld out of bounds of %s", (long)(int)index, d.array->name);
  fail_at(current(), b, {d.location.file, (int)d.location.line});
}
}
