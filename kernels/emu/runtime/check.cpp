#include "check.h"
#include <algorithm>
#include <link.h>

namespace emu {
namespace {
// This library's own image: constants of kernels live there.
struct Image {
  uintptr_t begin = 0, end = 0;
  Image() {
    dl_iterate_phdr(
        [](dl_phdr_info* info, size_t, void* out) {
          uintptr_t lo = ~(uintptr_t)0, hi = 0;
          for (int i = 0; i < info->dlpi_phnum; ++i)
            if (const auto& ph = info->dlpi_phdr[i]; ph.p_type == PT_LOAD) {
              lo = std::min(lo, (uintptr_t)(info->dlpi_addr + ph.p_vaddr));
              hi = std::max(hi, (uintptr_t)(info->dlpi_addr + ph.p_vaddr + ph.p_memsz));
            }
          const auto here = reinterpret_cast<uintptr_t>(&check);
          if (here < lo || here >= hi) return 0;
          static_cast<Image*>(out)->begin = lo;
          static_cast<Image*>(out)->end = hi;
          return 1;
        },
        this);
  }
};

// Natural alignment of an access that one instruction makes: its size, at most 16.
unsigned alignment_of(unsigned bytes) { return std::min(bytes & -bytes, 16u); }
}  // namespace

void report(Fiber& f, const Access& a, const std::string& kind, const std::string& detail) {
  char b[96];
  snprintf(b, sizeof b, ": %s of %u bytes at %#zx", a.atomic ? "atomic" : a.write ? "write" : "read", a.bytes, (size_t)a.address);
  const std::string at = a.site.file ? where(f, a.site) : where_pc(f, static_cast<char*>(a.pc) - 1);
  fail(f, kind + b + detail + ": " + at);
}

void require_shared(Fiber& f, const void* p, size_t n, const char* what, Site s) {
  const Worker& w = *f.block->worker;
  const size_t dynamic = (size_t)(static_cast<const unsigned char*>(p) - f.block->smem), given = f.block->launch->smem;
  if (dynamic < MAX_DYN_SMEM + CANARY_BYTES) {
    if (dynamic + n <= given) return;
    fail_at(f,
            std::string("shared memory out of bounds: ") + what + " at offset " + std::to_string(dynamic) + ", the launch gave " +
                std::to_string(given) + " bytes",
            s);
  }
  const size_t variable = (size_t)(static_cast<const char*>(p) - w.static_begin);
  if (variable < w.static_size && n <= w.static_size - variable) return;
  fail_at(f, std::string(what) + ": not a shared-memory address", s);
}

void check(Fiber& f, const Access& a) {
  Block& b = *f.block;
  Worker& w = *b.worker;
  const Launch& l = *b.launch;
  ++w.stats.accesses;
  if (a.address - reinterpret_cast<uintptr_t>(&f) < FIBER_SLOT) return;  // the thread's own stack and header
  if (a.address % alignment_of(a.bytes)) report(f, a, "misaligned", "");
  const size_t dynamic = a.address - reinterpret_cast<uintptr_t>(b.smem);
  if (dynamic < MAX_DYN_SMEM + CANARY_BYTES) {
    if (dynamic + a.bytes > l.smem)
      report(f, a, "shared memory out of bounds",
             " (offset " + std::to_string(dynamic) + ", the launch gave " + std::to_string(l.smem) + " bytes)");
    check_shared_race(f, a, b, dynamic);
    return;
  }
  if (Block* peer = peer_at(b, a.address)) {
    check_remote(f, a, *peer);
    return;
  }
  const size_t variable = a.address - reinterpret_cast<uintptr_t>(w.static_begin);
  if (variable < w.static_size) {
    check_shared_race(f, a, b, MAX_DYN_SMEM + variable);
    return;
  }
  if (Alloc* alloc = find_alloc(w, a.address)) {
    const size_t left = alloc->begin + alloc->size - a.address;
    if (a.bytes > left)
      report(f, a, "global memory out of bounds",
             " (only " + std::to_string(left) + " bytes left of a " + std::to_string(alloc->size) + "-byte buffer)");
    check_global_race(f, a, *alloc);
    return;
  }
  static const Image image;
  const bool parameters = a.address >= l.params_begin && a.address < l.params_end;
  const bool constant = a.address >= image.begin && a.address < image.end;
  if (parameters || constant) {
    if (a.write) report(f, a, "write to constant memory", parameters ? " (kernel parameters)" : "");
    return;
  }
  if (a.address - reinterpret_cast<uintptr_t>(b.slots) < (size_t)b.capacity * FIBER_SLOT)
    report(f, a, "stack of another thread", "");
  report(f, a, "global memory out of bounds", " (" + describe_address(w, a.address) + ")");
}
}  // namespace emu
