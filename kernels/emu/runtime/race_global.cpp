// Races in global memory, inside a block, between the blocks of a launch, and with the launches behind it that have run
// ahead: per 4 bytes two reads and two writes.
#include <new>
#include <sys/mman.h>
#include "check.h"

namespace emu {
struct Mark {
  uint32_t serial;  // of the block; one outside this launch and those ahead means no access
  uint32_t clock, epoch;
  uint16_t tid;
  uint8_t bytes : 4;    // of the four
  uint8_t several : 1;  // lanes of the warp, in this epoch
  uint8_t atomic : 1;
};
struct Cell {
  Mark write[2], read[2];
};
static_assert(sizeof(Cell) == 64, "one cache line");

namespace {
size_t cells_of(const Alloc& a) { return (a.size + 7) / 4; }  // one more, for buffers that start off a multiple of 4

struct Checker {
  Fiber& f;
  const Access& a;
  const Launch& l;
  const Block& b;
  const Clocks& clocks;
  unsigned warp;
  Mark mine;

  bool ours(const Mark& m) const { return m.serial - l.first_serial < l.blocks; }
  bool ahead(const Mark& m) const {
    for (const Launch::Serials& s : l.ahead)
      if (m.serial - s.first < s.count) return true;
    return false;
  }
  bool stale(const Mark& m) const { return !ours(m) && !ahead(m); }
  bool same_warp(const Mark& m) const { return m.serial == b.serial && m.tid / 32u == warp; }
  bool races(const Mark& m) const {
    if (!(m.bytes & mine.bytes) || (m.atomic && mine.atomic) || stale(m)) return false;
    bool open = true;
    if (m.serial == b.serial)
      open = same_warp(m) ? (m.several || m.tid != mine.tid) && m.epoch == mine.epoch : m.clock > clocks.v[m.tid / 32u];
    return open && !knows(f, m.serial, m.tid, m.clock);
  }
  [[noreturn]] void fail_with(const Mark& m, const char* kind) const {
    std::string other = "thread #" + std::to_string(m.tid);
    if (!ours(m))
      report(f, a, "global-memory race between launches",
             std::string(" with a ") + kind + " of a dependent launch before its griddepcontrol.wait");
    if (m.serial != b.serial) {
      const unsigned n = m.serial - l.first_serial, x = n % l.grid.x, y = n / l.grid.x % l.grid.y, z = n / (l.grid.x * l.grid.y);
      other += " of block (" + std::to_string(x) + "," + std::to_string(y) + "," + std::to_string(z) + ")";
    }
    report(f, a, m.serial == b.serial ? "global-memory race" : "global-memory race between blocks",
           " by thread #" + std::to_string(mine.tid) + " with a " + kind + " of " + other);
  }
  void remember_write(Cell& c) const {
    for (Mark& r : c.read)  // ordered before this write, so whatever races with them races with it
      if (!(r.bytes & ~mine.bytes)) r.serial = l.first_serial - 1;
    for (Mark& w : c.write)
      if (stale(w) || !(w.bytes & ~mine.bytes)) {
        w = mine;
        return;
      }
    c.write[1] = c.write[0];
    c.write[0] = mine;
  }
  void remember_read(Cell& c) const {
    for (Mark& r : c.read) {
      if (stale(r)) {
        r = mine;
        return;
      }
      if (same_warp(r) && r.bytes == mine.bytes) {
        const bool together = r.epoch == mine.epoch, several = together && (r.several || r.tid != mine.tid),
                   atomic = mine.atomic && (!together || r.atomic);
        r = mine;
        r.several = several;
        r.atomic = atomic;
        return;
      }
    }
    c.read[1] = c.read[0];
    c.read[0] = mine;
  }
};
}  // namespace

void check_global_race(Fiber& f, const Access& a, Alloc& alloc) {
  if (!alloc.shadow) {
    void* p =
        mmap(nullptr, cells_of(alloc) * sizeof(Cell), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) throw std::bad_alloc();
    Cell* expected = nullptr;  // launches of two threads may share a buffer
    if (!__atomic_compare_exchange_n(&alloc.shadow, &expected, static_cast<Cell*>(p), false, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE))
      munmap(p, cells_of(alloc) * sizeof(Cell));
  }
  const Block& b = *f.block;
  const unsigned warp = a.tid / 32u;
  const Clocks& clocks = a.clocks ? *a.clocks : b.clocks[warp];
  Checker k{f, a, *b.launch, b, clocks, warp, {b.serial, clocks.v[warp], b.warps[warp].epoch, a.tid, 0, a.all_lanes, a.atomic}};
  const size_t from = a.address - alloc.begin, to = from + a.bytes;
  for (size_t word = from / 4; word * 4 < to; ++word) {
    const unsigned lo = word * 4 < from ? (unsigned)(from - word * 4) : 0, hi = to - word * 4 < 4 ? (unsigned)(to - word * 4) : 4;
    k.mine.bytes = (uint8_t)((1u << hi) - (1u << lo)) & 15;
    Cell& c = alloc.shadow[word];
    for (const Mark& w : c.write)
      if (k.races(w)) k.fail_with(w, w.atomic ? "atomic" : "write");
    if (a.write) {
      for (const Mark& r : c.read)
        if (k.races(r)) k.fail_with(r, "read");
      k.remember_write(c);
    } else {
      k.remember_read(c);
    }
  }
}

void release_shadow(Alloc& a) { munmap(a.shadow, cells_of(a) * sizeof(Cell)); }
}  // namespace emu
