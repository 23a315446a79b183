// Warp collectives: __syncwarp, shuffles and votes.
#include "check.h"
#include "state.h"

namespace emu {

void warp_collective(Collective fn, void* arg, uint32_t mask, const char* what, Site s) {
  Fiber& f = current();
  Warp& w = *f.warp;
  const unsigned lane = f.tid % 32;
  if (w.lanes < 32) mask &= (1u << w.lanes) - 1;
  if (!(mask >> lane & 1)) fail_at(f, std::string(what) + ": the calling lane is not in the mask", s);
  if (w.arrived == 0) {
    w.fn = fn;
    w.mask = mask;
  } else if (w.fn != fn || w.mask != mask) {
    fail_at(f, std::string("divergent warp collective: ") + what, s);
  }
  w.arg[lane] = arg;
  w.arrived |= 1u << lane;
  f.site = s;
  f.what = what;
  if (w.arrived == mask) {
    ++f.block->worker->stats.collectives;
    if (fn) {
      fn(w.arg, mask);
    } else {  // __syncwarp: the only one that orders memory
      ++w.epoch;
      w.sync_clock = ++f.block->clocks[w.id].v[w.id];
      if (f.block->launch->checked) join_knowledge(*f.block, 1u << w.id, mask);
    }
    w.arrived = 0;
    for (unsigned l = 0; l < w.lanes; ++l)
      if (mask >> l & 1) w.lane[l]->state = State::Ready;
    return;
  }
  f.state = State::Collective;
  switch_to_scheduler(f);
}

void sync_warp(uint32_t mask, Site s) { warp_collective(nullptr, nullptr, mask, "__syncwarp", s); }

template <class F>
static inline void shuffle_all(void* const (&a)[32], uint32_t mask, F source_of) {
  for (int l = 0; l < 32; ++l) {
    if (!(mask >> l & 1)) continue;
    ShuffleArg& s = *static_cast<ShuffleArg*>(a[l]);
    const int base = l & ~(s.width - 1), src = source_of(l, s, base);
    const bool in_segment = src >= base && src < base + s.width;
    if (in_segment && !(mask >> src & 1))
      fail_at(current(),
              "shuffle: lane " + std::to_string(l) + " reads lane " + std::to_string(src) + ", which is not in the mask",
              current().site);
    s.out = in_segment ? static_cast<ShuffleArg*>(a[src])->in : s.in;
  }
}
void shuffle_xor(void* const (&a)[32], uint32_t m) {
  shuffle_all(a, m, [](int l, ShuffleArg& s, int) { return l ^ s.select; });
}
void shuffle_up(void* const (&a)[32], uint32_t m) {
  shuffle_all(a, m, [](int l, ShuffleArg& s, int) { return l - s.select; });
}
void shuffle_down(void* const (&a)[32], uint32_t m) {
  shuffle_all(a, m, [](int l, ShuffleArg& s, int) { return l + s.select; });
}
void shuffle_index(void* const (&a)[32], uint32_t m) {
  shuffle_all(a, m, [](int, ShuffleArg& s, int base) { return base + (s.select & (s.width - 1)); });
}
void vote(void* const (&a)[32], uint32_t mask) {
  uint32_t r = 0;
  for (int l = 0; l < 32; ++l)
    if (mask >> l & 1) r |= (uint32_t)static_cast<ShuffleArg*>(a[l])->in << l;
  for (int l = 0; l < 32; ++l)
    if (mask >> l & 1) static_cast<ShuffleArg*>(a[l])->out = r;
}

}  // namespace emu
