// The scheduler: runs the fibers of a block in the launch's order until all have ended, resolves barriers, tells
// deadlocks, and alternates between blocks when one waits for another (a spin-wait).
#include <algorithm>
#include <chrono>
#include <csignal>
#include <link.h>
#include <mutex>
#include <thread>
#include "check.h"
#include "state.h"

namespace emu {
namespace {
constexpr unsigned SPIN_ROUNDS = 4;       // rounds in which a block's threads only spin, before others get their turn
constexpr unsigned IDLE_ROUNDS = 256;     // turns of all resident blocks without progress: a deadlock
constexpr unsigned MAX_RESIDENT = 16384;  // threads of blocks that wait for others, a real device's order of magnitude
constexpr unsigned MAX_AHEAD = 4096;      // threads of a dependent launch that run ahead, if it has as many
constexpr size_t KEPT_BLOCKS = 16;        // that a worker keeps for the next launch
constexpr auto IDLE_TIME = std::chrono::seconds(20);  // the same with several workers, which see each other only in time

enum class Outcome { Finished, Failed, Spinning };

std::vector<unsigned> permutation(unsigned n, uint32_t order) {
  std::vector<unsigned> p(n);
  for (unsigned i = 0; i < n; ++i) p[i] = order == 1 ? n - 1 - i : i;
  if (order > 1) {
    uint64_t s = order * 0x9E3779B97F4A7C15ull;
    for (unsigned i = n; i > 1; --i) {
      s ^= s << 13;
      s ^= s >> 7;
      s ^= s << 17;
      std::swap(p[i - 1], p[s % i]);
    }
  }
  return p;
}

uint3 coordinates(unsigned n, dim3 d) { return {n % d.x, n / d.x % d.y, n / (d.x * d.y)}; }

// ---- the __shared__ variables: thread-local storage of this library, one image per resident block ----
void find_static_shared(Worker& w) {
  tls.worker = &w;  // makes the thread-local block exist
  struct Found {
    char* begin;
    size_t size;
  } found{nullptr, 0};
  dl_iterate_phdr(
      [](dl_phdr_info* info, size_t, void* out) {
        auto* begin = static_cast<char*>(info->dlpi_tls_data);
        for (int i = 0; i < info->dlpi_phnum; ++i) {
          const auto& ph = info->dlpi_phdr[i];
          auto* mine = reinterpret_cast<char*>(&tls);
          if (ph.p_type == PT_TLS && begin && mine >= begin && mine < begin + ph.p_memsz) {
            *static_cast<Found*>(out) = {begin, ph.p_memsz};
            return 1;
          }
        }
        return 0;
      },
      &found);
  w.static_begin = found.begin;
  w.static_size = found.size;
}
// Calls f(offset, size) for the parts of the thread-local block around `tls`.
template <class F>
void static_parts(const Worker& w, F f) {
  const size_t at = (size_t)(reinterpret_cast<char*>(&tls) - w.static_begin), after = at + sizeof tls;
  if (at) f((size_t)0, at);
  if (after < w.static_size) f(after, w.static_size - after);
}
void bring_in(Worker& w, Block* b) {
  if (w.current == b) return;
  if (w.current) {
    w.current->static_shared.resize(w.static_size);
    char* image = w.current->static_shared.data();
    static_parts(w, [&](size_t o, size_t n) { memcpy(image + o, w.static_begin + o, n); });
  }
  w.current = b;
  if (b && !b->static_shared.empty()) {
    const char* image = b->static_shared.data();
    static_parts(w, [&](size_t o, size_t n) { memcpy(w.static_begin + o, image + o, n); });
  }
}

void start_block(Worker& w, Block& b, Cluster& cluster, unsigned cluster_number, unsigned rank) {
  Launch& l = *w.launch;
  b.static_shared.clear();
  bring_in(w, &b);
  b.launch = &l;
  b.worker = &w;
  const dim3 of{l.grid.x / l.cluster.x, l.grid.y / l.cluster.y, l.grid.z / l.cluster.z};
  const uint3 c = coordinates(cluster_number, of), r = coordinates(rank, l.cluster);
  b.index = {c.x * l.cluster.x + r.x, c.y * l.cluster.y + r.y, c.z * l.cluster.z + r.z};
  b.serial = l.first_serial + (b.index.z * l.grid.y + b.index.y) * l.grid.x + b.index.x;
  b.cluster = &cluster;
  b.rank = rank;
  b.grid_waited = false;
  b.remote_uses.clear();
  b.threads = b.live = l.threads;
  b.nwarps = (l.threads + 31) / 32;
  b.reserve(l.threads);
  for (unsigned i = 0; i < b.nwarps; ++i) {
    Warp& k = b.warps[i];
    k.id = i;
    k.lanes = std::min(32u, l.threads - i * 32);
    k.epoch = k.arrived = k.mask = k.cluster_arrivals = 0;
    k.cluster_open = false;
    k.sync_clock = 1;
  }
  for (unsigned t = 0; t < l.threads; ++t) {
    Fiber& f = b.fiber(t);
    f.thread_index = coordinates(t, l.block);
    f.block_index = b.index;
    f.block_dim = l.block;
    f.grid_dim = l.grid;
    f.tid = t;
    f.dyn_smem = b.smem;
    f.block = &b;
    f.warp = &b.warps[t / 32];
    f.warp->lane[t % 32] = &f;
    f.state = State::Ready;
    f.op_site = {};
    f.spins = 0;
    f.spin_address = nullptr;
    f.copies.clear();
    f.copy_groups.clear();
    f.wgmmas.clear();
    f.wgmma_groups.clear();
    f.wgmma_sums.clear();
    f.wgmma_fenced = false;
    f.known = f.pending = f.fenced = nullptr;
    start_fiber(f);
  }
  // NaN bytes: a read of memory that nobody wrote shows up in the results
  memset(b.smem, 0xff, l.smem);
  memset(b.smem + l.smem, CANARY, CANARY_BYTES);
  static_parts(w, [&](size_t o, size_t n) { memset(w.static_begin + o, 0xff, n); });
  for (unsigned a = 0; a < AGENTS; ++a) {
    b.clocks[a] = {};
    b.clocks[a].v[a] = 1;
  }
  b.mbar_clocks.clear();
  b.tma.clear();
  std::fill(std::begin(b.named_arrived), std::end(b.named_arrived), 0);
}

Outcome failed(Worker& w, std::string message) {
  if (w.error.empty()) w.error = std::move(message);
  w.launch->failed = true;
  return Outcome::Failed;
}

// All live threads wait. Releases the block barrier if that is what they wait for.
bool release_barrier(Worker& w, Block& b) {
  const Fiber* first = nullptr;
  for (unsigned t = 0; t < b.threads; ++t) {
    const Fiber& f = b.fiber(t);
    if (f.state == State::Done) continue;
    if (f.state != State::Barrier) {
      failed(w, std::string("deadlock: waits in ") + f.what + ": " + where(f, f.site));
      return false;
    }
    if (first && (f.site.line != first->site.line || strcmp(f.site.file, first->site.file))) {
      failed(w, "divergent __syncthreads: " + where(*first, first->site) + " and " + where(f, f.site));
      return false;
    }
    if (!first) first = &f;
  }
  if (b.live != b.threads) {
    failed(w, "__syncthreads after some threads exited: " + where(*first, first->site));
    return false;
  }
  int count = 0;
  for (unsigned t = 0; t < b.threads; ++t) count += b.fiber(t).vote & 1;
  for (unsigned t = 0; t < b.threads; ++t) {
    b.fiber(t).vote = count;
    b.fiber(t).state = State::Ready;
  }
  join_warps(b, b.nwarps == 32 ? ~0u : (1u << b.nwarps) - 1);
  ++w.stats.barriers;
  return true;
}

// Runs every thread of the block that can run, once or until it waits. What has come of it: nothing ran, some
// only spun, or there was progress.
enum class Round { Idle, Spun, Progress };
Round run_round(Worker& w, Block& b) {
  Round round = Round::Idle;
  const Launch& l = *w.launch;
  for (unsigned i : l.warp_order)
    for (bool again = true; again;) {
      again = false;
      Warp& k = b.warps[i];
      for (unsigned lane : l.lane_order) {
        if (lane >= k.lanes) continue;
        Fiber& f = *k.lane[lane];
        if (f.state == State::Mbarrier && f.mbar->phase != f.parity) f.state = State::Ready;
        if (f.state == State::Cluster && b.cluster->phase >= k.cluster_arrivals) f.state = State::Ready;
        if (f.state == State::Grid && l.cleared) f.state = State::Ready;
        if (f.state != State::Spin && f.state != State::Ready) continue;
        f.state = State::Ready;
        w.productive = false;
        switch_to_fiber(w, f);
        if (!w.error.empty()) return Round::Progress;
        if (f.state == State::Done) {
          --b.live;
          if (l.cluster_size > 1) settle_cluster(*b.cluster);
        }
        if (f.state == State::Spin && !w.productive) {
          if (round == Round::Idle) round = Round::Spun;
        } else {
          again = true;
          round = Round::Progress;
        }
      }
    }
  return round;
}

// Whether threads wait for what other blocks or the launch in front have to do.
bool waits_outside(const Block& b) {
  for (unsigned t = 0; t < b.threads; ++t)
    if (b.fiber(t).state == State::Cluster || b.fiber(t).state == State::Grid) return true;
  return false;
}

// What is wrong with a block that has ended, or nothing.
std::string ended_badly(const Block& b) {
  const Launch& l = *b.launch;
  if (!b.tma.empty()) return "TMA load never waited for: " + where(b.fiber(0), b.tma[0].site);
  if (l.dependent && !b.grid_waited)
    return "a dependent launch ended without griddepcontrol.wait: " + where(b.fiber(0), {"(end of the kernel)", 0});
  if (std::string use = unfinished_use(b); !use.empty()) return use + ": " + where(b.fiber(0), {"(end of the kernel)", 0});
  for (size_t i = 0; i < CANARY_BYTES; ++i)
    if (b.smem[l.smem + i] != CANARY)
      return "write past dynamic shared memory, " + std::to_string(i) + " bytes after its end: " +
             where(b.fiber(0), {"(found when the block ended; the checked build names the line)", 0});
  return {};
}

// Runs a block until it ends, fails, or only waits for other blocks.
Outcome run_block(Worker& w, Block& b, bool& progressed) {
  bring_in(w, &b);
  const Launch& l = *w.launch;
  for (unsigned spun = 0;;) {
    const Round round = run_round(w, b);
    if (!w.error.empty()) return Outcome::Failed;
    if (b.live == 0) {
      if (std::string wrong = ended_badly(b); !wrong.empty()) return failed(w, std::move(wrong));
      if (l.cluster_size > 1) memset(b.smem, 0xff, l.smem);  // a peer that still reads it gets NaN
      progressed = true;
      return Outcome::Finished;
    }
    if (round == Round::Progress) {
      progressed = true;
      spun = 0;
      continue;
    }
    if (!b.tma.empty()) {  // asynchronous copies land only when nothing else can run
      const size_t n = b.tma.size(), k = l.order == 0 ? 0 : l.order == 1 ? n - 1 : w.stats.switches % n;
      const TmaLoad t = b.tma[k];
      b.tma.erase(b.tma.begin() + (long)k);
      try {
        deliver_tma(b, t);
      } catch (const Abandoned&) {
        return Outcome::Failed;
      }
      progressed = true;
      continue;
    }
    if (round == Round::Spun) {
      if (++spun >= SPIN_ROUNDS) return Outcome::Spinning;
      continue;
    }
    if (waits_outside(b)) return Outcome::Spinning;
    if (!release_barrier(w, b)) return Outcome::Failed;
    progressed = true;
  }
}

// A thread that waits for what other blocks have to do.
const Fiber& a_waiter(const Cluster& c) {
  for (const auto& b : c.blocks)
    for (unsigned t = 0; t < b->threads; ++t)
      if (const State s = b->fiber(t).state; s == State::Spin || s == State::Cluster) return b->fiber(t);
  return c.blocks[0]->fiber(0);
}

// The clusters of a launch that one worker has started: as a unit they start, and as a unit they go.
struct Resident {
  Worker& w;
  Launch& l;
  std::vector<std::unique_ptr<Cluster>> clusters;

  unsigned threads() const { return (unsigned)clusters.size() * l.cluster_size * l.threads; }
  // Starts the next cluster of the launch, if there is one.
  bool start_next() {
    const unsigned next = l.next_cluster < l.clusters ? l.next_cluster++ : l.clusters;
    if (next >= l.clusters) return false;
    auto c = std::make_unique<Cluster>();
    for (unsigned rank = 0; rank < l.cluster_size; ++rank) {
      std::unique_ptr<Block> b;
      if (w.idle.empty()) b = std::make_unique<Block>();
      else {
        b = std::move(w.idle.back());
        w.idle.pop_back();
      }
      start_block(w, *b, *c, l.cluster_order[next], rank);
      c->blocks.push_back(std::move(b));
    }
    clusters.push_back(std::move(c));
    return true;
  }
  // Gives each block of cluster i its turn; false when the cluster has gone.
  bool turn(size_t i, bool& progressed) {
    Cluster& c = *clusters[i];
    bool live = false;
    for (unsigned rank : l.rank_order) {
      if (Block& b = *c.blocks[rank]; b.live) live |= run_block(w, b, progressed) == Outcome::Spinning;
      if (l.failed) break;
    }
    if (live) return true;
    release(i);
    return false;
  }
  void release(size_t i) {
    for (auto& b : clusters[i]->blocks) {
      if (w.current == b.get()) w.current = nullptr;
      w.idle.push_back(std::move(b));
    }
    clusters.erase(clusters.begin() + (long)i);
  }
};

// Runs blocks of a dependent launch up to their wait, then puts them aside.
void run_blocks_ahead(Worker& w) {
  Launch& l = *w.launch;
  Resident r{w, l, {}};
  bool progressed = true;
  while (!l.failed && r.threads() < MAX_AHEAD && r.start_next()) r.turn(r.clusters.size() - 1, progressed);
  while (!l.failed && progressed) {
    progressed = false;
    for (size_t i = 0; i < r.clusters.size() && !l.failed;) i += r.turn(i, progressed);
  }
  bring_in(w, nullptr);
  l.suspended = std::move(r.clusters);
}

// Takes clusters until there are none left. A cluster that waits for another stays resident; the next one starts.
void run_blocks(Worker& w) {
  Launch& l = *w.launch;
  Resident r{w, l, std::move(l.suspended)};
  l.suspended.clear();
  unsigned idle = 0;
  uint64_t seen_progress = 0;
  auto since = std::chrono::steady_clock::now();
  const auto turn = [&](size_t i) {
    bool progressed = false;
    const bool stays = r.turn(i, progressed);
    if (progressed) {
      idle = 0;
      ++l.progress;
    }
    return stays;
  };
  while (!l.failed) {
    const uint64_t before = l.progress;
    for (size_t i = 0; i < r.clusters.size() && !l.failed;) i += turn(i);
    if (l.failed) break;
    if (l.progress != before && !r.clusters.empty()) continue;
    if (l.next_cluster < l.clusters && !r.clusters.empty() && r.threads() + l.cluster_size * l.threads > MAX_RESIDENT) {
      const Fiber& f = a_waiter(*r.clusters[0]);
      failed(w, "more than " + std::to_string(MAX_RESIDENT) + " threads wait for other blocks: " + where(f, f.site));
      break;
    }
    if (r.start_next()) {
      turn(r.clusters.size() - 1);
      continue;
    }
    if (r.clusters.empty()) break;
    const auto now = std::chrono::steady_clock::now();
    if (const uint64_t p = l.progress; p != seen_progress) {
      seen_progress = p;
      since = now;
    }
    if (l.workers == 1 ? ++idle > IDLE_ROUNDS : now - since > IDLE_TIME) {
      const Fiber& f = a_waiter(*r.clusters[0]);
      failed(w, (f.state == State::Cluster ? std::string("deadlock: waits in ") + f.what
                                           : std::string("deadlock: a spin-wait that no block ends")) +
                    ": " + where(f, f.site));
    }
    if (l.workers > 1) std::this_thread::yield();
  }
  while (!r.clusters.empty()) r.release(r.clusters.size() - 1);
  w.current = nullptr;
}

// Blocks that are kept hold no images of variables, and there are not too many of them.
void tidy(Worker& w) {
  for (auto& b : w.idle) {
    b->static_shared.clear();
    b->static_shared.shrink_to_fit();
  }
  if (w.idle.size() > KEPT_BLOCKS) w.idle.resize(KEPT_BLOCKS);
}

Worker& this_worker() {
  if (!tls.worker) find_static_shared(*new Worker);
  return *tls.worker;
}

void work(Launch& l, void (*run)(Worker&), std::mutex& mutex, Stats& stats, std::string& error) {
  Worker& w = this_worker();
  w.launch = &l;
  w.error.clear();
  w.stats = {};
  w.generation = 0;
  run(w);
  tidy(w);
  w.allocs.clear();
  w.last_alloc = nullptr;
  std::lock_guard<std::mutex> lock(mutex);
  if (error.empty()) error = w.error;
  stats.switches += w.stats.switches;
  stats.collectives += w.stats.collectives;
  stats.barriers += w.stats.barriers;
  stats.accesses += w.stats.accesses;
}

// Extra worker threads have neither a worker that outlives them nor an alternate signal stack.
void extra_worker(Launch& l, std::mutex& mutex, Stats& stats, std::string& error) {
  std::vector<char> alternate(64 << 10);
  stack_t ss{};
  ss.ss_sp = alternate.data();
  ss.ss_size = alternate.size();
  sigaltstack(&ss, nullptr);
  work(l, run_blocks, mutex, stats, error);
  delete tls.worker;
  tls.worker = nullptr;
  ss.ss_flags = SS_DISABLE;
  sigaltstack(&ss, nullptr);
}
}  // namespace

void join_warps(Block& b, uint32_t warps) {
  Clocks all;
  for (unsigned i = 0; i < MAX_WARPS; ++i)
    if (warps >> i & 1) all.join(b.clocks[i]);
  for (unsigned i = 0; i < MAX_WARPS; ++i)
    if (warps >> i & 1) {
      b.clocks[i] = all;
      b.warps[i].sync_clock = ++b.clocks[i].v[i];
      ++b.warps[i].epoch;
    }
  if (b.launch->checked) join_knowledge(b, warps, ~0u);
}

void sync_threads(Site s) {
  Fiber& f = current();
  f.state = State::Barrier;
  f.site = s;
  f.what = "__syncthreads";
  f.vote = 0;
  switch_to_scheduler(f);
}
int sync_threads_vote(int predicate, int kind, Site s) {
  Fiber& f = current();
  f.state = State::Barrier;
  f.site = s;
  f.what = "__syncthreads_count, _and or _or";
  f.vote = predicate != 0;
  switch_to_scheduler(f);
  return kind == 0 ? f.vote : kind == 1 ? f.vote == (int)f.block->threads : f.vote != 0;
}
void nanosleep(Site s) {
  Fiber& f = current();
  f.state = State::Spin;
  f.site = s;
  f.what = "__nanosleep";
  switch_to_scheduler(f);
}
void trap(const char* message, Site s) { fail_at(current(), std::string("trap: ") + message, s); }

void prepare_launch(Launch& l) {
  install_fault_handler();
  static std::atomic<uint32_t> serials{1};
  l.blocks = l.grid.x * l.grid.y * l.grid.z;
  l.threads = l.block.x * l.block.y * l.block.z;
  l.cluster_size = l.cluster.x * l.cluster.y * l.cluster.z;
  l.clusters = l.blocks / l.cluster_size;
  l.first_serial = serials.fetch_add(l.blocks);
  l.cluster_order = permutation(l.clusters, l.order);
  l.rank_order = permutation(l.cluster_size, l.order);
  l.warp_order = permutation((l.threads + 31) / 32, l.order);
  l.lane_order = permutation(32, l.order);
}

std::string run_ahead(Launch& l, Stats& stats) {
  l.cleared = false;
  l.workers = 1;  // fibers stay on their OS thread
  std::string error;
  std::mutex mutex;
  work(l, run_blocks_ahead, mutex, stats, error);
  return error;
}

std::string run_launch(Launch& l, Stats& stats) {
  l.cleared = true;
  if (l.checked) l.workers = 1;  // the shadow memory is not shared between threads
  std::string error;
  std::mutex mutex;
  std::vector<std::thread> threads;
  for (unsigned i = 1; i < l.workers; ++i) threads.emplace_back([&] { extra_worker(l, mutex, stats, error); });
  work(l, run_blocks, mutex, stats, error);
  for (auto& t : threads) t.join();
  return error;
}

void release_thread_worker() {
  delete tls.worker;
  tls.worker = nullptr;
}
}  // namespace emu
