// Fibers: the stack switch, the slots they live in, and faults of plain (unchecked) kernels turned into errors.
#include <csignal>
#include <cstdio>
#include <dlfcn.h>
#include <mutex>
#include <new>
#include <stdexcept>
#include <sys/mman.h>
#include <ucontext.h>
#include "check.h"
#include "state.h"

extern "C" void emu_switch(void** save_sp, void* to_sp);
__asm__(R"(
.text
.type emu_switch,@function
emu_switch:
  pushq %rbp; pushq %rbx; pushq %r12; pushq %r13; pushq %r14; pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15; popq %r14; popq %r13; popq %r12; popq %rbx; popq %rbp
  ret
.size emu_switch,.-emu_switch
)");

namespace emu {
thread_local Tls tls;

namespace {
// Stacks of all blocks, so that the fault handler can tell a kernel's fault from any other. Lock-free to read.
struct Region {
  std::atomic<uintptr_t> begin{0}, end{0};
};
constexpr unsigned REGIONS = 4096;
Region regions[REGIONS];
std::mutex regions_mutex;

void add_region(uintptr_t begin, uintptr_t end) {
  std::lock_guard<std::mutex> lock(regions_mutex);
  for (Region& r : regions)
    if (!r.begin) {
      r.end = end;
      r.begin = begin;
      return;
    }
}
void remove_region(uintptr_t begin) {
  std::lock_guard<std::mutex> lock(regions_mutex);
  for (Region& r : regions)
    if (r.begin == begin) r.begin = 0;
}
bool on_fiber_stack(uintptr_t sp) {
  for (Region& r : regions)
    if (const uintptr_t b = r.begin; b && sp >= b && sp < r.end) return true;
  return false;
}

void* map_pages(size_t bytes) {
  void* p = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p == MAP_FAILED) throw std::bad_alloc();
  return p;
}

void fiber_main() {
  Fiber& f = current();
  const Launch& l = *f.block->launch;
  l.entry(l.params);
  if (!f.copies.empty()) fail_at(f, "cp.async never waited for", f.copies[0].site);
  if (!f.wgmmas.empty()) fail_at(f, "wgmma never waited for", f.wgmmas[0].site);
  f.state = State::Done;
  switch_to_scheduler(f);
  __builtin_trap();
}

// ---- faults ----
struct sigaction previous_segv, previous_bus;
struct Fault {
  void* pc;
  uintptr_t address;
};
Fault* fault_of(Fiber& f) { return reinterpret_cast<Fault*>(reinterpret_cast<char*>(&f) + sizeof(Fiber)); }

// Entered on the faulting fiber's stack, from its top, once the signal has returned.
void report_fault() {
  Fiber& f = current();
  const Fault fault = *fault_of(f);
  const uintptr_t guard = reinterpret_cast<uintptr_t>(&f) + PAGE;
  char b[96];
  if (fault.address - guard < PAGE)
    snprintf(b, sizeof b, "stack overflow of a thread (%zu KiB)", (FIBER_SLOT - STACK_OFFSET) >> 10);
  else snprintf(b, sizeof b, "illegal address %#zx", (size_t)fault.address);
  fail(f, std::string(b) + ": " + (f.op_site.file ? where(f, f.op_site) : where_pc(f, fault.pc)));
}

void on_fault(int sig, siginfo_t* info, void* context) {
  ucontext_t& uc = *static_cast<ucontext_t*>(context);
  const uintptr_t sp = (uintptr_t)uc.uc_mcontext.gregs[REG_RSP];
  if (!on_fiber_stack(sp)) {  // not ours: whoever was there before decides
    sigaction(sig, sig == SIGSEGV ? &previous_segv : &previous_bus, nullptr);
    return;
  }
  Fiber& f = *reinterpret_cast<Fiber*>(sp & -FIBER_SLOT);
  *fault_of(f) = {reinterpret_cast<void*>(uc.uc_mcontext.gregs[REG_RIP]), reinterpret_cast<uintptr_t>(info->si_addr)};
  uc.uc_mcontext.gregs[REG_RIP] = (greg_t)(uintptr_t)&report_fault;
  uc.uc_mcontext.gregs[REG_RSP] = (greg_t)((sp & -FIBER_SLOT) + FIBER_SLOT - 64 - 8);  // as after a call
}
}  // namespace

// The handler runs on the thread's alternate stack: a fiber that overflowed has none left. Rust gives its threads
// one; threads without get it here.
void install_fault_handler() {
  static std::once_flag once;
  std::call_once(once, [] {
    struct sigaction a{};
    a.sa_sigaction = on_fault;
    a.sa_flags = SA_SIGINFO | SA_ONSTACK;
    sigemptyset(&a.sa_mask);
    sigaction(SIGSEGV, &a, &previous_segv);
    sigaction(SIGBUS, &a, &previous_bus);
  });
}

Block::Block() {
  char* p = static_cast<char*>(map_pages(MAX_DYN_SMEM + 3 * PAGE));  // 1024-byte alignment comes with the page's
  smem = reinterpret_cast<unsigned char*>(p);
  mprotect(p + (MAX_DYN_SMEM + 2 * PAGE - 1) / PAGE * PAGE, PAGE, PROT_NONE);
}
Block::~Block() {
  munmap(smem, MAX_DYN_SMEM + 3 * PAGE);
  if (!slots) return;
  for (unsigned t = 0; t < capacity; ++t) fiber(t).~Fiber();
  remove_region(reinterpret_cast<uintptr_t>(slots));
  munmap(slots, (size_t)capacity * FIBER_SLOT);
}

void Block::reserve(unsigned n) {
  if (n <= capacity) return;
  if (slots) {
    for (unsigned t = 0; t < capacity; ++t) fiber(t).~Fiber();
    remove_region(reinterpret_cast<uintptr_t>(slots));
    munmap(slots, (size_t)capacity * FIBER_SLOT);
  }
  const size_t bytes = (size_t)n * FIBER_SLOT;
  char* raw = static_cast<char*>(map_pages(bytes + FIBER_SLOT));
  slots = reinterpret_cast<char*>((reinterpret_cast<uintptr_t>(raw) + FIBER_SLOT - 1) & -FIBER_SLOT);
  if (slots > raw) munmap(raw, (size_t)(slots - raw));
  const size_t tail = (size_t)(raw + FIBER_SLOT - slots);
  if (tail) munmap(slots + bytes, tail);
  capacity = n;
  for (unsigned t = 0; t < n; ++t) {
    new (slots + (size_t)t * FIBER_SLOT) Fiber{};
    mprotect(slots + (size_t)t * FIBER_SLOT + PAGE, PAGE, PROT_NONE);
  }
  add_region(reinterpret_cast<uintptr_t>(slots), reinterpret_cast<uintptr_t>(slots) + bytes);
}

void start_fiber(Fiber& f) {
  void** sp = reinterpret_cast<void**>(reinterpret_cast<char*>(&f) + FIBER_SLOT - 64);  // 16-byte aligned
  *--sp = nullptr;                                                                      // fiber_main never returns
  *--sp = reinterpret_cast<void*>(fiber_main);
  sp -= 6;  // the callee-saved registers
  memset(sp, 0, 48);
  f.sp = sp;
}

void switch_to_fiber(Worker& w, Fiber& f) {
  ++w.stats.switches;
  w.in_fiber = true;
  emu_switch(&w.scheduler_sp, f.sp);
  w.in_fiber = false;
}
void switch_to_scheduler(Fiber& f) { emu_switch(&f.sp, f.block->worker->scheduler_sp); }

std::string where(const Fiber& f, Site s) {
  char b[320];
  const uint3 k = f.block_index, t = f.thread_index;
  snprintf(b, sizeof b, "block (%u,%u,%u) thread (%u,%u,%u) at %s:%d", k.x, k.y, k.z, t.x, t.y, t.z, s.file ? s.file : "?",
           s.line);
  return b;
}

void fail(Fiber& f, std::string message) {
  Worker& w = *f.block->worker;
  if (w.error.empty()) w.error = std::move(message);
  f.block->launch->failed = true;
  if (!w.in_fiber) throw Abandoned{};
  f.state = State::Done;
  switch_to_scheduler(f);
  __builtin_trap();
}
}  // namespace emu
