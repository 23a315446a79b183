//! What this machine could do at best, measured: the two limits that an evaluation on the CPU runs into.

use std::hint::black_box;
use std::time::Instant;

use rayon::prelude::*;

use super::{Kernel, Tile};
use crate::device::cpu::Cpu;
use crate::device::packed::{Element, LANES, Line};
use crate::error::{Error, Result};

/// Limits of all threads of a device together.
#[derive(Clone, Copy, Debug)]
pub struct Ceilings {
    /// Operations per second of products whose operands stay in the first-level cache, two per multiply-add.
    pub flops: f64,
    /// Bytes per second of reading memory that no cache holds.
    pub bytes: f64,
}

/// Lines of a row of a product that stays in the cache: long enough for its beginning and end not to count, 16 KB for each
/// operand of the largest tile.
const LINES: usize = 8;
/// Bytes that are streamed: more than the last-level caches of desktop and most server processors.
const STREAM: usize = 192 << 20;
/// Seconds that each limit is measured for.
const SECONDS: f64 = 0.05;

/// Measures both limits for products of `element` on the threads of `cpu`: the best of several short runs, because nothing
/// makes a machine faster than it is.
///
/// # Errors
/// [`Error::OutOfMemory`] without the memory to stream.
pub fn measure(cpu: &Cpu, element: Element) -> Result<Ceilings> {
    let mut memory: Vec<Line> = Vec::new();
    let count = STREAM / size_of::<Line>();
    memory.try_reserve_exact(count).map_err(|_| Error::OutOfMemory { device: "cpu".into(), asked: STREAM, free: 0 })?;
    memory.resize(count, Line([1; LANES]));
    let threads = cpu.threads();
    Ok(cpu.install(|| {
        let flops = best(|| arithmetic(&Kernel::new(cpu, element), threads));
        let bytes = best(|| {
            let sum =
                |part: &[Line]| part.iter().fold(0u32, |sum, line| line.0.iter().fold(sum, |s, w| s.wrapping_add(*w)));
            black_box(memory.par_chunks(count.div_ceil(threads)).map(sum).reduce(|| 0, u32::wrapping_add));
            STREAM as f64
        });
        Ceilings { flops, bytes }
    }))
}

/// Most work per second of `run`, which returns how much it did.
fn best(run: impl Fn() -> f64) -> f64 {
    let begin = Instant::now();
    let mut best = 0f64;
    while best == 0.0 || begin.elapsed().as_secs_f64() < SECONDS {
        let start = Instant::now();
        let work = run();
        best = best.max(work / start.elapsed().as_secs_f64());
    }
    best
}

/// Multiplies a full tile on each thread; returns the operations of all.
fn arithmetic(kernel: &Kernel, threads: usize) -> f64 {
    const REPEATS: usize = 2000;
    let (rows, panels) = (kernel.rows, kernel.panels);
    (0..threads).into_par_iter().for_each(|_| {
        // Ones, or pairs of ones: neither overflow nor subnormal numbers.
        let one = if kernel.element == Element::F32 { 0x3f80_0000 } else { 0x3f80_3f80 };
        let (a, b) = (vec![Line([one; LANES]); LINES * rows], vec![Line([one; LANES]); LINES * LANES * panels]);
        let mut tile = Tile::default();
        for _ in 0..REPEATS {
            black_box(kernel.multiply(black_box(&a), rows, &b, &mut tile));
        }
    });
    let k = LINES * LANES * kernel.element.per_word();
    (2 * threads * REPEATS * rows * panels * LANES * k) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_those_of_a_machine() {
        let cpu = Cpu::new(1).unwrap();
        for element in [Element::F32, Element::Bf16Pair] {
            let Ceilings { flops, bytes } = measure(&cpu, element).unwrap();
            assert!((1e7..1e14).contains(&flops) && (1e7..1e13).contains(&bytes), "{flops:e} {bytes:e}");
        }
    }
}
