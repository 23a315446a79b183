// Hopper: named barriers, mbarriers, TMA tile loads and wgmma. TMA loads land only when no thread can run; wgmma
// reads its operands and adds to its accumulators at the wait, and until then the accumulators are NaN.
#include <algorithm>
#include "check.h"
#include "numbers.h"
#include "state.h"

namespace emu {

uint32_t smem_offset(const void* p) { return (uint32_t)(static_cast<const unsigned char*>(p) - current().block->smem); }

void bar_sync(int id, int threads, Site s) {
  Fiber& f = current();
  Block& b = *f.block;
  if (id < 0 || id > 15 || threads <= 0 || threads % 32) fail_at(f, "bar.sync: bad id or count", s);
  f.site = s;
  f.what = "bar.sync";
  f.named = id;
  if (++b.named_arrived[id] < threads) {
    f.state = State::Named;
    switch_to_scheduler(f);
    return;
  }
  b.named_arrived[id] = 0;
  uint32_t warps = 1u << f.warp->id;
  for (unsigned t = 0; t < b.threads; ++t) {
    Fiber& o = b.fiber(t);
    if (o.state == State::Named && o.named == id) {
      o.state = State::Ready;
      warps |= 1u << (t / 32);
    }
  }
  join_warps(b, warps);
}

namespace {
constexpr uint8_t MAGIC = 0xB5;

MBar& barrier_at(Fiber& f, uint64_t* p, Site s, const char* what) {
  if ((uintptr_t)p % 8) fail_at(f, std::string("misaligned: ") + what, s);
  require_shared(f, p, 8, what, s);
  MBar& m = *reinterpret_cast<MBar*>(p);
  if (m.magic != MAGIC) fail_at(f, std::string(what) + ": not an initialised mbarrier", s);
  return m;
}
void settle(MBar& m) {
  if (m.pending != 0 || m.tx16 != 0) return;
  m.phase ^= 1;
  m.pending = m.count;
}
}  // namespace

void mbar_init(uint64_t* p, uint32_t count, Site s) {
  Fiber& f = current();
  if ((uintptr_t)p % 8) fail_at(f, "misaligned: mbarrier.init", s);
  require_shared(f, p, 8, "mbarrier.init", s);
  *reinterpret_cast<MBar*>(p) = {0, MAGIC, (uint16_t)count, (uint16_t)count, 0};
}
void mbar_arrive(uint64_t* p, uint32_t tx_bytes, Site s) {
  Fiber& f = current();
  MBar& m = barrier_at(f, p, s, "mbarrier.arrive");
  if (m.pending == 0) fail_at(f, "mbarrier.arrive: more arrivals than the count", s);
  if (tx_bytes % 16) fail_at(f, "mbarrier.arrive: expected bytes are not a multiple of 16", s);
  Block& b = *f.block;
  const unsigned w = f.warp->id;
  b.mbar_clocks[p].join(b.clocks[w]);
  ++b.clocks[w].v[w];
  m.tx16 = (int16_t)(m.tx16 + (int)(tx_bytes / 16));
  --m.pending;
  settle(m);
}
void mbar_wait(uint64_t* p, uint32_t parity, Site s) {
  Fiber& f = current();
  MBar& m = barrier_at(f, p, s, "mbarrier.try_wait");
  while (m.phase == parity) {
    f.state = State::Mbarrier;
    f.mbar = &m;
    f.parity = parity;
    f.site = s;
    f.what = "mbarrier.try_wait";
    switch_to_scheduler(f);
  }
  f.block->clocks[f.warp->id].join(f.block->mbar_clocks[p]);
}

void tma_load_2d(void* dst, const void* map, uint64_t* bar, int x, int y, Site s) {
  Fiber& f = current();
  TmaLoad t{static_cast<char*>(dst), {}, &barrier_at(f, bar, s, "TMA barrier"), x, y, f.block->clocks[f.warp->id],
            (uint16_t)f.tid,         s};
  memcpy(&t.map, map, sizeof t.map);
  const size_t bytes = (size_t)t.map.box0 * t.map.box1 * t.map.elem;
  if ((uintptr_t)dst % (t.map.swizzle128 ? 1024 : 128)) fail_at(f, "misaligned: TMA destination", s);
  require_shared(f, dst, bytes, "TMA destination", s);
  memset(dst, 0xff, bytes);
  f.block->tma.push_back(t);
}

void deliver_tma(Block& b, const TmaLoad& t) {
  constexpr uint32_t CHUNK = 16;  // bytes that the swizzle moves together
  const TensorMap& m = t.map;
  Fiber& f = b.fiber(t.tid);
  const size_t row_bytes = (size_t)m.box0 * m.elem;
  const int64_t columns = (int64_t)m.dim0, per_chunk = CHUNK / m.elem;
  for (uint32_t r = 0; r < m.box1; ++r)
    for (int64_t c = 0; c < m.box0; c += per_chunk) {
      size_t offset = r * row_bytes + (size_t)c * m.elem;
      if (m.swizzle128) offset ^= (offset >> 7 & 7) << 4;
      char* to = t.dst + offset;
      // the elements of the chunk that exist
      const int64_t y = (int64_t)t.y + r, x = t.x + c, first = std::max<int64_t>(x, 0), last = std::min(x + per_chunk, columns);
      const bool inside = y >= 0 && y < (int64_t)m.dim1 && first < last;
      const char* from = m.base + y * (int64_t)m.stride1 + first * m.elem;
      const auto bytes = inside ? (uint32_t)((last - first) * m.elem) : 0;
      if (b.launch->checked) {
        check(f, {reinterpret_cast<uintptr_t>(to), CHUNK, true, false, false, TMA_TID, &t.clocks, nullptr, t.site});
        for (uint32_t i = 0; i < bytes; i += m.elem)
          check(f, {reinterpret_cast<uintptr_t>(from + i), m.elem, false, false, false, t.tid, &t.clocks, nullptr, t.site});
      }
      memset(to, 0, CHUNK);
      if (inside) memcpy(to + (first - x) * m.elem, from, bytes);
    }
  Clocks& at_barrier = b.mbar_clocks[t.bar];
  at_barrier.join(t.clocks);
  at_barrier.v[TMA] = std::max(at_barrier.v[TMA], b.clocks[TMA].v[TMA]++);
  t.bar->tx16 = (int16_t)(t.bar->tx16 - (int)(row_bytes * m.box1 / 16));
  settle(*t.bar);
}

namespace {
constexpr unsigned K = 16;  // of one product
struct WgmmaArg {
  Fiber* fiber;
  size_t end;
};
WgmmaSums& sums_of(Fiber& f, const float* d) {
  return *std::find_if(f.wgmma_sums.begin(), f.wgmma_sums.end(), [&](const WgmmaSums& s) { return s.d == d; });
}
// Row `row` of a K-major operand with 128-byte swizzle: 16 values of k, read now.
void read_row(Fiber& f, const Wgmma& op, uint64_t desc, unsigned row, float (&out)[K]) {
  const Block& b = *f.block;
  const uint32_t start = (uint32_t)(desc & 0x3fff) << 4, group = (uint32_t)(desc >> 32 & 0x3fff) << 4;
  for (unsigned k = 0; k < K; k += 8) {
    uint32_t offset = start + row / 8 * group + row % 8 * 128 + k * 2;
    offset ^= (offset >> 7 & 7) << 4;
    const unsigned char* from = b.smem + offset;
    require_shared(f, from, 16, "wgmma operand", op.site);
    if (b.launch->checked) {
      Access a = Access::of_op(from, 16, false, op.site);
      a.all_lanes = true;
      a.tid = (uint16_t)f.tid;
      check(f, a);
    }
    uint16_t v[8];
    memcpy(v, from, sizeof v);
    for (unsigned i = 0; i < 8; ++i) out[k + i] = op.bf16 ? float_of_bf16(v[i]) : float_of_f16(v[i]);
  }
}
// One warp's 16 rows of every m64 n k16 product up to `end`; operands are read now.
void wgmma_all(void* const (&arg)[32], uint32_t mask) {
  const WgmmaArg& first = *static_cast<WgmmaArg*>(arg[0]);
  Fiber& f = *first.fiber;
  if (mask != 0xffffffffu) fail_at(f, "wgmma: the warp has not converged", f.site);
  for (size_t i = 0; i < first.end; ++i) {
    const Wgmma& op = f.wgmmas[i];
    if (op.a >> 62 != 1 || op.b >> 62 != 1)
      fail_at(f, "wgmma: only the K-major descriptor with 128-byte swizzle is emulated", op.site);
    const unsigned row0 = f.warp->id % 4 * 16;
    float A[16][K], B[K][256], row[K];
    for (unsigned r = 0; r < 16; ++r) read_row(f, op, op.a, row0 + r, A[r]);
    for (int n = 0; n < op.n; ++n) {
      read_row(f, op, op.b, (unsigned)n, row);
      for (unsigned k = 0; k < K; ++k) B[k][n] = row[k];
    }
    float* sums[32];
    for (unsigned l = 0; l < 32; ++l) {
      Fiber& lane = *static_cast<WgmmaArg*>(arg[l])->fiber;
      sums[l] = sums_of(lane, lane.wgmmas[i].d).value.data();
    }
    for (unsigned r = 0; r < 16; ++r) {
      float s[256] = {};
      for (unsigned k = 0; k < K; ++k)
        for (int n = 0; n < op.n; ++n) s[n] += A[r][k] * B[k][n];
      for (int n = 0; n < op.n; ++n) sums[r % 8 * 4 + (unsigned)n % 8 / 2][n / 8 * 4 + (int)(r / 8) * 2 + n % 2] += s[n];
    }
  }
}
}  // namespace

void wgmma_fence() { current().wgmma_fenced = true; }
void wgmma(float* d, int n, uint64_t a, uint64_t b, bool bf16, Site s) {
  Fiber& f = current();
  const auto held = [&] {
    return std::any_of(f.wgmma_sums.begin(), f.wgmma_sums.end(), [&](const WgmmaSums& w) { return w.d == d; });
  };
  if (!held()) {
    if (!f.wgmma_fenced) fail_at(f, "wgmma: no wgmma.fence since the registers were last free to change", s);
    f.wgmma_sums.push_back({d, {d, d + n / 2}});
    memset(d, 0xff, (size_t)n / 2 * sizeof *d);
  }
  f.wgmmas.push_back({d, n, a, b, bf16, s});
}
void wgmma_commit() {
  Fiber& f = current();
  f.wgmma_groups.push_back(f.wgmmas.size());
}
void wgmma_wait(int keep, Site s) {
  Fiber& f = current();
  const size_t groups = (int)f.wgmma_groups.size() > keep ? f.wgmma_groups.size() - (size_t)keep : 0;
  const size_t end = groups ? f.wgmma_groups[groups - 1] : 0;
  WgmmaArg a{&f, end};
  warp_collective(wgmma_all, &a, 0xffffffffu, "wgmma.wait_group", s);
  // the last lane ran the batch for all; each drops its own queue
  f.wgmmas.erase(f.wgmmas.begin(), f.wgmmas.begin() + (long)end);
  f.wgmma_groups.erase(f.wgmma_groups.begin(), f.wgmma_groups.begin() + (long)groups);
  for (size_t& e : f.wgmma_groups) e -= end;
  f.wgmma_fenced = false;
  // registers that no product holds any more come back
  for (size_t i = 0; i < f.wgmma_sums.size();) {
    const WgmmaSums& w = f.wgmma_sums[i];
    if (std::any_of(f.wgmmas.begin(), f.wgmmas.end(), [&](const Wgmma& op) { return op.d == w.d; })) {
      ++i;
      continue;
    }
    const auto* now = reinterpret_cast<const unsigned char*>(w.d);
    if (std::any_of(now, now + w.value.size() * sizeof(float), [](unsigned char c) { return c != 0xff; }))
      fail_at(f, "wgmma: its registers were written before the wait", s);
    std::copy(w.value.begin(), w.value.end(), w.d);
    f.wgmma_sums.erase(f.wgmma_sums.begin() + (long)i);
  }
}

}  // namespace emu
