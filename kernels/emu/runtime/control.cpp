// Controls for tests, exported beside the driver API: schedule, checker, statistics, errors, kernel names. They
// concern the calling thread unless said otherwise.
#include <cstring>
#include "driver.h"

using namespace emu;

#define CONTROL(type) extern "C" __attribute__((visibility("default"))) type

// 0 forward, 1 reverse, others seed a shuffle of lanes, warps and blocks.
CONTROL(void) emu_set_schedule(uint32_t order) { thread_options().order = order; }
CONTROL(uint32_t) emu_schedule() { return thread_options().order; }
// Whether launches run the build with the access hooks.
CONTROL(void) emu_set_check(uint32_t on) { thread_options().check = on != 0; }
CONTROL(uint32_t) emu_check() { return thread_options().check; }
// OS threads that unchecked launches are spread over; checked ones use one.
CONTROL(void) emu_set_os_threads(uint32_t n) { thread_options().os_threads = n < 1 ? 1 : n > 64 ? 64 : n; }

// Copies the last error message (a kernel's fault, or why a driver call failed), cut to n - 1 bytes; returns its length.
CONTROL(size_t) emu_last_error(char* out, size_t n) {
  const std::string& e = thread_stats().last_error;
  if (out && n) {
    const size_t k = e.size() < n - 1 ? e.size() : n - 1;
    memcpy(out, e.data(), k);
    out[k] = 0;
  }
  return e.size();
}
// Clears this thread's message and the context's sticky error (all threads), which a real context cannot survive.
CONTROL(void) emu_reset_error() {
  thread_stats().last_error.clear();
  thread_stats().last_code = SUCCESS;
  std::lock_guard<std::mutex> lock(primary().mutex);
  primary().sticky = SUCCESS;
  primary().fault.clear();
}

struct EmuStatistics {
  uint64_t launches, graph_launches, switches, collectives, barriers, accesses;
};
CONTROL(void) emu_statistics(EmuStatistics* out) {
  run_pending();
  const ThreadStats& s = thread_stats();
  *out = {0, s.graph_launches, s.run.switches, s.run.collectives, s.run.barriers, s.run.accesses};
  for (const uint64_t n : s.launches) out->launches += n;
}
// Launches of one kernel so far; a replayed graph counts each of its kernels.
CONTROL(uint64_t) emu_kernel_launches(const char* name) {
  run_pending();
  const auto k = kernels().find(name);
  return k == kernels().end() ? 0 : thread_stats().launches[k->second.index];
}

CONTROL(size_t) emu_kernel_count() { return kernels().size(); }
// The i-th kernel in name order, or null.
CONTROL(const char*) emu_kernel_name(size_t i) {
  for (const auto& k : kernels())
    if (k.second.index == i) return k.first.c_str();
  return nullptr;
}
