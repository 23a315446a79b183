// Races in shared memory: the last write, and the last read of every warp, of each byte. The four bytes of a word
// share one record until an access takes only some of them. Of a peer in the cluster only its last read is kept.
#include <new>
#include <sys/mman.h>
#include "check.h"

namespace emu {
struct Write {
  uint32_t serial;  // of the owner; another one means never accessed
  uint32_t clock, epoch;
  uint16_t tid;
  uint8_t rank;  // in the cluster, of the block that wrote
  bool atomic;
  bool split;  // of a word's first byte: the others have records of their own
};
struct Read {
  uint32_t clock, epoch;
  uint16_t tid;
  bool several;  // lanes of the warp, in this epoch
  bool atomic;
};

SharedShadow::SharedShadow(size_t static_size) : bytes((MAX_DYN_SMEM + static_size + 3) / 4 * 4) {
  const auto map = [](size_t n) {  // zeroed on first touch
    void* p = mmap(nullptr, n, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) throw std::bad_alloc();
    return p;
  };
  writes = static_cast<Write*>(map(bytes * sizeof(Write)));
  reads = static_cast<Read*>(map(bytes * (MAX_WARPS + MAX_CLUSTER) * sizeof(Read)));
}
SharedShadow::~SharedShadow() {
  munmap(writes, bytes * sizeof(Write));
  munmap(reads, bytes * (MAX_WARPS + MAX_CLUSTER) * sizeof(Read));
}

namespace {
std::string name(uint16_t tid) { return tid == TMA_TID ? "the TMA unit" : "thread #" + std::to_string(tid); }

struct Checker {
  Fiber& f;
  const Access& a;
  const Block& b;      // of the thread
  const Block& owner;  // of the memory
  bool tma;
  unsigned agent;   // whose clock moves: a warp, or the TMA unit
  unsigned column;  // of the access among the reads
  const Clocks& clocks;
  uint32_t epoch;

  unsigned columns() const { return owner.nwarps + (unsigned)owner.cluster->blocks.size(); }
  // Whether an earlier access of thread `tid` of block `rank` is not ordered before this one.
  bool unordered(unsigned rank, uint16_t tid, uint32_t clock, uint32_t then, bool several) const {
    if (rank != b.rank) return !knows(f, b.cluster->blocks[rank]->serial, tid, clock);
    const unsigned other = tid == TMA_TID ? TMA : tid / 32u;
    const bool open =
        other == agent && !tma ? (several || a.all_lanes || tid != a.tid) && then == epoch : clock > clocks.v[other];
    return open && !knows(f, b.serial, tid, clock);
  }
  [[noreturn]] void race(const char* kind, unsigned rank, uint16_t other) const {
    const std::string where = rank == b.rank ? "" : " of block #" + std::to_string(rank) + " of the cluster";
    report(f, a, "shared-memory race", " by " + name(a.tid) + " with a " + kind + " of " + name(other) + where);
  }
  // One access to what the record stands for: a byte, or a whole word.
  void access(Write& w, Read* r) const {
    if (w.clock && !(w.atomic && a.atomic) && unordered(w.rank, w.tid, w.clock, w.epoch, false)) race("write", w.rank, w.tid);
    if (!a.write) {
      Read& m = r[column];
      const bool same = m.clock && m.epoch == epoch;
      m = {clocks.v[agent], epoch, a.tid, a.all_lanes || (same && (m.several || m.tid != a.tid)),
           a.atomic && (!same || m.atomic)};
      return;
    }
    for (unsigned k = 0; k < columns(); ++k) {
      const unsigned rank = k < owner.nwarps ? owner.rank : k - owner.nwarps;
      if (r[k].clock && !(r[k].atomic && a.atomic) && unordered(rank, r[k].tid, r[k].clock, r[k].epoch, r[k].several))
        race("read", rank, r[k].tid);
    }
    w.clock = b.clocks[agent].v[agent];
    w.epoch = epoch;
    w.tid = a.tid;
    w.rank = (uint8_t)b.rank;
    w.atomic = a.atomic;
  }
};
}  // namespace

void check_shared_race(Fiber& f, const Access& a, Block& owner, size_t offset) {
  Block& b = *f.block;
  const size_t static_size = owner.worker->static_size;
  if (!owner.shadow || owner.shadow->bytes < MAX_DYN_SMEM + static_size)
    owner.shadow = std::make_unique<SharedShadow>(static_size);
  const bool tma = a.tid == TMA_TID;
  const unsigned agent = tma ? TMA : a.tid / 32u, column = b.rank == owner.rank ? agent : owner.nwarps + b.rank;
  const Checker k{f,      a, b, owner, tma, agent, column, a.clocks ? *a.clocks : b.clocks[agent],
                  tma ? 0 : b.warps[agent].epoch};
  Write* const writes = owner.shadow->writes;
  // rows as wide as this block needs: what an earlier block left there is cleared with the serial
  const size_t columns = k.columns();
  const auto reads = [&](size_t byte) { return owner.shadow->reads + byte * columns; };
  const size_t end = offset + a.bytes;
  for (size_t word = offset & ~(size_t)3; word < end; word += 4) {
    Write& w = writes[word];
    if (w.serial != owner.serial) {
      w = {owner.serial, 0, 0, 0, 0, false, false};
      memset(reads(word), 0, columns * sizeof(Read));
    }
    const bool whole = offset <= word && word + 4 <= end;
    if (whole && !w.split) {
      k.access(w, reads(word));
      continue;
    }
    if (!w.split) {
      for (size_t i = 1; i < 4; ++i) {
        writes[word + i] = w;
        memcpy(reads(word + i), reads(word), columns * sizeof(Read));
      }
      w.split = true;
    }
    for (size_t i = word < offset ? offset : word; i < end && i < word + 4; ++i) k.access(writes[i], reads(i));
  }
}
}  // namespace emu
