// Thread block clusters: the cluster's barrier, and reads and writes of a peer's dynamic shared memory. And the wait of a
// dependent launch.
#include <algorithm>
#include "check.h"
#include "state.h"

namespace emu {
namespace {
// The warp has met in barrier.cluster.arrive: what its lanes did and know is released.
void arrive_all(void* const (&)[32], uint32_t) {
  Fiber& f = current();
  Warp& w = *f.warp;
  if (w.cluster_open) fail_at(f, "barrier.cluster.arrive: twice without a wait", f.site);
  w.cluster_open = true;
  ++w.cluster_arrivals;
  Block& b = *f.block;
  Cluster& c = *b.cluster;
  if (b.launch->checked) {
    uint32_t& released = c.arrived[b.serial].v[w.id];
    released = std::max(released, b.clocks[w.id].v[w.id]++);
    KnowledgePtr last;
    for (unsigned l = 0; l < w.lanes; ++l) {
      const KnowledgePtr& known = w.lane[l]->known;
      if (known && known != last)
        for (const auto& [serial, seen] : *known) c.arrived[serial].join(seen);
      last = known;
    }
  }
  settle_cluster(c);
}
// The warp has met after the barrier: its lanes take up what was released.
void acquire_all(void* const (&)[32], uint32_t) {
  Fiber& f = current();
  Warp& w = *f.warp;
  w.cluster_open = false;
  if (!f.block->launch->checked) return;
  KnowledgePtr before, after;
  for (unsigned l = 0; l < w.lanes; ++l) {
    KnowledgePtr& known = w.lane[l]->known;
    if (!after || known != before) {
      before = known;
      after = merged(known, f.block->cluster->visible);
    }
    known = after;
  }
}
}  // namespace

unsigned cluster_rank() { return current().block->rank; }
unsigned cluster_size() { return current().block->launch->cluster_size; }

void settle_cluster(Cluster& c) {
  for (const auto& b : c.blocks)
    for (unsigned i = 0; i < b->nwarps; ++i) {
      const Warp& w = b->warps[i];
      const bool live = std::any_of(w.lane, w.lane + w.lanes, [](const Fiber* f) { return f->state != State::Done; });
      if (live && w.cluster_arrivals == c.phase) return;
    }
  ++c.phase;
  c.visible = std::make_shared<Knowledge>(c.arrived);
}

void cluster_arrive(Site s) { warp_collective(arrive_all, nullptr, 0xffffffffu, "barrier.cluster.arrive", s); }
void cluster_wait(Site s) {
  Fiber& f = current();
  if (!f.warp->cluster_open) fail_at(f, "barrier.cluster.wait: without an arrive", s);
  while (f.block->cluster->phase < f.warp->cluster_arrivals) {
    f.state = State::Cluster;
    f.site = s;
    f.what = "barrier.cluster.wait";
    switch_to_scheduler(f);
  }
  warp_collective(acquire_all, nullptr, 0xffffffffu, "barrier.cluster.wait", s);
}

void* cluster_map(const void* p, unsigned rank, Site s) {
  Fiber& f = current();
  Block& b = *f.block;
  const size_t offset = (size_t)(static_cast<const unsigned char*>(p) - b.smem);
  if (offset > b.launch->smem) fail_at(f, "mapa: not an address in dynamic shared memory, the only kind that is emulated", s);
  if (rank >= b.cluster->blocks.size())
    fail_at(f, "mapa: block " + std::to_string(rank) + " of a cluster of " + std::to_string(b.cluster->blocks.size()), s);
  return b.cluster->blocks[rank]->smem + offset;
}

Block* peer_at(const Block& b, uintptr_t address) {
  for (const auto& peer : b.cluster->blocks)
    if (peer.get() != &b && address - reinterpret_cast<uintptr_t>(peer->smem) < MAX_DYN_SMEM + CANARY_BYTES) return peer.get();
  return nullptr;
}

void check_remote(Fiber& f, const Access& a, Block& peer) {
  const size_t offset = a.address - reinterpret_cast<uintptr_t>(peer.smem), given = peer.launch->smem;
  const std::string of = " (of block #" + std::to_string(peer.rank) + " of the cluster)";
  if (offset + a.bytes > given)
    report(f, a, "shared memory out of bounds", " (offset " + std::to_string(offset) + ", the launch gave " + std::to_string(given) + " bytes)" + of);
  if (!f.known || !f.known->count(peer.serial))
    report(f, a, "shared memory of a block that may not have started", of + ": no barrier of the cluster came before");
  if (peer.live == 0) report(f, a, "shared memory of a block that has ended", of);
  const Block& b = *f.block;
  peer.remote_uses[b.rank * MAX_WARPS + f.warp->id] = {b.serial, b.clocks[f.warp->id].v[f.warp->id], (uint16_t)f.tid};
  check_shared_race(f, a, peer, offset);
}

std::string unfinished_use(const Block& b) {
  for (const auto& [who, use] : b.remote_uses) {
    bool known = false;
    for (unsigned t = 0; t < b.threads && !known; ++t) known = knows(b.fiber(t), use.serial, use.tid, use.clock);
    if (!known)
      return "a block of a cluster ended while thread #" + std::to_string(use.tid) + " of block #" +
             std::to_string(who / MAX_WARPS) + " may still use its shared memory";
  }
  return {};
}

void grid_wait(Site s) {
  Fiber& f = current();
  f.block->grid_waited = true;
  while (!f.block->launch->cleared) {
    f.state = State::Grid;
    f.site = s;
    f.what = "griddepcontrol.wait";
    switch_to_scheduler(f);
  }
}
}  // namespace emu
