// Driver: the order in which enqueued work runs. Launches wait on their stream until a call that is no launch, so that a
// dependent launch behind them can run ahead: up to its griddepcontrol.wait before the two launches in front of it begin,
// which is as early as a device could start it. What such a launch reads there is what the device might read.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <mutex>
#include <set>
#include "driver.h"
#include "memory.h"

namespace emu {
namespace {
constexpr size_t AHEAD = 2;         // launches behind the running one that have run ahead
constexpr size_t MAX_PENDING = 64;  // launches that wait on a stream

// A launch on its way, with its parameters.
struct Flight {
  Launch launch;
  const Function* function;
  std::unique_ptr<unsigned char, decltype(&free)> memory{nullptr, free};
};

// Adds the name of a kernel that runs under the checker to the file that ARCLET_EMU_CHECKED_KERNELS names, once a process.
void note_checked(const Function& f) {
  static const char* const path = getenv("ARCLET_EMU_CHECKED_KERNELS");
  if (!path) return;
  static std::mutex mutex;
  static std::set<unsigned> noted;
  std::lock_guard<std::mutex> lock(mutex);
  if (!noted.insert(f.kernel->index).second) return;
  if (FILE* file = fopen(path, "a")) {
    fprintf(file, "%s\n", f.name.c_str());
    fclose(file);
  }
}

Result prepare(const Node& n, const ThreadOptions& o, std::unique_ptr<Flight>& out) {
  if (!is_live(n.function)) return error(INVALID_HANDLE, "graph: a kernel's module was unloaded");
  const Kernel& k = *n.function->kernel;
  const KernelInfo* info = o.check ? k.checked : k.plain;
  if (!info) return error(NOT_FOUND, n.function->name + ": not built " + (o.check ? "with" : "without") + " the access hooks");
  auto flight = std::make_unique<Flight>();
  // pointers to the parameters, then the parameters, each aligned for anything CUDA passes by value
  constexpr size_t ALIGN = 64;
  const auto up = [](size_t x) { return (x + ALIGN - 1) & ~(ALIGN - 1); };
  size_t bytes = up(8 * (size_t)info->params);
  for (unsigned i = 0; i < info->params; ++i) bytes += up(info->sizes[i]);
  flight->memory.reset(static_cast<unsigned char*>(aligned_alloc(ALIGN, bytes + ALIGN)));
  unsigned char* const memory = flight->memory.get();
  void** pointers = reinterpret_cast<void**>(memory);
  unsigned char* at = memory + up(8 * (size_t)info->params);
  const unsigned char* from = n.params.data();
  for (unsigned i = 0; i < info->params; ++i) {
    memcpy(at, from, info->sizes[i]);
    pointers[i] = at;
    at += up(info->sizes[i]);
    from += info->sizes[i];
  }
  flight->function = n.function;
  Launch& l = flight->launch;
  l.entry = info->entry;
  l.params = pointers;
  l.params_begin = reinterpret_cast<uintptr_t>(memory);
  l.params_end = l.params_begin + bytes;
  l.grid = n.grid;
  l.block = n.block;
  l.cluster = n.cluster;
  l.smem = n.smem;
  l.order = o.order;
  l.checked = o.check;
  l.workers = o.os_threads ? o.os_threads : 1;
  l.dependent = n.dependent;
  prepare_launch(l);
  ++thread_stats().launches[k.index];
  if (o.check) note_checked(*n.function);
  out = std::move(flight);
  return SUCCESS;
}

// A kernel's fault becomes the context's sticky error, and the launch itself succeeds, as on a device. False if there was one.
bool settle(const Flight& f, const std::string& fault) {
  if (fault.empty()) return true;
  error(LAUNCH_FAILED, "kernel " + f.function->name + ": " + fault);
  std::lock_guard<std::mutex> lock(primary().mutex);
  if (!primary().sticky) {
    primary().sticky = LAUNCH_FAILED;
    primary().fault = thread_stats().last_error;
  }
  return false;
}

Result execute_other(const Node& n) {

  const auto at = [](uintptr_t p) { return reinterpret_cast<unsigned char*>(p); };
  switch (n.kind) {
    case Node::KernelLaunch: break;
    case Node::Copy: {
      // a recorded copy meets whatever is there at the replay
      std::string e = n.dst_device ? check_device_range(n.dst, n.bytes) : std::string();
      if (e.empty() && n.src_device) e = check_device_range(n.src, n.bytes);
      if (!e.empty()) return error(INVALID_VALUE, "copy: " + e);
      memmove(at(n.dst), at(n.src), n.bytes);
      return SUCCESS;
    }
    case Node::Set: {
      if (std::string e = check_device_range(n.dst, n.bytes); !e.empty()) return error(INVALID_VALUE, "fill: " + e);
      for (size_t i = 0; i < n.bytes; i += n.width) memcpy(at(n.dst) + i, &n.value, n.width);
      return SUCCESS;
    }
    case Node::HostCall: n.host(n.user); return SUCCESS;
  }
  return UNKNOWN;
}
}  // namespace

Result execute(const std::vector<Node>& nodes, const ThreadOptions& options) {
  Stats& stats = thread_stats().run;
  std::deque<std::unique_ptr<Flight>> chain;  // the launch to run, and those behind it that have run ahead
  for (size_t next = 0; next < nodes.size() || !chain.empty();) {
    if (chain.empty()) {
      const Node& n = nodes[next++];
      if (n.kind != Node::KernelLaunch) {
        if (const Result r = execute_other(n)) return r;
        continue;
      }
      std::unique_ptr<Flight> first;
      if (const Result r = prepare(n, options, first)) return r;
      chain.push_back(std::move(first));
    }
    while (chain.size() <= AHEAD && next < nodes.size() && nodes[next].dependent && nodes[next].stream == nodes[next - 1].stream) {
      std::unique_ptr<Flight> behind;
      if (const Result r = prepare(nodes[next++], options, behind)) return r;
      if (!settle(*behind, run_ahead(behind->launch, stats))) return SUCCESS;
      for (const auto& f : chain) f->launch.ahead.push_back({behind->launch.first_serial, behind->launch.blocks});
      chain.push_back(std::move(behind));
    }
    if (!settle(*chain.front(), run_launch(chain.front()->launch, stats))) return SUCCESS;
    chain.pop_front();
  }
  return SUCCESS;
}

void run_pending(Stream& s) {
  std::lock_guard<std::mutex> lock(s.running);
  const std::vector<Node> nodes = std::move(s.pending);
  s.pending.clear();
  if (nodes.empty()) return;
  {
    std::lock_guard<std::mutex> context(primary().mutex);
    if (primary().sticky) return;  // a kernel faulted: nothing after it runs
  }
  execute(nodes, s.options);
}
void run_pending() {
  Stream*& on = thread_stats().launched_on;
  if (Stream* s = streams().get(on)) run_pending(*s);
  on = nullptr;
}
void run_all_pending() {
  for (Stream* s : streams().all()) run_pending(*s);
}

Result launch_later(Stream& s, Node&& node) {
  ThreadStats& t = thread_stats();
  if (t.launched_on != &s) run_pending();
  const ThreadOptions& o = thread_options();
  std::unique_lock<std::mutex> lock(s.running);
  const bool changed = s.options.order != o.order || s.options.check != o.check || s.options.os_threads != o.os_threads;
  if (!s.pending.empty() && (changed || s.pending.size() >= MAX_PENDING)) {
    lock.unlock();
    run_pending(s);
    lock.lock();
  }
  s.options = o;
  s.pending.push_back(std::move(node));
  t.launched_on = &s;
  return SUCCESS;
}
}  // namespace emu
