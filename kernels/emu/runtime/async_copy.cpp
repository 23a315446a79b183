// cp.async: the copy happens as late as allowed, at the wait; until then its destination holds NaN bytes.
#include "check.h"
#include "state.h"

namespace emu {

void cp_async(void* dst, const void* src, int size, int src_bytes, Site s) {
  Fiber& f = current();
  if ((uintptr_t)dst % (unsigned)size)
    fail_at(f, "misaligned: cp.async destination, needs " + std::to_string(size) + " bytes", s);
  if ((uintptr_t)src % (unsigned)size) fail_at(f, "misaligned: cp.async source, needs " + std::to_string(size) + " bytes", s);
  if (src_bytes < 0 || src_bytes > size)
    fail_at(f, "cp.async: " + std::to_string(src_bytes) + " source bytes of " + std::to_string(size), s);
  require_shared(f, dst, (size_t)size, "cp.async destination", s);
  if (f.block->launch->checked) {
    check(f, Access::of_op(dst, (unsigned)size, true, s));
    if (src_bytes) check(f, Access::of_op(src, (unsigned)src_bytes, false, s));
  }
  memset(dst, 0xff, (size_t)size);
  f.copies.push_back({dst, src, size, src_bytes, s});
}

void cp_async_commit() {
  Fiber& f = current();
  f.copy_groups.push_back(f.copies.size());
}

void cp_async_wait(int keep) {
  Fiber& f = current();
  if ((int)f.copy_groups.size() <= keep) return;
  const size_t groups = f.copy_groups.size() - (size_t)keep, end = f.copy_groups[groups - 1];
  for (size_t i = 0; i < end; ++i) {
    const CpAsync& c = f.copies[i];
    if (f.block->launch->checked) check(f, Access::of_op(c.dst, (unsigned)c.size, true, c.site));
    f.op_site = c.site;
    memcpy(c.dst, c.src, (size_t)c.src_bytes);
    memset(static_cast<char*>(c.dst) + c.src_bytes, 0, (size_t)(c.size - c.src_bytes));
    f.op_site = {};
  }
  f.copies.erase(f.copies.begin(), f.copies.begin() + (long)end);
  f.copy_groups.erase(f.copy_groups.begin(), f.copy_groups.begin() + (long)groups);
  for (size_t& e : f.copy_groups) e -= end;
}

}  // namespace emu
