#include "memory.h"
#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <sys/mman.h>
#include "check.h"
#include "state.h"

namespace emu {
namespace {
constexpr size_t GRANULE = 256;  // alignment of an allocation's start, and what it is accounted in

struct Table {
  std::mutex mutex;
  std::map<uintptr_t, std::shared_ptr<Alloc>> allocs;
  std::atomic<uint64_t> generation{1};  // changes with every allocation and every free
  size_t total = (size_t)8 << 30, used = 0;
};
Table& table() {
  static Table* t = new Table;  // never destroyed: threads may outlive static destructors
  return *t;
}

std::mutex pinned_mutex;
std::map<uintptr_t, size_t>& pinned() {
  static auto* p = new std::map<uintptr_t, size_t>;
  return *p;
}

size_t round_up(size_t n, size_t unit) { return (n + unit - 1) / unit * unit; }
}  // namespace

Alloc::~Alloc() {
  if (shadow) release_shadow(*this);
}

void set_device_memory(size_t total) { table().total = total; }
void device_memory(size_t& free, size_t& total) {
  Table& t = table();
  std::lock_guard<std::mutex> lock(t.mutex);
  total = t.total;
  free = t.total - t.used;
}

uintptr_t device_alloc(size_t size) {
  Table& t = table();
  std::lock_guard<std::mutex> lock(t.mutex);
  if (size > t.total || round_up(size, GRANULE) > t.total - t.used) return 0;
  const size_t body = round_up(size, GRANULE), pages = round_up(body, PAGE);
  void* m = mmap(nullptr, pages + 2 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (m == MAP_FAILED) return 0;
  char* first = static_cast<char*>(m) + PAGE;
  if (mprotect(first, pages, PROT_READ | PROT_WRITE)) {
    munmap(m, pages + 2 * PAGE);
    return 0;
  }
  memset(first, 0xff, pages);
  auto a = std::make_shared<Alloc>();
  a->begin = reinterpret_cast<uintptr_t>(first) + pages - body;
  a->size = size;
  a->map_begin = reinterpret_cast<uintptr_t>(m);
  a->map_bytes = pages + 2 * PAGE;
  t.used += body;
  const uintptr_t p = a->begin;
  t.allocs[p] = std::move(a);
  ++t.generation;
  return p;
}

bool device_free(uintptr_t p) {
  Table& t = table();
  std::lock_guard<std::mutex> lock(t.mutex);
  const auto it = t.allocs.find(p);
  if (it == t.allocs.end()) return false;
  ++t.generation;
  t.used -= round_up(it->second->size, GRANULE);
  munmap(reinterpret_cast<void*>(it->second->map_begin), it->second->map_bytes);
  t.allocs.erase(it);
  return true;
}

void free_all_device_memory() {
  Table& t = table();
  std::lock_guard<std::mutex> lock(t.mutex);
  for (auto& a : t.allocs) munmap(reinterpret_cast<void*>(a.second->map_begin), a.second->map_bytes);
  t.allocs.clear();
  t.used = 0;
  ++t.generation;
}

std::string check_device_range(uintptr_t p, size_t n) {
  Table& t = table();
  std::lock_guard<std::mutex> lock(t.mutex);
  auto it = t.allocs.upper_bound(p);
  if (it != t.allocs.begin()) {
    const Alloc& a = *(--it)->second;
    const size_t offset = p - a.begin;
    if (offset < a.size || (offset == a.size && n == 0)) {
      if (n <= a.size - offset) return {};
      return std::to_string(n) + " bytes at offset " + std::to_string(offset) + " of a " + std::to_string(a.size) +
             "-byte buffer";
    }
  }
  char b[64];
  snprintf(b, sizeof b, "%#zx is not device memory", (size_t)p);
  return b;
}

Alloc* find_alloc(Worker& w, uintptr_t a) {
  Table& t = table();
  if (w.generation != t.generation.load(std::memory_order_acquire)) {
    std::lock_guard<std::mutex> lock(t.mutex);
    w.generation = t.generation;
    w.last_alloc = nullptr;
    w.allocs.clear();
    for (auto& i : t.allocs) w.allocs.push_back(i.second);
  }
  if (w.last_alloc && w.last_alloc->contains(a)) return w.last_alloc;
  auto it = std::upper_bound(w.allocs.begin(), w.allocs.end(), a, [](uintptr_t x, const auto& y) { return x < y->begin; });
  if (it == w.allocs.begin() || !(*--it)->contains(a)) return nullptr;
  return w.last_alloc = it->get();
}

std::string describe_address(Worker& w, uintptr_t a) {
  find_alloc(w, a);  // renews the copy
  for (const auto& i : w.allocs) {
    if (a - i->map_begin >= i->map_bytes) continue;
    const std::string size = std::to_string(i->size) + "-byte buffer";
    if (a < i->begin) return std::to_string(i->begin - a) + " bytes before a " + size;
    return std::to_string(a - i->begin - i->size) + " bytes past the end of a " + size;
  }
  return "not device memory";
}

void* host_alloc(size_t size) {
  void* p = aligned_alloc(PAGE, round_up(std::max<size_t>(size, 1), PAGE));
  if (!p) return nullptr;
  std::lock_guard<std::mutex> lock(pinned_mutex);
  pinned()[reinterpret_cast<uintptr_t>(p)] = size;
  return p;
}
bool host_free(void* p) {
  std::lock_guard<std::mutex> lock(pinned_mutex);
  if (!pinned().erase(reinterpret_cast<uintptr_t>(p))) return false;
  free(p);
  return true;
}
bool is_pinned(const void* p, size_t n) {
  std::lock_guard<std::mutex> lock(pinned_mutex);
  const uintptr_t a = reinterpret_cast<uintptr_t>(p);
  auto it = pinned().upper_bound(a);
  if (it == pinned().begin()) return false;
  --it;
  return a - it->first <= it->second && n <= it->second - (a - it->first);
}
}  // namespace emu
