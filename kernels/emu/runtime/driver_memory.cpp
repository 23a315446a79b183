// Driver: device and pinned memory, copies, fills.
#include "driver.h"
#include <cstring>
#include "memory.h"

using namespace emu;

namespace {
Result allocate(uint64_t* p, size_t n, const char* call) {
  if (const Result r = enter()) return r;
  if (const Result r = forbid_while_capturing(call)) return r;
  if (!p || !n) return error(INVALID_VALUE, std::string(call) + ": no pointer, or 0 bytes");
  *p = device_alloc(n);
  if (*p) return SUCCESS;
  size_t free, total;
  device_memory(free, total);
  return error(OUT_OF_MEMORY, std::string(call) + ": " + std::to_string(n) + " bytes, " + std::to_string(free) + " of " +
                                  std::to_string(total) + " free");
}
Result release(uint64_t p, const char* call) {
  if (const Result r = enter()) return r;
  if (const Result r = forbid_while_capturing(call)) return r;
  if (!p) return SUCCESS;
  return device_free(p) ? SUCCESS : error(INVALID_VALUE, std::string(call) + ": not the start of an allocation (freed twice?)");
}

// A copy on a stream (`async`), or on the legacy stream at once.
Result copy(uintptr_t dst, bool dst_device, uintptr_t src, bool src_device, size_t n, bool async, void* stream,
            const char* call) {
  if (const Result r = enter()) return r;
  Stream* s;
  if (!stream_of(stream, s)) return error(INVALID_HANDLE, std::string(call) + ": not a live stream");
  if (!async)
    if (const Result r = forbid_while_capturing(call)) return r;
  if (!n) return SUCCESS;
  if (dst_device)
    if (std::string e = check_device_range(dst, n); !e.empty())
      return error(INVALID_VALUE, std::string(call) + ": destination: " + e);
  if (src_device)
    if (std::string e = check_device_range(src, n); !e.empty()) return error(INVALID_VALUE, std::string(call) + ": source: " + e);
  if ((!dst_device && !dst) || (!src_device && !src)) return error(INVALID_VALUE, std::string(call) + ": null host pointer");
  if (s && s->capture) {  // only pinned memory can still be there at the replay
    const bool pageable = (!dst_device && !is_pinned(reinterpret_cast<void*>(dst), n)) ||
                          (!src_device && !is_pinned(reinterpret_cast<void*>(src), n));
    if (pageable) {
      s->capture->invalidated = true;
      return error(STREAM_CAPTURE_UNSUPPORTED, std::string(call) + ": pageable host memory while the stream is captured");
    }
  }
  Node node{};
  node.kind = Node::Copy;
  node.dst = dst;
  node.src = src;
  node.dst_device = dst_device;
  node.src_device = src_device;
  node.bytes = n;
  return enqueue(s, std::move(node));
}

Result set(uint64_t dst, uint32_t value, unsigned width, size_t count, bool async, void* stream, const char* call) {
  if (const Result r = enter()) return r;
  Stream* s;
  if (!stream_of(stream, s)) return error(INVALID_HANDLE, std::string(call) + ": not a live stream");
  if (!async)
    if (const Result r = forbid_while_capturing(call)) return r;
  if (!count) return SUCCESS;
  if (dst % width || count > SIZE_MAX / width)
    return error(INVALID_VALUE, std::string(call) + ": misaligned, or too many elements");
  if (std::string e = check_device_range(dst, count * width); !e.empty())
    return error(INVALID_VALUE, std::string(call) + ": " + e);
  Node node{};
  node.kind = Node::Set;
  node.dst = dst;
  node.dst_device = true;
  node.bytes = count * width;
  node.value = value;
  node.width = width;
  return enqueue(s, std::move(node));
}
}  // namespace

API cuMemAlloc_v2(uint64_t* p, size_t n) { return allocate(p, n, "cuMemAlloc"); }
API cuMemAllocAsync(uint64_t* p, size_t n, void* stream) {
  Stream* s;
  if (!stream_of(stream, s)) return error(INVALID_HANDLE, "cuMemAllocAsync: not a live stream");
  return allocate(p, n, "cuMemAllocAsync");
}
API cuMemFree_v2(uint64_t p) {
  run_all_pending();  // it synchronises the device
  return release(p, "cuMemFree");
}
API cuMemFreeAsync(uint64_t p, void* stream) {
  Stream* s;
  if (!stream_of(stream, s)) return error(INVALID_HANDLE, "cuMemFreeAsync: not a live stream");
  return release(p, "cuMemFreeAsync");
}
API cuMemGetInfo_v2(size_t* free, size_t* total) {
  if (const Result r = enter()) return r;
  device_memory(*free, *total);
  return SUCCESS;
}
API cuMemHostAlloc(void** p, size_t n, unsigned) {
  if (const Result r = enter()) return r;
  if (const Result r = forbid_while_capturing("cuMemHostAlloc")) return r;
  *p = host_alloc(n);
  return *p ? SUCCESS : error(OUT_OF_MEMORY, "cuMemHostAlloc: " + std::to_string(n) + " bytes");
}
API cuMemFreeHost(void* p) {
  if (const Result r = enter()) return r;
  if (const Result r = forbid_while_capturing("cuMemFreeHost")) return r;
  return host_free(p) ? SUCCESS : error(INVALID_VALUE, "cuMemFreeHost: not pinned memory");
}

API cuMemcpyHtoD_v2(uint64_t d, const void* h, size_t n) {
  return copy(d, true, (uintptr_t)h, false, n, false, nullptr, "cuMemcpyHtoD");
}
API cuMemcpyDtoH_v2(void* h, uint64_t d, size_t n) {
  return copy((uintptr_t)h, false, d, true, n, false, nullptr, "cuMemcpyDtoH");
}
API cuMemcpyDtoD_v2(uint64_t d, uint64_t s, size_t n) { return copy(d, true, s, true, n, false, nullptr, "cuMemcpyDtoD"); }
API cuMemcpyHtoDAsync_v2(uint64_t d, const void* h, size_t n, void* s) {
  return copy(d, true, (uintptr_t)h, false, n, true, s, "cuMemcpyHtoDAsync");
}
API cuMemcpyDtoHAsync_v2(void* h, uint64_t d, size_t n, void* s) {
  return copy((uintptr_t)h, false, d, true, n, true, s, "cuMemcpyDtoHAsync");
}
API cuMemcpyDtoDAsync_v2(uint64_t d, uint64_t s, size_t n, void* stream) {
  return copy(d, true, s, true, n, true, stream, "cuMemcpyDtoDAsync");
}

API cuMemsetD8_v2(uint64_t d, unsigned char v, size_t n) { return set(d, v, 1, n, false, nullptr, "cuMemsetD8"); }
API cuMemsetD16_v2(uint64_t d, unsigned short v, size_t n) { return set(d, v, 2, n, false, nullptr, "cuMemsetD16"); }
API cuMemsetD32_v2(uint64_t d, unsigned v, size_t n) { return set(d, v, 4, n, false, nullptr, "cuMemsetD32"); }
API cuMemsetD8Async(uint64_t d, unsigned char v, size_t n, void* s) { return set(d, v, 1, n, true, s, "cuMemsetD8Async"); }
API cuMemsetD16Async(uint64_t d, unsigned short v, size_t n, void* s) { return set(d, v, 2, n, true, s, "cuMemsetD16Async"); }
API cuMemsetD32Async(uint64_t d, unsigned v, size_t n, void* s) { return set(d, v, 4, n, true, s, "cuMemsetD32Async"); }

// ---- the default memory pool: stream-ordered allocation frees at once, so its settings change nothing ----
namespace {
struct Pool {
  uint64_t release_threshold = 0;
} pool;
}  // namespace
API cuDeviceGetDefaultMemPool(void** p, int d) {
  if (d != 0) return INVALID_DEVICE;
  *p = &pool;
  return SUCCESS;
}
API cuDeviceGetMemPool(void** p, int d) { return cuDeviceGetDefaultMemPool(p, d); }
API cuMemPoolSetAttribute(void* p, int attribute, void* value) {
  if (p != &pool) return error(INVALID_HANDLE, "not the default memory pool");
  if (attribute == 4) memcpy(&pool.release_threshold, value, 8);  // CU_MEMPOOL_ATTR_RELEASE_THRESHOLD
  return SUCCESS;
}
API cuMemPoolGetAttribute(void* p, int attribute, void* value) {
  if (p != &pool) return error(INVALID_HANDLE, "not the default memory pool");
  if (attribute == 4) {
    memcpy(value, &pool.release_threshold, 8);
  } else if (attribute >= 5 && attribute <= 8) {  // reserved and used, now and at most
    size_t free, total;
    device_memory(free, total);
    const uint64_t used = total - free;
    memcpy(value, &used, 8);
  } else {
    const int one = 1;
    memcpy(value, &one, sizeof one);
  }
  return SUCCESS;
}
API cuMemPoolTrimTo(void* p, size_t) { return p == &pool ? SUCCESS : error(INVALID_HANDLE, "not the default memory pool"); }
