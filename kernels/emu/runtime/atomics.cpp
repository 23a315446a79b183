// Atomic operations, and the detection of spin-waits: a thread whose atomics neither change memory nor see anything
// new gives way, so that the thread or block it waits for can run.
#include <algorithm>
#include "check.h"
#include "hooks.h"

namespace emu {
namespace {
constexpr unsigned SPINS = 8;  // fruitless atomics in a row before a thread gives way

template <class T>
T from_bits(uint64_t bits) {
  T v;
  memcpy(&v, &bits, sizeof v);
  return v;
}
template <class T>
uint64_t to_bits(T v) {
  uint64_t bits = 0;
  memcpy(&bits, &v, sizeof v);
  return bits;
}

template <class T>
T apply(AtomicOp op, T old, T v, T compare) {
  switch (op) {
    case AtomicOp::Add: return old + v;
    case AtomicOp::Min: return std::min(old, v);
    case AtomicOp::Max: return std::max(old, v);
    case AtomicOp::Exch: return v;
    case AtomicOp::Cas: return old == compare ? v : old;
    default: break;
  }
  if constexpr (std::is_integral<T>::value) {
    switch (op) {
      case AtomicOp::And: return old & v;
      case AtomicOp::Or: return old | v;
      case AtomicOp::Xor: return old ^ v;
      case AtomicOp::Inc: return old >= v ? 0 : old + 1;
      case AtomicOp::Dec: return old == 0 || old > v ? v : old - 1;
      default: break;
    }
  }
  return old;
}

template <class T, class U>
uint64_t run(void* p, AtomicOp op, uint64_t operand, uint64_t compare, bool& changed) {
  U* const at = static_cast<U*>(p);  // U: the same size, integral
  U old = __atomic_load_n(at, __ATOMIC_RELAXED), now;
  do now = (U)to_bits(apply<T>(op, from_bits<T>(old), from_bits<T>(operand), from_bits<T>(compare)));
  while (!__atomic_compare_exchange_n(at, &old, now, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST));
  changed = now != old;
  return old;
}
}  // namespace

// Counts atomics that come to nothing; the eighth in a row gives way.
void note_spin(Fiber& f, const void* p, uint64_t value, bool changed, const char* what, Site s) {
  const bool fruitless = !changed && f.spin_address == p && f.spin_value == value;
  f.spin_address = p;
  f.spin_value = value;
  if (!fruitless) {
    f.spins = 0;
    f.block->worker->productive = true;
    return;
  }
  if (++f.spins < SPINS) return;
  f.state = State::Spin;
  f.site = s;
  f.what = what;
  switch_to_scheduler(f);
}

uint64_t atomic(void* p, AtomicOp op, AtomicType type, uint64_t operand, uint64_t compare, Site s) {
  Fiber& f = current();
  const bool wide = type == AtomicType::I64 || type == AtomicType::U64 || type == AtomicType::F64;
  const uint32_t bytes = wide ? 8 : 4;
  if ((uintptr_t)p % bytes) fail_at(f, "misaligned: atomic of " + std::to_string(bytes) + " bytes", s);
  if (f.block->launch->checked) {
    check(f, Access::of_op(p, bytes, true, s, true));
    order_atomic(f, (uintptr_t)p, true);
  }
  bool changed = false;
  uint64_t old = 0;
  f.op_site = s;
  switch (type) {
    case AtomicType::I32: old = run<int32_t, uint32_t>(p, op, operand, compare, changed); break;
    case AtomicType::U32: old = run<uint32_t, uint32_t>(p, op, operand, compare, changed); break;
    case AtomicType::I64: old = run<int64_t, uint64_t>(p, op, operand, compare, changed); break;
    case AtomicType::U64: old = run<uint64_t, uint64_t>(p, op, operand, compare, changed); break;
    case AtomicType::F32: old = run<float, uint32_t>(p, op, operand, compare, changed); break;
    case AtomicType::F64: old = run<double, uint64_t>(p, op, operand, compare, changed); break;
  }
  f.op_site = {};
  note_spin(f, p, old, changed, "a spin-wait on an atomic", s);
  return old;
}
}  // namespace emu
