// Spin detection, shared by atomics and volatile accesses.
#pragma once
#include "state.h"

namespace emu {
// A read of `value` at `p`, or an atomic that found it. Fruitless ones in a row make the thread give way.
void note_spin(Fiber&, const void* p, uint64_t value, bool changed, const char* what, Site);
}  // namespace emu
