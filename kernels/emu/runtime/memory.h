// Device memory: every allocation ends (to 256 bytes) at a guard page and is born filled with NaN bytes.
#pragma once
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace emu {
struct Cell;
struct Worker;

struct Alloc {
  uintptr_t begin = 0;
  size_t size = 0;
  uintptr_t map_begin = 0;  // with guard pages
  size_t map_bytes = 0;
  Cell* shadow = nullptr;  // race-check state, one cell per 4 bytes; made by the first checked access

  Alloc() = default;
  Alloc(const Alloc&) = delete;
  ~Alloc();
  bool contains(uintptr_t a) const { return a - begin < size; }
};

// Sets the size of the device; call before the first allocation.
void set_device_memory(size_t total);
void device_memory(size_t& free, size_t& total);
// 0 when the device or the machine has too little memory.
uintptr_t device_alloc(size_t size);
// False when `p` is not the start of an allocation.
bool device_free(uintptr_t p);
void free_all_device_memory();
// Empty when [p, p+n) lies inside one allocation, else what is wrong.
std::string check_device_range(uintptr_t p, size_t n);
// The allocation that holds `a`, from the worker's copy of the table, which is renewed whenever the table has
// changed; or null.
Alloc* find_alloc(Worker&, uintptr_t a);
// What lies around an address that is in no allocation.
std::string describe_address(Worker&, uintptr_t a);
// Pinned host memory, the only kind that a captured copy may name.
void* host_alloc(size_t size);
bool host_free(void* p);
bool is_pinned(const void* p, size_t n);
}  // namespace emu
