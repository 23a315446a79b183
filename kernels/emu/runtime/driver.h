// The emulated CUDA driver: handles, errors and capture state. Work runs when it is enqueued, on the calling thread;
// what a real driver reports later is reported later all the same: a kernel's fault is returned by the calls after
// its launch, and by all of them until the context dies.
#pragma once
#include <chrono>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <vector>
#include "state.h"

#define API extern "C" __attribute__((visibility("default"))) emu::Result

namespace emu {

enum Result : int {  // CUresult
  SUCCESS = 0,
  INVALID_VALUE = 1,
  OUT_OF_MEMORY = 2,
  NOT_INITIALIZED = 3,
  NO_DEVICE = 100,
  INVALID_DEVICE = 101,
  INVALID_IMAGE = 200,
  INVALID_CONTEXT = 201,
  NO_BINARY_FOR_GPU = 209,
  UNSUPPORTED_PTX_VERSION = 222,
  INVALID_HANDLE = 400,
  ILLEGAL_STATE = 401,
  NOT_FOUND = 500,
  NOT_READY = 600,
  LAUNCH_OUT_OF_RESOURCES = 701,
  CONTEXT_IS_DESTROYED = 709,
  LAUNCH_FAILED = 719,
  NOT_SUPPORTED = 801,
  STREAM_CAPTURE_UNSUPPORTED = 900,
  STREAM_CAPTURE_INVALIDATED = 901,
  STREAM_CAPTURE_MERGE = 902,
  STREAM_CAPTURE_UNMATCHED = 903,
  STREAM_CAPTURE_UNJOINED = 904,
  STREAM_CAPTURE_ISOLATION = 905,
  CAPTURED_EVENT = 907,
  STREAM_CAPTURE_WRONG_THREAD = 908,
  INVALID_CLUSTER_SIZE = 912,
  UNKNOWN = 999,
};

// A kernel of this library: both builds, and its parameters.
struct Kernel {
  const KernelInfo* plain = nullptr;
  const KernelInfo* checked = nullptr;
  unsigned index = 0;  // in name order
};
const std::map<std::string, Kernel>& kernels();

struct Device {  // as the environment describes it, read by cuInit
  int cc = 80;   // compute capability, 10 * major + minor
  int multiprocessors = 108;
  bool present = true;
  int version = 13000;
};
Device& device();
size_t max_dynamic_shared();  // opt-in limit per block

struct Context {  // the primary one
  std::mutex mutex;
  int references = 0;
  Result sticky = SUCCESS;
  std::string fault;  // what the sticky error came from
};
Context& primary();

struct Module;
struct Function {
  Module* module;
  std::string name;
  const Kernel* kernel;
  unsigned max_dynamic = 48 << 10;  // bytes of dynamic shared memory a launch may ask for
  Function(Module*, std::string name, const Kernel*);
  ~Function();
  Function(const Function&) = delete;
};
struct Module {
  std::map<std::string, std::unique_ptr<Function>> functions;  // those of the manifest
};

// Work that can be enqueued, or recorded by a capture.
struct Node {
  enum Kind { KernelLaunch, Copy, Set, HostCall } kind;
  // kernel
  Function* function = nullptr;
  dim3 grid, block, cluster;
  unsigned smem = 0;
  bool dependent = false;             // may run ahead of the launch in front, up to griddepcontrol.wait
  std::vector<unsigned char> params;  // packed
  struct Stream* stream = nullptr;    // that it was put on, for comparison only
  // copy and set
  uintptr_t dst = 0, src = 0;
  bool dst_device = false, src_device = false;
  size_t bytes = 0;
  uint32_t value = 0;
  unsigned width = 1;  // of the value
  // host call
  void (*host)(void*) = nullptr;
  void* user = nullptr;
};
struct Graph {
  std::vector<Node> nodes;  // in an order that respects every dependency
};
struct GraphExec {
  std::vector<Node> nodes;
};

struct Stream;
enum CaptureMode : int { GLOBAL = 0, THREAD_LOCAL = 1, RELAXED = 2 };
struct Capture {
  uint64_t id;
  Stream* origin;
  CaptureMode mode;
  std::thread::id owner;
  bool invalidated = false;
  std::unique_ptr<Graph> graph;
  std::set<Stream*> forks, open;  // other streams that joined; those whose work is not joined back
  std::map<Stream*, size_t> ops;  // captured so far, by stream
};
struct Stream {
  unsigned flags = 0;
  int priority = 0;
  std::shared_ptr<Capture> capture;
  // Launches that wait for what comes behind them: a dependent launch runs ahead of them.
  std::mutex running;  // held while they are taken and run
  std::vector<Node> pending;
  ThreadOptions options;  // of the thread that launched them
};
struct Event {
  unsigned flags = 0;
  bool recorded = false;
  std::chrono::steady_clock::time_point time;
  std::weak_ptr<Capture> capture;  // that it was last recorded in
  bool captured = false;
  Stream* captured_on = nullptr;
  size_t ops = 0;  // captured on that stream before it
};

// Live handles of one kind. A handle that is not live is an error, never a crash.
template <class T>
class Handles {
 public:
  T* add(std::unique_ptr<T> t) {
    std::lock_guard<std::mutex> lock(mutex_);
    T* p = t.get();
    live_[p] = std::move(t);
    return p;
  }
  T* get(void* h) {
    std::lock_guard<std::mutex> lock(mutex_);
    const auto it = live_.find(static_cast<T*>(h));
    return it == live_.end() ? nullptr : it->first;
  }
  bool remove(void* h) {
    std::lock_guard<std::mutex> lock(mutex_);
    return live_.erase(static_cast<T*>(h)) != 0;
  }
  void clear() {
    std::lock_guard<std::mutex> lock(mutex_);
    live_.clear();
  }
  std::vector<T*> all() {
    std::lock_guard<std::mutex> lock(mutex_);
    std::vector<T*> out;
    for (const auto& t : live_) out.push_back(t.first);
    return out;
  }

 private:
  std::mutex mutex_;
  std::map<T*, std::unique_ptr<T>> live_;
};
Handles<Stream>& streams();
Handles<Event>& events();
Handles<Module>& modules();
Handles<Graph>& graphs();
Handles<GraphExec>& graph_execs();

// ---- per thread ----
struct ThreadStats {
  Stats run{};
  std::vector<uint64_t> launches;  // by kernel index; a replay counts each of its kernels
  uint64_t graph_launches = 0;
  Stream* launched_on = nullptr;  // may hold launches of this thread
  std::string last_error;
  Result last_code = SUCCESS;  // that the message belongs to
};
ThreadStats& thread_stats();
ThreadOptions& thread_options();

// Sets the thread's last error message and returns `code`.
Result error(Result code, std::string message);
// Start of a call that needs a context: an error when there is none, or a sticky one. Runs the calling thread's pending
// launches, unless the call is a launch or a preparation of one.
Result enter(bool launch = false);
// The stream, null for the legacy default stream; false when the handle is not live. Runs its pending launches.
bool stream_of(void* handle, Stream*& out);
// Start of a call that a capture forbids (`call` names it): invalidates the capture it meets.
Result forbid_while_capturing(const char* call);
// Runs the node, now or, where a dependent launch may follow it, at the next call that is no launch; records it when
// `stream` is being captured.
Result enqueue(Stream* stream, Node&& node);
// ---- driver_order.cpp ----
// Runs nodes in order, dependent launches ahead of what is in front of them.
Result execute(const std::vector<Node>& nodes, const ThreadOptions&);
// Puts a launch on a stream that is not captured.
Result launch_later(Stream&, Node&&);
void run_pending(Stream&);
// Those of the calling thread.
void run_pending();
// Those of all streams.
void run_all_pending();
// Parameters, grid, block and cluster of a launch, checked as the driver does.
Result make_launch(void* function, dim3 grid, dim3 block, dim3 cluster, unsigned smem, void** params, void** extra, Node& out);
// Whether a handle is a function of a loaded module.
bool is_live(const Function*);
}  // namespace emu
