// State of a running launch: fibers, warps, blocks, and the worker (OS thread) that runs them.
#pragma once
#include <atomic>
#include <map>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>
#include "../include/emu_abi.h"

namespace emu {

constexpr unsigned MAX_THREADS = 1024;  // of a block
constexpr unsigned MAX_WARPS = MAX_THREADS / 32;
constexpr unsigned MAX_CLUSTER = 8;  // blocks, the portable size
constexpr size_t PAGE = 4096;
constexpr size_t STACK_OFFSET = 2 * PAGE;                    // slot: header page, guard page, stack
constexpr size_t MAX_DYN_SMEM = 232448;                      // 227 KiB, the most any supported device gives a block
constexpr unsigned TMA = MAX_WARPS, AGENTS = MAX_WARPS + 1;  // clock indices: one per warp, one for the TMA unit
constexpr uint16_t TMA_TID = 0xffff;

struct Block;
struct Cluster;
struct Worker;
struct Launch;
struct Fiber;
struct SharedShadow;
struct Alloc;

// Vector clock of one agent of a block.
struct Clocks {
  uint32_t v[AGENTS] = {};
  void join(const Clocks& o) {
    for (unsigned i = 0; i < AGENTS; ++i)
      if (v[i] < o.v[i]) v[i] = o.v[i];
  }
};

// What a thread knows to be complete in other blocks: per block, accesses of warp w up to clock v[w], and those of
// single lanes beyond that. Passed on by a fence and an atomic, taken up by an atomic and a fence.
struct Seen {
  uint32_t v[MAX_WARPS] = {};
  std::vector<std::pair<uint16_t, uint32_t>> lanes;  // thread, clock
  bool covers(uint16_t tid, uint32_t clock) const;
  void join(const Seen&);
};
using Knowledge = std::map<uint32_t, Seen>;  // by block serial
using KnowledgePtr = std::shared_ptr<const Knowledge>;

enum class State : uint8_t { Ready, Barrier, Collective, Mbarrier, Named, Cluster, Grid, Spin, Done };

struct CpAsync {
  void* dst;
  const void* src;
  int size, src_bytes;
  Site site;
};
struct Wgmma {
  float* d;
  int n;
  uint64_t a, b;
  bool bf16;
  Site site;
};
// Accumulator registers that wgmma holds: until its wait the thread's own copy is NaN bytes, which nobody may change.
struct WgmmaSums {
  float* d;
  std::vector<float> value;
};
struct MBar {  // the 64 bits of an mbarrier in shared memory
  uint8_t phase, magic;
  uint16_t count, pending;
  int16_t tx16;
};
static_assert(sizeof(MBar) == 8, "an mbarrier is 64 bits");

struct Warp {
  Fiber* lane[32];
  unsigned id, lanes;
  uint32_t epoch;       // counts __syncwarp and block barriers: orders memory among the lanes
  uint32_t sync_clock;  // own clock at the last of these
  uint32_t mask, arrived;
  Collective fn;
  void* arg[32];
  uint32_t cluster_arrivals;  // at the cluster's barrier so far
  bool cluster_open;          // arrived and not yet waited
};

struct Fiber : Thread {  // at the base of its slot
  Block* block;
  Warp* warp;
  void* sp;
  State state;
  Site site;         // where it waits
  Site op_site;      // of the emulated operation that touches memory just now, if any
  const char* what;  // what it waits in
  int vote, named;   // operand of a voting barrier; id of a named one
  const MBar* mbar;
  uint32_t parity;
  // atomics that neither changed memory nor saw a new value, in a row: a spin-wait
  const void* spin_address;
  uint64_t spin_value;
  unsigned spins;
  std::vector<CpAsync> copies;      // issued and not waited for, oldest first
  std::vector<size_t> copy_groups;  // committed groups, as ends in `copies`
  std::vector<Wgmma> wgmmas;  // issued and not waited for, oldest first
  std::vector<size_t> wgmma_groups;
  std::vector<WgmmaSums> wgmma_sums;
  bool wgmma_fenced;  // wgmma.fence since the last wait
  KnowledgePtr known, pending, fenced;  // effective; read by atomics since the last fence; as of the last fence
};
static_assert(sizeof(Fiber) <= PAGE, "a fiber's header fits its page");

struct TensorMap {  // what cuTensorMapEncodeTiled writes into the opaque 128 bytes
  const char* base;
  uint64_t dim0, dim1, stride1;
  uint32_t box0, box1, elem, swizzle128;
};
struct TmaLoad {
  char* dst;
  TensorMap map;
  MBar* bar;
  int x, y;
  Clocks clocks;  // of the issuing warp
  uint16_t tid;   // of the issuing thread
  Site site;
};

struct Stats {
  uint64_t switches, collectives, barriers, accesses;
};

// One launch, shared by the workers that run its blocks.
struct Launch {
  void (*entry)(void**);
  void** params;
  uintptr_t params_begin, params_end;  // host memory that holds them
  dim3 grid, block, cluster;
  unsigned threads;
  size_t smem;
  uint32_t order;  // 0 forward, 1 reverse, others seed a shuffle
  bool checked;
  unsigned workers;
  uint32_t first_serial, blocks;
  unsigned cluster_size, clusters;
  std::vector<unsigned> cluster_order, rank_order, warp_order, lane_order;
  std::atomic<uint32_t> next_cluster{0};
  // A dependent launch: its blocks may run up to griddepcontrol.wait before the launch in front of it, and go on once
  // that has ended.
  bool dependent = false, cleared = true;
  std::vector<std::unique_ptr<Cluster>> suspended;  // blocks that have run ahead
  struct Serials {
    uint32_t first, count;
  };
  std::vector<Serials> ahead;  // of the launches behind this one whose blocks have run ahead
  std::atomic<uint64_t> progress{0};  // blocks that came on, over all workers
  std::atomic<bool> failed{false};
  std::unordered_map<uintptr_t, KnowledgePtr> released;  // by address of the atomic (checked launches: one worker)
};

// A block while it runs, or while it waits for others (spin-waits). Pooled.
struct Block {
  Launch* launch = nullptr;
  Worker* worker = nullptr;
  uint3 index{};
  uint32_t serial = 0;  // unique over all launches until it wraps
  char* slots = nullptr;
  unsigned capacity = 0, threads = 0, nwarps = 0, live = 0;
  unsigned char* smem = nullptr;    // MAX_DYN_SMEM bytes and a guard page
  std::vector<char> static_shared;  // image of the __shared__ variables while another block runs
  Warp warps[MAX_WARPS];
  Clocks clocks[AGENTS];
  int named_arrived[16] = {};
  std::unordered_map<const void*, Clocks> mbar_clocks;
  std::vector<TmaLoad> tma;
  std::unique_ptr<SharedShadow> shadow;
  Cluster* cluster = nullptr;
  unsigned rank = 0;         // in the cluster
  bool grid_waited = false;  // some thread has executed griddepcontrol.wait
  struct RemoteUse {
    uint32_t serial, clock;
    uint16_t tid;
  };
  std::map<unsigned, RemoteUse> remote_uses;  // last use of this block's shared memory, by rank and warp of a peer

  Block();
  ~Block();
  Block(const Block&) = delete;
  Fiber& fiber(unsigned tid) const { return *reinterpret_cast<Fiber*>(slots + (size_t)tid * FIBER_SLOT); }
  void reserve(unsigned threads);
};

// Blocks that run together and read each other's dynamic shared memory; a single block where there are no clusters.
struct Cluster {
  std::vector<std::unique_ptr<Block>> blocks;  // by rank
  uint32_t phase = 0;                          // of its barrier: completed so far
  Knowledge arrived;                           // what the warps that have arrived release
  KnowledgePtr visible;                        // released by the last completed phase
};

// One OS thread that runs blocks.
struct Worker {
  void* scheduler_sp = nullptr;
  Launch* launch = nullptr;
  Block* current = nullptr;  // whose __shared__ variables are in place
  bool in_fiber = false;
  bool productive = false;  // an atomic of the running block changed something
  std::string error;
  Stats stats{};
  std::vector<std::unique_ptr<Block>> idle;
  // the static __shared__ variables: this library's thread-local block, except `tls`
  char* static_begin = nullptr;
  size_t static_size = 0;
  // device allocations as of `generation`, sorted (checked launches)
  std::vector<std::shared_ptr<Alloc>> allocs;
  uint64_t generation = 0;
  Alloc* last_alloc = nullptr;
};

// Thrown by `fail` when the scheduler itself meets an error (a TMA load that it delivers).
struct Abandoned {};

inline Fiber& current() { return *static_cast<Fiber*>(self()); }
std::string where(const Fiber&, Site);
// Abandons the block with this message. On a fiber it switches away for good; on the scheduler it throws Abandoned.
[[noreturn]] void fail(Fiber&, std::string message);
[[noreturn]] inline void fail_at(Fiber& f, const std::string& message, Site s) { fail(f, message + ": " + where(f, s)); }

// ---- fiber.cpp ----
void switch_to_fiber(Worker&, Fiber&);
void switch_to_scheduler(Fiber&);
void start_fiber(Fiber&);  // next switch enters the kernel from the top
void install_fault_handler();

// ---- schedule.cpp ----
// Fills in what follows from the shape and the options, and gives the launch its serials.
void prepare_launch(Launch&);
// Runs the blocks of a dependent launch, as many as fit, until they wait for the launch in front.
std::string run_ahead(Launch&, Stats& stats);
// Runs all blocks; empty on success, else the message of the first error. Adds to `stats`.
std::string run_launch(Launch&, Stats& stats);
// A barrier among these warps: orders all their memory accesses.
void join_warps(Block&, uint32_t warps);

void release_thread_worker();  // at the end of an OS thread

// ---- cluster.cpp ----
// Completes the cluster's barrier if all warps that live have arrived.
void settle_cluster(Cluster&);
// The block of the cluster, other than `b`, whose dynamic shared memory holds this address; or null.
Block* peer_at(const Block& b, uintptr_t address);

// ---- hopper.cpp ----
void deliver_tma(Block&, const TmaLoad&);

// ---- per-thread state. Everything thread-local of the runtime is in here, because the rest of the library's
// thread-local block holds kernels' __shared__ variables, which each block finds filled with NaN bytes. ----
struct ThreadOptions {
  uint32_t order, check, os_threads;
};
struct ThreadStats;
struct Tls {
  Worker* worker;
  ThreadStats* stats;
  ThreadOptions options;
  bool options_set;
  struct Context* context;
};
extern thread_local Tls tls;

}  // namespace emu
