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

void start_block(Worker& w, Block& b, unsigned number) {
  Launch& l = *w.launch;
  b.static_shared.clear();
  bring_in(w, &b);
  b.launch = &l;
  b.worker = &w;
  b.index = {number % l.grid.x, number / l.grid.x % l.grid.y, number / (l.grid.x * l.grid.y)};
  b.serial = l.first_serial + number;
  b.threads = b.live = l.threads;
  b.nwarps = (l.threads + 31) / 32;
  b.reserve(l.threads);
  for (unsigned i = 0; i < b.nwarps; ++i) {
    Warp& k = b.warps[i];
    k.id = i;
    k.lanes = std::min(32u, l.threads - i * 32);
    k.epoch = k.arrived = k.mask = 0;
    k.sync_clock = 1;
  }
  for (unsigned t = 0; t < l.threads; ++t) {
    Fiber& f = b.fiber(t);
    f.thread_index = {t % l.block.x, t / l.block.x % l.block.y, t / (l.block.x * l.block.y)};
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
        if (f.state != State::Spin && f.state != State::Ready) continue;
        f.state = State::Ready;
        w.productive = false;
        switch_to_fiber(w, f);
        if (!w.error.empty()) return Round::Progress;
        b.live -= f.state == State::Done;
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

// Runs a block until it ends, fails, or only waits for other blocks.
Outcome run_block(Worker& w, Block& b, bool& progressed) {
  bring_in(w, &b);
  const Launch& l = *w.launch;
  for (unsigned spun = 0;;) {
    const Round round = run_round(w, b);
    if (!w.error.empty()) return Outcome::Failed;
    if (b.live == 0) {
      if (!b.tma.empty()) return failed(w, "TMA load never waited for: " + where(b.fiber(0), b.tma[0].site));
      for (size_t i = 0; i < CANARY_BYTES; ++i)
        if (b.smem[l.smem + i] != CANARY)
          return failed(w, "write past dynamic shared memory, " + std::to_string(i) + " bytes after its end: " +
                               where(b.fiber(0), {"(found when the block ended; the checked build names the line)", 0}));
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
    if (!release_barrier(w, b)) return Outcome::Failed;
    progressed = true;
  }
}

const Fiber& a_spinner(const Block& b) {
  for (unsigned t = 0; t < b.threads; ++t)
    if (b.fiber(t).state == State::Spin) return b.fiber(t);
  return b.fiber(0);
}

// Takes blocks until there are none left. A block that waits for another stays resident; the next one starts.
void run_blocks(Worker& w) {
  Launch& l = *w.launch;
  std::vector<std::unique_ptr<Block>> resident;
  unsigned idle = 0;
  uint64_t seen_progress = 0;
  auto since = std::chrono::steady_clock::now();
  const auto turn = [&](size_t i) {  // false when the block has gone
    bool progressed = false;
    const Outcome o = run_block(w, *resident[i], progressed);
    if (progressed) {
      idle = 0;
      ++l.progress;
    }
    if (o == Outcome::Spinning) return true;
    w.current = nullptr;
    w.idle.push_back(std::move(resident[i]));
    resident.erase(resident.begin() + (long)i);
    return false;
  };
  while (!l.failed) {
    const uint64_t before = l.progress;
    for (size_t i = 0; i < resident.size() && !l.failed;) i += turn(i);
    if (l.failed) break;
    if (l.progress != before && !resident.empty()) continue;
    const unsigned next = l.next_block < l.blocks ? l.next_block++ : l.blocks;
    if (next < l.blocks) {
      if ((resident.size() + 1) * l.threads > MAX_RESIDENT) {
        const Fiber& f = a_spinner(*resident[0]);
        failed(w, "more than " + std::to_string(MAX_RESIDENT) + " threads wait for other blocks: " + where(f, f.site));
        break;
      }
      std::unique_ptr<Block> b;
      if (w.idle.empty()) b = std::make_unique<Block>();
      else {
        b = std::move(w.idle.back());
        w.idle.pop_back();
      }
      resident.push_back(std::move(b));
      start_block(w, *resident.back(), l.block_order[next]);
      turn(resident.size() - 1);
      continue;
    }
    if (resident.empty()) break;
    const auto now = std::chrono::steady_clock::now();
    if (const uint64_t p = l.progress; p != seen_progress) {
      seen_progress = p;
      since = now;
    }
    if (l.workers == 1 ? ++idle > IDLE_ROUNDS : now - since > IDLE_TIME) {
      const Fiber& f = a_spinner(*resident[0]);
      failed(w, "deadlock: a spin-wait that no block ends: " + where(f, f.site));
    }
    if (l.workers > 1) std::this_thread::yield();
  }
  w.current = nullptr;
  for (auto& b : resident) w.idle.push_back(std::move(b));
  for (auto& b : w.idle) {
    b->static_shared.clear();
    b->static_shared.shrink_to_fit();
  }
  if (w.idle.size() > 4) w.idle.resize(4);
}

Worker& this_worker() {
  if (!tls.worker) find_static_shared(*new Worker);
  return *tls.worker;
}

void work(Launch& l, std::mutex& mutex, Stats& stats, std::string& error) {
  Worker& w = this_worker();
  w.launch = &l;
  w.error.clear();
  w.stats = {};
  w.generation = 0;
  run_blocks(w);
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
  work(l, mutex, stats, error);
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

std::string run_launch(Launch& l, Stats& stats) {
  install_fault_handler();
  static std::atomic<uint32_t> serials{1};
  l.first_serial = serials.fetch_add(l.blocks);
  l.block_order = permutation(l.blocks, l.order);
  l.warp_order = permutation((l.threads + 31) / 32, l.order);
  l.lane_order = permutation(32, l.order);
  if (l.checked) l.workers = 1;  // the shadow memory is not shared between threads
  std::string error;
  std::mutex mutex;
  std::vector<std::thread> threads;
  for (unsigned i = 1; i < l.workers; ++i) threads.emplace_back([&] { extra_worker(l, mutex, stats, error); });
  work(l, mutex, stats, error);
  for (auto& t : threads) t.join();
  return error;
}

void release_thread_worker() {
  delete tls.worker;
  tls.worker = nullptr;
}
}  // namespace emu
