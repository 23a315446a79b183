// Driver: initialisation, the device, the primary context, errors.
#include "driver.h"
#include <cstdlib>
#include <cstring>
#include <pthread.h>
#include "memory.h"

namespace emu {
namespace {
bool initialised = false;

struct ErrorText {
  Result code;
  const char *name, *text;
};
constexpr ErrorText ERRORS[] = {
    {SUCCESS, "CUDA_SUCCESS", "no error"},
    {INVALID_VALUE, "CUDA_ERROR_INVALID_VALUE", "invalid argument"},
    {OUT_OF_MEMORY, "CUDA_ERROR_OUT_OF_MEMORY", "out of memory"},
    {NOT_INITIALIZED, "CUDA_ERROR_NOT_INITIALIZED", "initialization error"},
    {NO_DEVICE, "CUDA_ERROR_NO_DEVICE", "no CUDA-capable device is detected"},
    {INVALID_DEVICE, "CUDA_ERROR_INVALID_DEVICE", "invalid device ordinal"},
    {INVALID_IMAGE, "CUDA_ERROR_INVALID_IMAGE", "device kernel image is invalid"},
    {INVALID_CONTEXT, "CUDA_ERROR_INVALID_CONTEXT", "invalid device context"},
    {NO_BINARY_FOR_GPU, "CUDA_ERROR_NO_BINARY_FOR_GPU", "no kernel image is available for execution on the device"},
    {UNSUPPORTED_PTX_VERSION, "CUDA_ERROR_UNSUPPORTED_PTX_VERSION",
     "the provided PTX was compiled with an unsupported toolchain."},
    {INVALID_HANDLE, "CUDA_ERROR_INVALID_HANDLE", "invalid resource handle"},
    {ILLEGAL_STATE, "CUDA_ERROR_ILLEGAL_STATE", "the operation cannot be performed in the present state"},
    {NOT_FOUND, "CUDA_ERROR_NOT_FOUND", "named symbol not found"},
    {NOT_READY, "CUDA_ERROR_NOT_READY", "device not ready"},
    {LAUNCH_OUT_OF_RESOURCES, "CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES", "too many resources requested for launch"},
    {CONTEXT_IS_DESTROYED, "CUDA_ERROR_CONTEXT_IS_DESTROYED", "context is destroyed"},
    {LAUNCH_FAILED, "CUDA_ERROR_LAUNCH_FAILED", "unspecified launch failure"},
    {NOT_SUPPORTED, "CUDA_ERROR_NOT_SUPPORTED", "operation not supported"},
    {STREAM_CAPTURE_UNSUPPORTED, "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED", "operation not permitted when stream is capturing"},
    {STREAM_CAPTURE_INVALIDATED, "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED",
     "operation failed due to a previous error during capture"},
    {STREAM_CAPTURE_MERGE, "CUDA_ERROR_STREAM_CAPTURE_MERGE", "operation would result in a merge of separate capture sequences"},
    {STREAM_CAPTURE_UNMATCHED, "CUDA_ERROR_STREAM_CAPTURE_UNMATCHED", "capture was not ended in the same stream as it began"},
    {STREAM_CAPTURE_UNJOINED, "CUDA_ERROR_STREAM_CAPTURE_UNJOINED", "capturing stream has unjoined work"},
    {STREAM_CAPTURE_ISOLATION, "CUDA_ERROR_STREAM_CAPTURE_ISOLATION", "dependency created on uncaptured work in another stream"},
    {INVALID_CLUSTER_SIZE, "CUDA_ERROR_INVALID_CLUSTER_SIZE", "invalid cluster size"},
    {CAPTURED_EVENT, "CUDA_ERROR_CAPTURED_EVENT", "operation not permitted on an event last recorded in a capturing stream"},
    {STREAM_CAPTURE_WRONG_THREAD, "CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD",
     "attempt to terminate a thread-local capture sequence from another thread"},
    {UNKNOWN, "CUDA_ERROR_UNKNOWN", "unknown error"},
};
const ErrorText* text_of(int code) {
  for (const ErrorText& e : ERRORS)
    if (e.code == code) return &e;
  return nullptr;
}

uint32_t number_from(const char* name, uint32_t otherwise) {
  const char* v = getenv(name);
  return v && *v ? (uint32_t)strtoul(v, nullptr, 10) : otherwise;
}

// At the end of an OS thread: its worker (stacks) and statistics.
void end_thread(void*) {
  release_thread_worker();
  delete tls.stats;
  tls.stats = nullptr;
}
}  // namespace

Device& device() {
  static auto* d = new Device;
  return *d;
}
Context& primary() {
  static auto* c = new Context;
  return *c;
}
Handles<Stream>& streams() {
  static auto* h = new Handles<Stream>;
  return *h;
}
Handles<Event>& events() {
  static auto* h = new Handles<Event>;
  return *h;
}
Handles<Module>& modules() {
  static auto* h = new Handles<Module>;
  return *h;
}
Handles<Graph>& graphs() {
  static auto* h = new Handles<Graph>;
  return *h;
}
Handles<GraphExec>& graph_execs() {
  static auto* h = new Handles<GraphExec>;
  return *h;
}

size_t max_dynamic_shared() {
  switch (device().cc) {
    case 80:
    case 87: return 163 << 10;
    case 86:
    case 89:
    case 120: return 99 << 10;
    default: return MAX_DYN_SMEM;
  }
}

ThreadStats& thread_stats() {
  if (!tls.stats) {
    static pthread_key_t key;
    static std::once_flag once;
    std::call_once(once, [] { pthread_key_create(&key, end_thread); });
    tls.stats = new ThreadStats;
    tls.stats->launches.resize(kernels().size());
    pthread_setspecific(key, tls.stats);
  }
  return *tls.stats;
}

ThreadOptions& thread_options() {
  if (!tls.options_set) {
    static const ThreadOptions from_environment = [] {
      const char* s = getenv("ARCLET_EMU_SCHEDULE");  // forward, reverse, or the seed of a shuffle
      const uint32_t order = !s || !strcmp(s, "forward") ? 0 : !strcmp(s, "reverse") ? 1 : number_from("ARCLET_EMU_SCHEDULE", 0);
      return ThreadOptions{order, number_from("ARCLET_EMU_CHECK", 0) ? 1u : 0u, number_from("ARCLET_EMU_THREADS", 1)};
    }();
    tls.options = from_environment;
    tls.options_set = true;
  }
  return tls.options;
}

Result error(Result code, std::string message) {
  ThreadStats& t = thread_stats();
  t.last_error = std::move(message);
  t.last_code = code;
  return code;
}

Result enter(bool launch) {
  if (!launch) run_pending();
  if (!initialised) return error(NOT_INITIALIZED, "cuInit has not been called");
  if (!tls.context) return error(INVALID_CONTEXT, "no context is current in this thread");
  Context& c = *tls.context;
  std::lock_guard<std::mutex> lock(c.mutex);
  if (!c.references) return error(CONTEXT_IS_DESTROYED, "the primary context was released");
  return c.sticky ? error(c.sticky, c.fault) : SUCCESS;
}

bool stream_of(void* handle, Stream*& out) {
  out = nullptr;
  const auto h = reinterpret_cast<uintptr_t>(handle);
  if (h <= 2) return true;  // null, CU_STREAM_LEGACY, CU_STREAM_PER_THREAD
  out = streams().get(handle);
  if (out) run_pending(*out);
  return out != nullptr;
}
}  // namespace emu

using namespace emu;

API cuInit(unsigned flags) {
  if (flags) return error(INVALID_VALUE, "cuInit: flags must be 0");
  static std::once_flag once;
  std::call_once(once, [] {
    device().cc = (int)number_from("ARCLET_EMU_CC", 80);
    device().multiprocessors = (int)number_from("ARCLET_EMU_MULTIPROCESSORS", device().cc >= 90 ? 132 : 108);
    if (const char* fault = getenv("ARCLET_EMU_FAULT")) {
      if (!strcmp(fault, "no-device")) device().present = false;
      else if (!strcmp(fault, "old-driver")) device().version = 11040;
      else if (!strncmp(fault, "oom=", 4)) set_device_memory(strtoull(fault + 4, nullptr, 10));
    }
  });
  if (!device().present) return error(NO_DEVICE, "ARCLET_EMU_FAULT=no-device");
  initialised = true;
  return SUCCESS;
}
API cuDriverGetVersion(int* v) {
  if (!v) return INVALID_VALUE;
  const char* fault = getenv("ARCLET_EMU_FAULT");  // may be asked before cuInit
  *v = fault && !strcmp(fault, "old-driver") ? 11040 : device().version;
  return SUCCESS;
}
API cuGetErrorName(int code, const char** s) {
  const ErrorText* e = text_of(code);
  *s = e ? e->name : nullptr;
  return e ? SUCCESS : INVALID_VALUE;
}
API cuGetErrorString(int code, const char** s) {
  const ErrorText* e = text_of(code);
  *s = e ? e->text : nullptr;
  if (!e) return INVALID_VALUE;
  // what the thread's last error was exactly, so that any caller's message tells it; callers take the text as static
  const ThreadStats& t = thread_stats();
  if (code != SUCCESS && t.last_code == code && !t.last_error.empty()) {
    static std::mutex mutex;
    static auto* texts = new std::set<std::string>;
    std::lock_guard<std::mutex> lock(mutex);
    *s = texts->insert(std::string(e->text) + ": " + t.last_error).first->c_str();
  }
  return SUCCESS;
}

// ---- device ----
API cuDeviceGetCount(int* n) {
  if (!initialised) return error(NOT_INITIALIZED, "cuInit has not been called");
  *n = 1;
  return SUCCESS;
}
API cuDeviceGet(int* d, int ordinal) {
  if (!initialised) return error(NOT_INITIALIZED, "cuInit has not been called");
  if (ordinal != 0) return error(INVALID_DEVICE, "the emulated machine has one device, 0");
  *d = 0;
  return SUCCESS;
}
API cuDeviceGetName(char* name, int n, int d) {
  if (d != 0 || n <= 0) return INVALID_VALUE;
  snprintf(name, (size_t)n, "arclet emulated GPU (sm_%d)", device().cc);
  return SUCCESS;
}
API cuDeviceGetUuid_v2(unsigned char* uuid, int d) {
  if (d != 0) return INVALID_DEVICE;
  memcpy(uuid, "arclet-emulated", 16);
  return SUCCESS;
}
API cuDeviceGetUuid(unsigned char* uuid, int d) { return cuDeviceGetUuid_v2(uuid, d); }
API cuDeviceTotalMem_v2(size_t* n, int d) {
  if (d != 0) return INVALID_DEVICE;
  size_t free;
  device_memory(free, *n);
  return SUCCESS;
}
API cuDeviceGetAttribute(int* v, int attribute, int d) {
  if (d != 0) return INVALID_DEVICE;
  switch (attribute) {
    case 1:
    case 2:
    case 3: *v = 1024; break;        // threads per block, block x, y
    case 4: *v = 64; break;          // block z
    case 5: *v = 0x7fffffff; break;  // grid x
    case 6:
    case 7: *v = 65535; break;     // grid y, z
    case 8: *v = 48 << 10; break;  // shared memory per block without opt-in
    case 9: *v = 64 << 10; break;  // constant memory
    case 10: *v = 32; break;       // warp
    case 12:
    case 82: *v = 65536; break;                          // registers per block, per multiprocessor
    case 13: *v = 1410000; break;                        // clock, kHz
    case 16: *v = device().multiprocessors; break;
    case 19:
    case 31:
    case 41:
    case 95: *v = 1; break;         // maps host memory, concurrent kernels, unified addresses, cooperative
    case 36: *v = 1215000; break;   // memory clock, kHz
    case 37: *v = 5120; break;      // bus width, bits
    case 38: *v = 40 << 20; break;  // L2
    case 39: *v = 2048; break;      // threads per multiprocessor
    case 40: *v = 3; break;         // copy engines
    case 75: *v = device().cc / 10; break;
    case 76: *v = device().cc % 10; break;
    case 81: *v = (int)max_dynamic_shared() + 1024; break;  // shared memory per multiprocessor
    case 97: *v = (int)max_dynamic_shared(); break;         // shared memory per block with opt-in
    case 106: *v = 32; break;                               // blocks per multiprocessor
    case 111: *v = 1024; break;                             // reserved shared memory per block
    case 115: *v = 1; break;                                // memory pools
    default: *v = 0;
  }
  return SUCCESS;
}

// ---- the primary context ----
API cuDevicePrimaryCtxRetain(void** c, int d) {
  if (!initialised) return error(NOT_INITIALIZED, "cuInit has not been called");
  if (d != 0) return INVALID_DEVICE;
  std::lock_guard<std::mutex> lock(primary().mutex);
  ++primary().references;
  *c = &primary();
  return SUCCESS;
}
API cuDevicePrimaryCtxRelease_v2(int d) {
  if (d != 0) return INVALID_DEVICE;
  run_all_pending();
  Context& c = primary();
  std::lock_guard<std::mutex> lock(c.mutex);
  if (!c.references) return error(INVALID_CONTEXT, "the primary context is not retained");
  if (--c.references) return SUCCESS;
  // the context dies, and with it everything in it
  streams().clear();
  events().clear();
  modules().clear();
  graphs().clear();
  graph_execs().clear();
  free_all_device_memory();
  c.sticky = SUCCESS;
  return SUCCESS;
}
API cuDevicePrimaryCtxGetState(int d, unsigned* flags, int* active) {
  if (d != 0) return INVALID_DEVICE;
  std::lock_guard<std::mutex> lock(primary().mutex);
  *flags = 0;
  *active = primary().references > 0;
  return SUCCESS;
}
API cuCtxSetCurrent(void* c) {
  if (c && c != &primary()) return error(INVALID_CONTEXT, "not the primary context");
  tls.context = static_cast<Context*>(c);
  return SUCCESS;
}
API cuCtxGetCurrent(void** c) {
  if (!initialised) return error(NOT_INITIALIZED, "cuInit has not been called");
  *c = tls.context;
  return SUCCESS;
}
API cuCtxGetDevice(int* d) {
  if (const Result r = enter()) return r;
  *d = 0;
  return SUCCESS;
}
API cuCtxSynchronize() {
  if (const Result r = enter()) return r;
  run_all_pending();
  if (const Result r = enter()) return r;
  return forbid_while_capturing("cuCtxSynchronize");
}
API cuCtxGetStreamPriorityRange(int* least, int* greatest) {
  if (const Result r = enter()) return r;
  if (least) *least = 0;
  if (greatest) *greatest = -5;
  return SUCCESS;
}
API cuCtxGetLimit(size_t* v, int limit) {
  if (const Result r = enter()) return r;
  switch (limit) {
    case 0: *v = 1024; return SUCCESS;     // stack
    case 1: *v = 1 << 20; return SUCCESS;  // printf buffer
    case 2: *v = 8 << 20; return SUCCESS;  // device heap
    default: return error(INVALID_VALUE, "cuCtxGetLimit: not an emulated limit");
  }
}
