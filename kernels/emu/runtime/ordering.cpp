// What orders memory between blocks: fence, atomic, atomic elsewhere, fence.
#include <algorithm>
#include "check.h"

namespace emu {

bool Seen::covers(uint16_t tid, uint32_t clock) const {
  if (tid / 32u < MAX_WARPS && clock <= v[tid / 32u]) return true;
  return std::any_of(lanes.begin(), lanes.end(), [&](const auto& l) { return l.first == tid && clock <= l.second; });
}
void Seen::join(const Seen& o) {
  for (unsigned i = 0; i < MAX_WARPS; ++i) v[i] = std::max(v[i], o.v[i]);
  for (const auto& l : o.lanes) {
    const auto it = std::find_if(lanes.begin(), lanes.end(), [&](const auto& m) { return m.first == l.first; });
    if (it == lanes.end()) lanes.push_back(l);
    else it->second = std::max(it->second, l.second);
  }
  lanes.erase(std::remove_if(lanes.begin(), lanes.end(), [&](const auto& l) { return l.second <= v[l.first / 32u]; }),
              lanes.end());
}

KnowledgePtr merged(const KnowledgePtr& a, const KnowledgePtr& b) {
  if (!a || a == b) return b;
  if (!b) return a;
  auto m = std::make_shared<Knowledge>(*a);
  for (const auto& [serial, seen] : *b) (*m)[serial].join(seen);
  return m;
}

bool knows(const Fiber& f, uint32_t serial, uint16_t tid, uint32_t clock) {
  if (!f.known) return false;
  const auto it = f.known->find(serial);
  return it != f.known->end() && it->second.covers(tid, clock);
}

void join_knowledge(Block& b, uint32_t warps, uint32_t lanes) {
  const auto each = [&](auto visit) {
    for (unsigned t = 0; t < b.threads; ++t)
      if ((warps >> (t / 32) & 1) && (lanes >> (t % 32) & 1)) visit(b.fiber(t));
  };
  KnowledgePtr known, pending, fenced;
  each([&](Fiber& f) {
    known = merged(known, f.known);
    pending = merged(pending, f.pending);
    fenced = merged(fenced, f.fenced);
  });
  if (!known && !pending && !fenced) return;
  each([&](Fiber& f) {
    f.known = known;
    f.pending = pending;
    f.fenced = fenced;
  });
}

// __threadfence is sequentially consistent at device scope, so fences on either side of a barrier count for the whole
// block: what its atomics have read becomes effective, and what the thread knows and did so far is released by its
// next atomics and, after a barrier, by those of its block.
void threadfence() {
  Fiber& f = current();
  if (!f.block->launch->checked) return;
  f.known = merged(f.known, f.pending);
  f.pending = nullptr;
  Block& b = *f.block;
  const Warp& w = *f.warp;
  auto k = std::make_shared<Knowledge>(f.known ? *f.known : Knowledge{});
  Seen now;
  for (unsigned i = 0; i < MAX_WARPS; ++i) now.v[i] = b.clocks[w.id].v[i];
  now.v[w.id] = w.sync_clock - 1;  // of the other lanes only what __syncwarp or a barrier ordered
  now.lanes.push_back({(uint16_t)f.tid, b.clocks[w.id].v[w.id]});
  (*k)[b.serial].join(now);
  ++b.clocks[w.id].v[w.id];  // what follows is not covered
  f.fenced = merged(f.fenced, std::move(k));
}

void order_atomic(Fiber& f, uintptr_t p, bool writes) {
  auto& released = f.block->launch->released;
  const auto it = released.find(p);
  if (it != released.end()) f.pending = merged(f.pending, it->second);
  if (writes && f.fenced) released[p] = merged(it != released.end() ? it->second : nullptr, f.fenced);
}
}  // namespace emu
