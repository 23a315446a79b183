// Driver: streams, events, stream capture, graphs.
#include <algorithm>
#include "driver.h"

namespace emu {
namespace {
std::mutex captures_mutex;
std::vector<std::shared_ptr<Capture>>& captures() {  // in progress
  static auto* c = new std::vector<std::shared_ptr<Capture>>;
  return *c;
}

Result invalidate(Capture& c, Result code, std::string message) {
  c.invalidated = true;
  return error(code, std::move(message));
}
}  // namespace

// A real driver forbids these calls to the capturing thread (thread-local mode) or to all (global mode), and lets a
// relaxed capture allocate. Here the capturing thread never may: captured code does not allocate or synchronise.
Result forbid_while_capturing(const char* call) {
  std::lock_guard<std::mutex> lock(captures_mutex);
  Result r = SUCCESS;
  for (auto& c : captures())
    if (c->mode == GLOBAL || c->owner == std::this_thread::get_id())
      r = invalidate(*c, STREAM_CAPTURE_UNSUPPORTED, std::string(call) + " while a stream is captured");
  return r;
}

Result enqueue(Stream* s, Node&& node) {
  if (!s) {  // the legacy stream waits for all blocking streams, captured ones included
    std::lock_guard<std::mutex> lock(captures_mutex);
    for (auto& c : captures())
      if ((c->mode == GLOBAL || c->owner == std::this_thread::get_id()) && !(c->origin->flags & 1))
        return invalidate(*c, STREAM_CAPTURE_UNSUPPORTED, "work on the default stream while a blocking stream is captured");
  }
  if (!s || !s->capture) {
    if (s && node.kind == Node::KernelLaunch && device().cc >= 90) return launch_later(*s, std::move(node));
    std::vector<Node> nodes;
    nodes.push_back(std::move(node));
    return execute(nodes, thread_options());
  }
  Capture& c = *s->capture;
  if (c.invalidated) return error(STREAM_CAPTURE_INVALIDATED, "the capture was invalidated by an earlier error");
  ++c.ops[s];
  if (s != c.origin) c.open.insert(s);
  node.stream = s;
  c.graph->nodes.push_back(std::move(node));
  return SUCCESS;
}
}  // namespace emu

using namespace emu;

// ---- streams ----
API cuStreamCreateWithPriority(void** out, unsigned flags, int priority) {
  if (const Result r = enter()) return r;
  if (flags & ~1u) return error(INVALID_VALUE, "cuStreamCreate: unknown flags");
  auto s = std::make_unique<Stream>();
  s->flags = flags;
  s->priority = priority < -5 ? -5 : priority > 0 ? 0 : priority;
  *out = streams().add(std::move(s));
  return SUCCESS;
}
API cuStreamCreate(void** out, unsigned flags) { return cuStreamCreateWithPriority(out, flags, 0); }
API cuStreamDestroy_v2(void* h) {
  if (const Result r = enter()) return r;
  Stream* s = streams().get(h);
  if (!s) return error(INVALID_HANDLE, "cuStreamDestroy: not a live stream");
  run_pending(*s);
  if (s->capture) {  // ends with its stream
    std::lock_guard<std::mutex> lock(captures_mutex);
    auto& all = captures();
    s->capture->invalidated = true;
    if (s == s->capture->origin) all.erase(std::remove(all.begin(), all.end(), s->capture), all.end());
  }
  streams().remove(h);
  return SUCCESS;
}
API cuStreamSynchronize(void* h) {
  if (const Result r = enter()) return r;
  Stream* s;
  if (!stream_of(h, s)) return error(INVALID_HANDLE, "cuStreamSynchronize: not a live stream");
  if (s && s->capture) return invalidate(*s->capture, STREAM_CAPTURE_UNSUPPORTED, "cuStreamSynchronize of a captured stream");
  if (const Result r = forbid_while_capturing("cuStreamSynchronize")) return r;
  return enter();  // what another thread has launched may have faulted just now
}
API cuStreamQuery(void* h) {
  if (const Result r = enter()) return r;
  Stream* s;
  if (!stream_of(h, s)) return error(INVALID_HANDLE, "cuStreamQuery: not a live stream");
  if (s && s->capture) return invalidate(*s->capture, STREAM_CAPTURE_UNSUPPORTED, "cuStreamQuery of a captured stream");
  return SUCCESS;
}
API cuStreamGetPriority(void* h, int* v) {
  Stream* s;
  if (!stream_of(h, s)) return error(INVALID_HANDLE, "cuStreamGetPriority: not a live stream");
  *v = s ? s->priority : 0;
  return SUCCESS;
}
API cuStreamGetFlags(void* h, unsigned* v) {
  Stream* s;
  if (!stream_of(h, s)) return error(INVALID_HANDLE, "cuStreamGetFlags: not a live stream");
  *v = s ? s->flags : 0;
  return SUCCESS;
}
API cuStreamGetCtx(void* h, void** c) {
  if (const Result r = enter()) return r;
  Stream* s;
  if (!stream_of(h, s)) return error(INVALID_HANDLE, "cuStreamGetCtx: not a live stream");
  *c = &primary();
  return SUCCESS;
}
API cuStreamWaitEvent(void* h, void* event, unsigned) {
  if (const Result r = enter()) return r;
  Stream* s;
  Event* e = events().get(event);
  if (!stream_of(h, s) || !e) return error(INVALID_HANDLE, "cuStreamWaitEvent: not a live stream or event");
  const std::shared_ptr<Capture> from = e->capture.lock();
  if (e->captured && !from)
    return error(CAPTURED_EVENT, "cuStreamWaitEvent: the event was last recorded in a capture that has ended");
  if (s && s->capture) {
    if (!e->recorded) return SUCCESS;  // as the driver: nothing to wait for
    if (!from)
      return invalidate(*s->capture, STREAM_CAPTURE_ISOLATION,
                        "a captured stream waits for an event that was recorded outside the capture");
    if (from != s->capture) {
      from->invalidated = true;
      return invalidate(*s->capture, STREAM_CAPTURE_MERGE, "a captured stream waits for an event of another capture");
    }
    // joined back, if the other stream's last work is before the event
    if (s == from->origin && e->captured_on != s && e->ops == from->ops[e->captured_on]) from->open.erase(e->captured_on);
    return SUCCESS;
  }
  if (!from) return SUCCESS;  // everything before has already run
  if (!s) return invalidate(*from, STREAM_CAPTURE_UNSUPPORTED, "the default stream waits for a captured event");
  s->capture = from;  // joins the capture
  from->forks.insert(s);
  from->open.insert(s);
  ++from->ops[s];
  return SUCCESS;
}

// ---- events ----
API cuEventCreate(void** out, unsigned flags) {
  if (const Result r = enter()) return r;
  auto e = std::make_unique<Event>();
  e->flags = flags;
  *out = events().add(std::move(e));
  return SUCCESS;
}
API cuEventDestroy_v2(void* h) {
  if (const Result r = enter()) return r;
  return events().remove(h) ? SUCCESS : error(INVALID_HANDLE, "cuEventDestroy: not a live event");
}
API cuEventRecord(void* h, void* stream) {
  if (const Result r = enter()) return r;
  Stream* s;
  Event* e = events().get(h);
  if (!stream_of(stream, s) || !e) return error(INVALID_HANDLE, "cuEventRecord: not a live event or stream");
  e->recorded = true;
  e->captured = s && s->capture;
  e->capture.reset();
  if (e->captured) {
    if (s->capture->invalidated) return error(STREAM_CAPTURE_INVALIDATED, "the capture was invalidated by an earlier error");
    e->capture = s->capture;
    e->captured_on = s;
    e->ops = s->capture->ops[s];
    return SUCCESS;
  }
  e->time = std::chrono::steady_clock::now();
  return SUCCESS;
}
namespace {
Result event_done(void* h, const char* call) {
  if (const Result r = enter()) return r;
  Event* e = events().get(h);
  if (!e) return error(INVALID_HANDLE, std::string(call) + ": not a live event");
  if (e->captured) {
    if (const auto c = e->capture.lock()) c->invalidated = true;
    return error(CAPTURED_EVENT, std::string(call) + ": the event was last recorded in a capture");
  }
  return forbid_while_capturing(call);
}
}  // namespace
API cuEventSynchronize(void* h) { return event_done(h, "cuEventSynchronize"); }
API cuEventQuery(void* h) { return event_done(h, "cuEventQuery"); }
API cuEventElapsedTime(float* ms, void* start, void* end) {
  if (const Result r = enter()) return r;
  Event *a = events().get(start), *b = events().get(end);
  if (!a || !b) return error(INVALID_HANDLE, "cuEventElapsedTime: not a live event");
  if (a->captured || b->captured) return error(CAPTURED_EVENT, "cuEventElapsedTime: an event was last recorded in a capture");
  if (!a->recorded || !b->recorded || (a->flags & 2) || (b->flags & 2))
    return error(INVALID_HANDLE, "cuEventElapsedTime: an event was not recorded, or created without timing");
  *ms = std::chrono::duration<float, std::milli>(b->time - a->time).count();
  return SUCCESS;
}
API cuEventElapsedTime_v2(float* ms, void* start, void* end) { return cuEventElapsedTime(ms, start, end); }

// ---- capture ----
API cuStreamBeginCapture_v2(void* h, int mode) {
  if (const Result r = enter()) return r;
  Stream* s;
  if (!stream_of(h, s)) return error(INVALID_HANDLE, "cuStreamBeginCapture: not a live stream");
  if (!s) return error(STREAM_CAPTURE_UNSUPPORTED, "cuStreamBeginCapture: the default stream cannot be captured");
  if (s->capture) return error(ILLEGAL_STATE, "cuStreamBeginCapture: the stream is being captured already");
  if (mode < GLOBAL || mode > RELAXED) return error(INVALID_VALUE, "cuStreamBeginCapture: mode");
  static uint64_t ids = 0;
  auto c = std::make_shared<Capture>();
  c->origin = s;
  c->mode = (CaptureMode)mode;
  c->owner = std::this_thread::get_id();
  c->graph = std::make_unique<Graph>();
  std::lock_guard<std::mutex> lock(captures_mutex);
  c->id = ++ids;
  s->capture = c;
  captures().push_back(c);
  return SUCCESS;
}
API cuStreamEndCapture(void* h, void** out) {
  if (const Result r = enter()) return r;
  *out = nullptr;
  Stream* s;
  if (!stream_of(h, s)) return error(INVALID_HANDLE, "cuStreamEndCapture: not a live stream");
  if (!s || !s->capture) return error(ILLEGAL_STATE, "cuStreamEndCapture: the stream is not being captured");
  const std::shared_ptr<Capture> c = s->capture;
  if (c->origin != s) return invalidate(*c, STREAM_CAPTURE_UNMATCHED, "cuStreamEndCapture: the capture began on another stream");
  if (c->mode != RELAXED && c->owner != std::this_thread::get_id())
    return error(STREAM_CAPTURE_WRONG_THREAD, "cuStreamEndCapture: the capture began on another thread");
  {
    std::lock_guard<std::mutex> lock(captures_mutex);
    auto& all = captures();
    all.erase(std::remove(all.begin(), all.end(), c), all.end());
    for (Stream* fork : c->forks)
      if (streams().get(fork)) fork->capture = nullptr;
    s->capture = nullptr;
  }
  if (c->invalidated) {
    const std::string why = thread_stats().last_error;
    return error(STREAM_CAPTURE_INVALIDATED, "the capture was invalidated by an earlier error: " + why);
  }
  if (!c->open.empty())
    return error(STREAM_CAPTURE_UNJOINED, "cuStreamEndCapture: a stream that joined the capture was not joined back");
  *out = graphs().add(std::move(c->graph));
  return SUCCESS;
}
API cuStreamIsCapturing(void* h, int* status) {
  if (const Result r = enter()) return r;
  Stream* s;
  if (!stream_of(h, s)) return error(INVALID_HANDLE, "cuStreamIsCapturing: not a live stream");
  *status = !s || !s->capture ? 0 : s->capture->invalidated ? 2 : 1;
  return SUCCESS;
}
API cuStreamGetCaptureInfo(void* h, int* status, uint64_t* id) {
  if (const Result r = cuStreamIsCapturing(h, status)) return r;
  Stream* s;
  stream_of(h, s);
  if (id && *status) *id = s->capture->id;
  return SUCCESS;
}
API cuStreamGetCaptureInfo_v2(void* h, int* status, uint64_t* id, void** graph, const void*** dependencies, size_t* count) {
  if (const Result r = cuStreamGetCaptureInfo(h, status, id)) return r;
  Stream* s;
  stream_of(h, s);
  if (graph) *graph = *status ? s->capture->graph.get() : nullptr;
  if (dependencies) *dependencies = nullptr;
  if (count) *count = 0;
  return SUCCESS;
}
// ---- graphs ----
API cuGraphInstantiateWithFlags(void** out, void* h, unsigned long long flags) {
  if (const Result r = enter()) return r;
  if (const Result r = forbid_while_capturing("cuGraphInstantiate")) return r;
  Graph* g = graphs().get(h);
  if (!g) return error(INVALID_HANDLE, "cuGraphInstantiate: not a live graph");
  constexpr unsigned long long AUTO_FREE = 1, DEVICE_LAUNCH = 4, KNOWN = 15;
  if ((flags & ~KNOWN) || ((flags & AUTO_FREE) && (flags & DEVICE_LAUNCH)))
    return error(INVALID_VALUE, "cuGraphInstantiate: flags");
  auto e = std::make_unique<GraphExec>();
  e->nodes = g->nodes;
  *out = graph_execs().add(std::move(e));
  return SUCCESS;
}
API cuGraphInstantiate_v2(void** out, void* h, void* error_node, char* log, size_t n) {
  if (error_node) *static_cast<void**>(error_node) = nullptr;
  if (log && n) *log = 0;
  return cuGraphInstantiateWithFlags(out, h, 0);
}
API cuGraphUpload(void* h, void* stream) {
  if (const Result r = enter()) return r;
  Stream* s;
  return graph_execs().get(h) && stream_of(stream, s) ? SUCCESS
                                                      : error(INVALID_HANDLE, "cuGraphUpload: not a live graph or stream");
}
API cuGraphLaunch(void* h, void* stream) {
  if (const Result r = enter()) return r;
  GraphExec* e = graph_execs().get(h);
  Stream* s;
  if (!e || !stream_of(stream, s)) return error(INVALID_HANDLE, "cuGraphLaunch: not a live graph or stream");
  ++thread_stats().graph_launches;
  if (!s || !s->capture) return execute(e->nodes, thread_options());
  for (const Node& n : e->nodes)
    if (const Result r = enqueue(s, Node(n))) return r;
  return SUCCESS;
}
API cuGraphGetNodes(void* h, void** nodes, size_t* count) {
  if (const Result r = enter()) return r;
  Graph* g = graphs().get(h);
  if (!g) return error(INVALID_HANDLE, "cuGraphGetNodes: not a live graph");
  if (nodes)
    for (size_t i = 0; i < *count; ++i) nodes[i] = i < g->nodes.size() ? &g->nodes[i] : nullptr;
  if (!nodes || *count > g->nodes.size()) *count = g->nodes.size();
  return SUCCESS;
}
API cuGraphDestroy(void* h) {
  if (const Result r = enter()) return r;
  return graphs().remove(h) ? SUCCESS : error(INVALID_HANDLE, "cuGraphDestroy: not a live graph");
}
API cuGraphExecDestroy(void* h) {
  if (const Result r = enter()) return r;
  return graph_execs().remove(h) ? SUCCESS : error(INVALID_HANDLE, "cuGraphExecDestroy: not a live graph");
}
