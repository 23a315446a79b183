// What a dependent phase costs that has nothing to do: timed in a graph of many (src/device/probe.rs).
//
// empty_phase: any grid, any block.
#include "prelude.cuh"

KERNEL(__launch_bounds__(128) empty_phase)() { dev::grid_begin(); }
KERNEL_EXPORT(empty_phase)
