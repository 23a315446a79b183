// Races in shared memory: per byte the last write, and the last read of every warp.
#include <new>
#include <sys/mman.h>
#include "check.h"

namespace emu {
struct Write {
  uint32_t serial;  // of the block; another one means never accessed
  uint32_t clock, epoch;
  uint16_t tid;
  bool atomic;
};
struct Read {
  uint32_t clock, epoch;
  uint16_t tid;
  bool several;  // lanes of the warp, in this epoch
  bool atomic;
};

SharedShadow::SharedShadow(size_t static_size) : bytes(MAX_DYN_SMEM + static_size) {
  const auto map = [](size_t n) {  // zeroed on first touch
    void* p = mmap(nullptr, n, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) throw std::bad_alloc();
    return p;
  };
  writes = static_cast<Write*>(map(bytes * sizeof(Write)));
  reads = static_cast<Read*>(map(bytes * MAX_WARPS * sizeof(Read)));
}
SharedShadow::~SharedShadow() {
  munmap(writes, bytes * sizeof(Write));
  munmap(reads, bytes * MAX_WARPS * sizeof(Read));
}

namespace {
std::string name(uint16_t tid) { return tid == TMA_TID ? "the TMA unit" : "thread #" + std::to_string(tid); }
}  // namespace

void check_shared_race(Fiber& f, const Access& a, size_t offset) {
  Block& b = *f.block;
  if (!b.shadow || b.shadow->bytes != MAX_DYN_SMEM + b.worker->static_size) b.shadow = std::make_unique<SharedShadow>(b.worker->static_size);
  const bool tma = a.tid == TMA_TID;
  const unsigned me = tma ? TMA : a.tid / 32u;
  const Clocks& clocks = a.clocks ? *a.clocks : b.clocks[me];
  const uint32_t epoch = tma ? 0 : b.warps[me].epoch;
  // whether an earlier access of thread `tid` is not ordered before this one
  const auto unordered = [&](uint16_t tid, uint32_t clock, uint32_t then, bool several) {
    const unsigned agent = tid == TMA_TID ? TMA : tid / 32u;
    const bool open = agent == me && !tma ? (several || a.all_lanes || tid != a.tid) && then == epoch : clock > clocks.v[agent];
    return open && !knows(f, b.serial, tid, clock);
  };
  const auto race = [&](const char* kind, uint16_t other) {
    report(f, a, "shared-memory race", " by " + name(a.tid) + " with a " + kind + " of " + name(other));
  };
  for (uint32_t i = 0; i < a.bytes; ++i) {
    Write& w = b.shadow->writes[offset + i];
    Read* r = b.shadow->reads + (offset + i) * MAX_WARPS;
    if (w.serial != b.serial) {
      w = {b.serial, 0, 0, 0, false};
      for (unsigned k = 0; k < b.nwarps; ++k) r[k] = {};
    }
    if (w.clock && !(w.atomic && a.atomic) && unordered(w.tid, w.clock, w.epoch, false)) race("write", w.tid);
    if (!a.write) {
      Read& m = r[me];
      const bool same = m.clock && m.epoch == epoch;
      m = {clocks.v[me], epoch, a.tid, a.all_lanes || (same && (m.several || m.tid != a.tid)), a.atomic && (!same || m.atomic)};
      continue;
    }
    for (unsigned k = 0; k < b.nwarps; ++k)
      if (r[k].clock && !(r[k].atomic && a.atomic) && unordered(r[k].tid, r[k].clock, r[k].epoch, r[k].several)) race("read", r[k].tid);
    w.clock = b.clocks[me].v[me];
    w.epoch = epoch;
    w.tid = a.tid;
    w.atomic = a.atomic;
  }
}
}  // namespace emu
