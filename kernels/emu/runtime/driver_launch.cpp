// Driver: modules from manifests, functions, launches.
//
// A manifest is text: `ARCLET-EMU-MANIFEST`, then `arch <sm>` and the names of the kernels built for it, one per
// line, then possibly further architectures; a zero byte ends it.
#include <cstring>
#include <set>
#include <sstream>
#include "driver.h"
#include "memory.h"

extern "C" const emu::KernelInfo __start_emu_kernels[], __stop_emu_kernels[];

namespace emu {
const std::map<std::string, Kernel>& kernels() {
  static const auto* all = [] {
    auto* m = new std::map<std::string, Kernel>;
    for (const KernelInfo* k = __start_emu_kernels; k != __stop_emu_kernels; ++k)
      ((*m)[k->name].*(k->checked ? &Kernel::checked : &Kernel::plain)) = k;
    unsigned i = 0;
    for (auto& k : *m) k.second.index = i++;
    return m;
  }();
  return *all;
}

namespace {
constexpr char MAGIC[] = "ARCLET-EMU-MANIFEST\n";

// `80` runs on 80 and later, as PTX would; `90a` only on 90.
bool runs_here(const std::string& arch) {
  char* end = nullptr;
  const long sm = strtol(arch.c_str(), &end, 10);
  if (end == arch.c_str() || sm <= 0) return false;
  if (!strcmp(end, "a")) return device().cc == sm;
  return !*end && device().cc >= sm;
}

std::mutex functions_mutex;
std::set<Function*>& live_functions() {
  static auto* s = new std::set<Function*>;
  return *s;
}
Function* function_of(void* handle) {
  std::lock_guard<std::mutex> lock(functions_mutex);
  Function* f = static_cast<Function*>(handle);
  return live_functions().count(f) ? f : nullptr;
}

Result load(void** out, const void* image) {
  if (const Result r = enter()) return r;
  if (const Result r = forbid_while_capturing("cuModuleLoadData")) return r;
  if (!image || !out) return error(INVALID_VALUE, "cuModuleLoadData: null image");
  const char* text = static_cast<const char*>(image);
  if (strncmp(text, MAGIC, sizeof MAGIC - 1))
    return error(INVALID_IMAGE, "cuModuleLoadData: the emulated driver takes manifests only, not compiled kernels");
  if (device().version < 12000)
    return error(UNSUPPORTED_PTX_VERSION, "cuModuleLoadData: made for a newer driver than " + std::to_string(device().version));
  auto m = std::make_unique<Module>();
  std::istringstream lines(text + sizeof MAGIC - 1);
  std::string line, architectures;
  bool here = false, any = false;
  for (size_t number = 2; std::getline(lines, line); ++number) {
    if (line.empty()) continue;
    if (!line.compare(0, 5, "arch ")) {
      here = runs_here(line.substr(5));
      any |= here;
      architectures += " " + line.substr(5);
      continue;
    }
    const std::string at = "manifest line " + std::to_string(number);
    if (architectures.empty()) return error(INVALID_IMAGE, at + ": a kernel before any `arch`");
    const auto k = kernels().find(line);
    if (k == kernels().end()) return error(INVALID_IMAGE, at + ": no kernel `" + line + "` in the emulated library");
    if (here) m->functions[line] = std::make_unique<Function>(m.get(), line, &k->second);
  }
  if (!any)
    return error(NO_BINARY_FOR_GPU, "manifest for" + (architectures.empty() ? " no architecture" : architectures) +
                                        ", the device is sm_" + std::to_string(device().cc));
  *out = modules().add(std::move(m));
  return SUCCESS;
}

std::string text_of(dim3 d) { return "(" + std::to_string(d.x) + "," + std::to_string(d.y) + "," + std::to_string(d.z) + ")"; }

// Runs a launch; its fault becomes the context's sticky error, and the launch itself succeeds, as on a device.
Result run(const Node& n) {
  const Kernel& k = *n.function->kernel;
  const ThreadOptions& o = thread_options();
  const KernelInfo* info = o.check ? k.checked : k.plain;
  if (!info) return error(NOT_FOUND, n.function->name + ": not built " + (o.check ? "with" : "without") + " the access hooks");
  // pointers to the parameters, then the parameters, each aligned for anything CUDA passes by value
  constexpr size_t ALIGN = 64;
  const auto up = [](size_t x) { return (x + ALIGN - 1) & ~(ALIGN - 1); };
  size_t bytes = up(8 * (size_t)info->params);
  for (unsigned i = 0; i < info->params; ++i) bytes += up(info->sizes[i]);
  std::unique_ptr<unsigned char, decltype(&free)> memory(static_cast<unsigned char*>(aligned_alloc(ALIGN, bytes + ALIGN)), free);
  void** pointers = reinterpret_cast<void**>(memory.get());
  unsigned char* at = memory.get() + up(8 * (size_t)info->params);
  const unsigned char* from = n.params.data();
  for (unsigned i = 0; i < info->params; ++i) {
    memcpy(at, from, info->sizes[i]);
    pointers[i] = at;
    at += up(info->sizes[i]);
    from += info->sizes[i];
  }
  Launch l;
  l.entry = info->entry;
  l.params = pointers;
  l.params_begin = reinterpret_cast<uintptr_t>(memory.get());
  l.params_end = l.params_begin + bytes;
  l.grid = n.grid;
  l.block = n.block;
  l.threads = n.block.x * n.block.y * n.block.z;
  l.smem = n.smem;
  l.order = o.order;
  l.checked = o.check;
  l.workers = o.os_threads ? o.os_threads : 1;
  l.blocks = n.grid.x * n.grid.y * n.grid.z;
  ThreadStats& st = thread_stats();
  ++st.launches[k.index];
  const std::string fault = run_launch(l, st.run);
  if (fault.empty()) return SUCCESS;
  error(LAUNCH_FAILED, "kernel " + n.function->name + ": " + fault);
  std::lock_guard<std::mutex> lock(primary().mutex);
  if (!primary().sticky) {
    primary().sticky = LAUNCH_FAILED;
    primary().fault = st.last_error;
  }
  return SUCCESS;
}
}  // namespace

Function::Function(Module* m, std::string n, const Kernel* k) : module(m), name(std::move(n)), kernel(k) {
  std::lock_guard<std::mutex> lock(functions_mutex);
  live_functions().insert(this);
}
Function::~Function() {
  std::lock_guard<std::mutex> lock(functions_mutex);
  live_functions().erase(this);
}

Result make_launch(void* handle, dim3 grid, dim3 block, unsigned smem, void** params, void** extra, Node& out) {
  if (const Result r = enter()) return r;
  Function* f = function_of(handle);
  if (!f) return error(INVALID_HANDLE, "launch: not a function of a loaded module");
  const std::string name = "launch of " + f->name + ": ";
  if (extra) return error(NOT_SUPPORTED, name + "parameters through `extra` are not emulated");
  const uint64_t blocks = (uint64_t)grid.x * grid.y * grid.z, threads = (uint64_t)block.x * block.y * block.z;
  if (!blocks || grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535)
    return error(INVALID_VALUE, name + "grid " + text_of(grid));
  if (blocks > 0x7fffffffu) return error(NOT_SUPPORTED, name + "grid " + text_of(grid) + " has more blocks than are emulated");
  if (!threads || block.x > MAX_THREADS || block.y > MAX_THREADS || block.z > 64 || threads > MAX_THREADS)
    return error(INVALID_VALUE, name + "block " + text_of(block));
  if (smem > f->max_dynamic)
    return error(INVALID_VALUE, name + std::to_string(smem) + " bytes of dynamic shared memory, the function allows " +
                                    std::to_string(f->max_dynamic) + " (cuFuncSetAttribute raises it)");
  const KernelInfo* info = f->kernel->plain ? f->kernel->plain : f->kernel->checked;
  if (info->params && !params) return error(INVALID_VALUE, name + "no parameters");
  out.kind = Node::KernelLaunch;
  out.function = f;
  out.grid = grid;
  out.block = block;
  out.smem = smem;
  for (unsigned i = 0; i < info->params; ++i) {
    if (!params[i]) return error(INVALID_VALUE, name + "parameter " + std::to_string(i) + " is null");
    const auto* p = static_cast<const unsigned char*>(params[i]);
    out.params.insert(out.params.end(), p, p + info->sizes[i]);
  }
  return SUCCESS;
}

Result execute(const Node& n) {
  const auto at = [](uintptr_t p) { return reinterpret_cast<unsigned char*>(p); };
  switch (n.kind) {
    case Node::KernelLaunch: {
      if (!function_of(n.function)) return error(INVALID_HANDLE, "graph: a kernel's module was unloaded");
      return run(n);
    }
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
}  // namespace emu

using namespace emu;

API cuModuleLoadData(void** m, const void* image) { return load(m, image); }
API cuModuleLoadDataEx(void** m, const void* image, unsigned, int*, void**) { return load(m, image); }
API cuModuleLoadFatBinary(void** m, const void* image) { return load(m, image); }
API cuModuleUnload(void* m) {
  if (const Result r = enter()) return r;
  return modules().remove(m) ? SUCCESS : error(INVALID_HANDLE, "cuModuleUnload: not a loaded module");
}
API cuModuleGetFunction(void** out, void* module, const char* name) {
  if (const Result r = enter()) return r;
  Module* m = modules().get(module);
  if (!m) return error(INVALID_HANDLE, "cuModuleGetFunction: not a loaded module");
  const auto f = m->functions.find(name);
  if (f == m->functions.end())
    return error(NOT_FOUND, std::string("cuModuleGetFunction: `") + name + "` is not in the loaded manifest");
  *out = f->second.get();
  return SUCCESS;
}
API cuModuleGetGlobal_v2(uint64_t*, size_t*, void*, const char* name) {
  if (const Result r = enter()) return r;
  return error(NOT_FOUND, std::string("cuModuleGetGlobal: `") + name + "`: globals are not emulated");
}

API cuFuncGetAttribute(int* v, int attribute, void* handle) {
  if (const Result r = enter()) return r;
  Function* f = function_of(handle);
  if (!f) return error(INVALID_HANDLE, "cuFuncGetAttribute: not a function of a loaded module");
  switch (attribute) {
    case 0: *v = MAX_THREADS; break;
    case 4: *v = 32; break;  // registers
    case 5:
    case 6: *v = device().cc; break;  // PTX and binary version
    case 8: *v = (int)f->max_dynamic; break;
    default: *v = 0;
  }
  return SUCCESS;
}
API cuFuncSetAttribute(void* handle, int attribute, int v) {
  if (const Result r = enter()) return r;
  Function* f = function_of(handle);
  if (!f) return error(INVALID_HANDLE, "cuFuncSetAttribute: not a function of a loaded module");
  if (attribute != 8) return SUCCESS;  // carveout and cluster preferences change nothing here
  if (v < 0 || (size_t)v > max_dynamic_shared())
    return error(INVALID_VALUE, "cuFuncSetAttribute: " + std::to_string(v) + " bytes of dynamic shared memory, the device has " +
                                    std::to_string(max_dynamic_shared()));
  f->max_dynamic = (unsigned)v;
  return SUCCESS;
}
API cuFuncSetCacheConfig(void* handle, int) {
  if (const Result r = enter()) return r;
  return function_of(handle) ? SUCCESS : error(INVALID_HANDLE, "cuFuncSetCacheConfig: not a function of a loaded module");
}
API cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* n, void* handle, int threads, size_t smem, unsigned) {
  if (const Result r = enter()) return r;
  if (!function_of(handle) || threads <= 0)
    return error(INVALID_VALUE, "cuOccupancyMaxActiveBlocksPerMultiprocessor: bad function or block size");
  const size_t by_threads = 2048 / (size_t)threads, by_memory = (max_dynamic_shared() + 1024) / (smem + 1024);
  *n = (int)(by_threads < by_memory ? by_threads : by_memory);
  if (*n > 32) *n = 32;
  return SUCCESS;
}
API cuOccupancyMaxActiveBlocksPerMultiprocessor(int* n, void* f, int threads, size_t smem) {
  return cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(n, f, threads, smem, 0);
}

namespace {
Result launch_on(void* f, dim3 grid, dim3 block, unsigned smem, void* stream, void** params, void** extra) {
  Node node{};
  if (const Result r = make_launch(f, grid, block, smem, params, extra, node)) return r;
  Stream* s;
  if (!stream_of(stream, s)) return error(INVALID_HANDLE, "launch: not a live stream");
  return enqueue(s, std::move(node));
}
struct LaunchConfig {  // CUlaunchConfig
  unsigned gx, gy, gz, bx, by, bz, smem;
  void* stream;
  struct Attribute {
    int id;
    char pad[4];
    union {
      char bytes[64];
      unsigned cluster[3];
    };
  }* attributes;
  unsigned count;
};
static_assert(sizeof(LaunchConfig) == 56 && sizeof(LaunchConfig::Attribute) == 72, "the driver's layout");
}  // namespace

API cuLaunchKernel(void* f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, unsigned smem,
                   void* stream, void** params, void** extra) {
  return launch_on(f, {gx, gy, gz}, {bx, by, bz}, smem, stream, params, extra);
}
API cuLaunchKernelEx(const LaunchConfig* c, void* f, void** params, void** extra) {
  if (!c) return error(INVALID_VALUE, "cuLaunchKernelEx: null configuration");
  for (unsigned i = 0; i < c->count; ++i) {
    const auto& a = c->attributes[i];
    if (a.id < 0 || a.id > 16) return error(INVALID_VALUE, "cuLaunchKernelEx: unknown attribute " + std::to_string(a.id));
    if (a.id == 4 && (a.cluster[0] > 1 || a.cluster[1] > 1 || a.cluster[2] > 1))
      return error(NOT_SUPPORTED, "cuLaunchKernelEx: clusters are not emulated");
  }
  return launch_on(f, {c->gx, c->gy, c->gz}, {c->bx, c->by, c->bz}, c->smem, c->stream, params, extra);
}
API cuLaunchCooperativeKernel(void* f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                              unsigned smem, void* stream, void** params) {
  return launch_on(f, {gx, gy, gz}, {bx, by, bz}, smem, stream, params, nullptr);
}
API cuLaunchHostFunc(void* stream, void (*fn)(void*), void* user) {
  if (const Result r = enter()) return r;
  Stream* s;
  if (!fn || !stream_of(stream, s)) return error(INVALID_HANDLE, "cuLaunchHostFunc: no function, or not a live stream");
  Node node{};
  node.kind = Node::HostCall;
  node.host = fn;
  node.user = user;
  return enqueue(s, std::move(node));
}

// Rank 2, no interleave, zero fill: what the TMA emulation reads.
API cuTensorMapEncodeTiled(void* out, int type, unsigned rank, void* base, const uint64_t* dims, const uint64_t* strides,
                           const unsigned* box, const unsigned* element_strides, int interleave, int swizzle, int, int) {
  constexpr unsigned SIZES[] = {1, 2, 4, 4, 8, 8, 2, 4, 8, 2};  // u8 u16 u32 i32 u64 i64 f16 f32 f64 bf16
  if (device().cc < 90) return error(NOT_SUPPORTED, "cuTensorMapEncodeTiled: the device has no TMA");
  if (rank != 2 || interleave || (swizzle != 0 && swizzle != 3) || type < 0 || type > 9)
    return error(NOT_SUPPORTED, "cuTensorMapEncodeTiled: only rank 2, no interleave, no or 128-byte swizzle are emulated");
  const unsigned elem = SIZES[type];
  const bool fits = (uintptr_t)base % 16 == 0 && strides[0] % 16 == 0 && box[0] && box[1] && box[0] <= 256 && box[1] <= 256 &&
                    element_strides[0] == 1 && element_strides[1] == 1 && box[0] * elem % 16 == 0 &&
                    (swizzle == 0 || box[0] * elem <= 128) && strides[0] >= dims[0] * elem;
  if (!out || (uintptr_t)out % 64 || !fits) return error(INVALID_VALUE, "cuTensorMapEncodeTiled: alignment, stride or box");
  const TensorMap m{static_cast<const char*>(base), dims[0], dims[1], strides[0], box[0], box[1], elem, swizzle == 3};
  memset(out, 0, 128);
  memcpy(out, &m, sizeof m);
  return SUCCESS;
}
