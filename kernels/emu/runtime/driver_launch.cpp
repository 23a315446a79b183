// Driver: modules from manifests, functions, launches, tensor maps.
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
  Function* f = static_cast<Function*>(handle);
  return is_live(f) ? f : nullptr;
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

}  // namespace

Function::Function(Module* m, std::string n, const Kernel* k) : module(m), name(std::move(n)), kernel(k) {
  std::lock_guard<std::mutex> lock(functions_mutex);
  live_functions().insert(this);
}
Function::~Function() {
  std::lock_guard<std::mutex> lock(functions_mutex);
  live_functions().erase(this);
}

bool is_live(const Function* f) {
  std::lock_guard<std::mutex> lock(functions_mutex);
  return live_functions().count(const_cast<Function*>(f)) != 0;
}

Result make_launch(void* handle, dim3 grid, dim3 block, dim3 cluster, unsigned smem, void** params, void** extra, Node& out) {
  if (const Result r = enter(true)) return r;
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
  const uint64_t size = (uint64_t)cluster.x * cluster.y * cluster.z;
  if (size > 1 && device().cc < 90) return error(NOT_SUPPORTED, name + "clusters need compute capability 9.0");
  if (!size || size > MAX_CLUSTER || grid.x % cluster.x || grid.y % cluster.y || grid.z % cluster.z)
    return error(INVALID_CLUSTER_SIZE, name + "cluster " + text_of(cluster) + " of a grid " + text_of(grid) + ", at most " +
                                           std::to_string(MAX_CLUSTER) + " blocks that divide it expected");
  if (smem > f->max_dynamic)
    return error(INVALID_VALUE, name + std::to_string(smem) + " bytes of dynamic shared memory, the function allows " +
                                    std::to_string(f->max_dynamic) + " (cuFuncSetAttribute raises it)");
  const KernelInfo* info = f->kernel->plain ? f->kernel->plain : f->kernel->checked;
  if (info->params && !params) return error(INVALID_VALUE, name + "no parameters");
  out.kind = Node::KernelLaunch;
  out.function = f;
  out.grid = grid;
  out.block = block;
  out.cluster = cluster;
  out.smem = smem;
  for (unsigned i = 0; i < info->params; ++i) {
    if (!params[i]) return error(INVALID_VALUE, name + "parameter " + std::to_string(i) + " is null");
    const auto* p = static_cast<const unsigned char*>(params[i]);
    out.params.insert(out.params.end(), p, p + info->sizes[i]);
  }
  return SUCCESS;
}
}  // namespace emu

using namespace emu;

API cuModuleLoadData(void** m, const void* image) { return load(m, image); }
API cuModuleLoadDataEx(void** m, const void* image, unsigned, int*, void**) { return load(m, image); }
API cuModuleLoadFatBinary(void** m, const void* image) { return load(m, image); }
API cuModuleUnload(void* m) {
  run_all_pending();
  if (const Result r = enter()) return r;
  return modules().remove(m) ? SUCCESS : error(INVALID_HANDLE, "cuModuleUnload: not a loaded module");
}
API cuModuleGetFunction(void** out, void* module, const char* name) {
  if (const Result r = enter(true)) return r;
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
  if (const Result r = enter(true)) return r;
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
  if (const Result r = enter(true)) return r;
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
Result launch_on(void* f, dim3 grid, dim3 block, dim3 cluster, bool dependent, unsigned smem, void* stream, void** params,
                 void** extra) {
  Node node{};
  if (const Result r = make_launch(f, grid, block, cluster, smem, params, extra, node)) return r;
  node.dependent = dependent;
  const auto h = reinterpret_cast<uintptr_t>(stream);
  Stream* s = h <= 2 ? nullptr : streams().get(stream);  // null: the default stream
  if (h > 2 && !s) return error(INVALID_HANDLE, "launch: not a live stream");
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
      int flag;
    };
  }* attributes;
  unsigned count;
};
static_assert(sizeof(LaunchConfig) == 56 && sizeof(LaunchConfig::Attribute) == 72, "the driver's layout");
}  // namespace

API cuLaunchKernel(void* f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, unsigned smem,
                   void* stream, void** params, void** extra) {
  return launch_on(f, {gx, gy, gz}, {bx, by, bz}, {}, false, smem, stream, params, extra);
}
API cuLaunchKernelEx(const LaunchConfig* c, void* f, void** params, void** extra) {
  if (!c) return error(INVALID_VALUE, "cuLaunchKernelEx: null configuration");
  dim3 cluster;
  bool dependent = false;
  for (unsigned i = 0; i < c->count; ++i) {
    const auto& a = c->attributes[i];
    if (a.id < 0 || a.id > 16) return error(INVALID_VALUE, "cuLaunchKernelEx: unknown attribute " + std::to_string(a.id));
    if (a.id == 4) cluster = {a.cluster[0], a.cluster[1], a.cluster[2]};
    if (a.id == 6) dependent = a.flag != 0;
  }
  if (dependent && device().cc < 90)
    return error(NOT_SUPPORTED, "cuLaunchKernelEx: programmatic stream serialization needs compute capability 9.0");
  return launch_on(f, {c->gx, c->gy, c->gz}, {c->bx, c->by, c->bz}, cluster, dependent, c->smem, c->stream, params, extra);
}
API cuLaunchCooperativeKernel(void* f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                              unsigned smem, void* stream, void** params) {
  return launch_on(f, {gx, gy, gz}, {bx, by, bz}, {}, false, smem, stream, params, nullptr);
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

// Rank 2, no interleave, zero fill: what the TMA emulation reads. Refuses what the driver refuses.
API cuTensorMapEncodeTiled(void* out, int type, unsigned rank, void* base, const uint64_t* dims, const uint64_t* strides,
                           const unsigned* box, const unsigned* element_strides, int interleave, int swizzle, int, int fill) {
  constexpr unsigned SIZES[] = {1, 2, 4, 4, 8, 8, 2, 4, 8, 2};  // u8 u16 u32 i32 u64 i64 f16 f32 f64 bf16
  const auto refuse = [](const std::string& why) { return error(INVALID_VALUE, "cuTensorMapEncodeTiled: " + why); };
  if (device().cc < 90) return error(NOT_SUPPORTED, "cuTensorMapEncodeTiled: the device has no TMA");
  if (rank != 2 || interleave || fill || (swizzle != 0 && swizzle != 3) || type < 0 || type > 9)
    return error(NOT_SUPPORTED, "cuTensorMapEncodeTiled: only rank 2, no interleave, zero fill, and no or 128-byte swizzle are emulated");
  if (!out || (uintptr_t)out % 64) return refuse("the map is not aligned to 64 bytes");
  const unsigned elem = SIZES[type];
  if (!base || (uintptr_t)base % 16) return refuse("the address is not a multiple of 16 bytes");
  if (strides[0] % 16 || strides[0] >= 1ull << 40) return refuse("the stride is not a multiple of 16 bytes below 2^40");
  for (int i = 0; i < 2; ++i) {
    if (!dims[i] || dims[i] > 1ull << 32) return refuse("dimension " + std::to_string(i) + " is " + std::to_string(dims[i]));
    if (!box[i] || box[i] > 256) return refuse("box " + std::to_string(box[i]) + ", 1 to 256 expected");
    if (element_strides[i] != 1) return error(NOT_SUPPORTED, "cuTensorMapEncodeTiled: element strides other than 1 are not emulated");
  }
  if (strides[0] < dims[0] * elem) return refuse("the stride is less than a row");
  if (box[0] * elem % 16) return refuse("a row of the box is not a multiple of 16 bytes");
  if (swizzle == 3 && box[0] * elem > 128) return refuse("a row of the box has more than 128 bytes, the span of the swizzle");
  const TensorMap m{static_cast<const char*>(base), dims[0], dims[1], strides[0], box[0], box[1], elem, swizzle == 3};
  memset(out, 0, 128);
  memcpy(out, &m, sizeof m);
  return SUCCESS;
}
