// The access checker: bounds, alignment and races of every memory access of a checked kernel.
//
// Races are found with a vector clock per warp (and one for the TMA unit), refined inside a warp by an epoch that
// __syncwarp and barriers advance. __syncthreads, named barriers and mbarriers order accesses of a block; between
// the blocks of a launch only a fence, an atomic that another block's atomic reads, and a fence there do, and between
// the blocks of a cluster its barrier. Shuffles,
// votes and mma order nothing. Shared memory is tracked byte by byte with the last read of every warp; global
// memory with the last two reads and writes of every 4 bytes, so a race there can be missed, but none invented.
#pragma once
#include <string>
#include "memory.h"
#include "state.h"

namespace emu {

constexpr unsigned char CANARY = 0xA5;  // behind dynamic shared memory
constexpr size_t CANARY_BYTES = 4096;

struct Access {
  uintptr_t address;
  uint32_t bytes;
  bool write;
  bool atomic;     // or volatile: never races with another atomic
  bool all_lanes;  // made by the warp as a whole (wgmma)
  uint16_t tid;    // thread of the block, or TMA_TID
  const Clocks* clocks;
  void* pc;   // return address of the hook
  Site site;  // or the source line of an emulated operation
  static Access of_code(const void* p, uint32_t bytes, bool write, void* pc, bool atomic = false) {
    return {reinterpret_cast<uintptr_t>(p), bytes, write, atomic, false, (uint16_t)self()->tid, nullptr, pc, {}};
  }
  static Access of_op(const void* p, uint32_t bytes, bool write, Site s, bool atomic = false) {
    return {reinterpret_cast<uintptr_t>(p), bytes, write, atomic, false, (uint16_t)self()->tid, nullptr, nullptr, s};
  }
};

// Fails the launch if the access is out of bounds, misaligned or races with an earlier one.
void check(Fiber&, const Access&);
[[noreturn]] void report(Fiber&, const Access&, const std::string& kind, const std::string& detail);
// Fails unless [p, p+n) is shared memory of the block.
void require_shared(Fiber&, const void* p, size_t n, const char* what, Site);

// ---- race_shared.cpp, race_global.cpp ----
struct SharedShadow {
  explicit SharedShadow(size_t static_size);
  ~SharedShadow();
  struct Write* writes;  // one per byte: dynamic shared memory, then the __shared__ variables
  struct Read* reads;    // one per byte and warp, and one for each block of the cluster
  size_t bytes;
};
// An access to the shared memory of `owner`, the thread's own block or one of its cluster.
void check_shared_race(Fiber&, const Access&, Block& owner, size_t offset);
void check_global_race(Fiber&, const Access&, Alloc&);
void release_shadow(Alloc&);

// ---- ordering.cpp ----
// The threads of `lanes` in `warps` have met: each now knows what any of them knew.
void join_knowledge(Block&, uint32_t warps, uint32_t lanes);
// An atomic of a checked kernel at `p`: takes up what earlier atomics there released, releases what the fence covered.
void order_atomic(Fiber&, uintptr_t p, bool writes);
// Whether the thread knows thread `tid` of block `serial` to have come past `clock` (clocks of its warp).
bool knows(const Fiber&, uint32_t serial, uint16_t tid, uint32_t clock);

KnowledgePtr merged(const KnowledgePtr&, const KnowledgePtr&);

// ---- cluster.cpp ----
// An access to the dynamic shared memory of a peer.
void check_remote(Fiber&, const Access&, Block& peer);
// Fails where a peer may still use the shared memory of a block whose last thread has ended.
std::string unfinished_use(const Block&);

// ---- symbols.cpp ----
std::string source_line(void* pc);             // "file:line" of an instruction
std::string where_pc(const Fiber&, void* pc);  // with block and thread
}  // namespace emu
