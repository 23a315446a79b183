//! How many blocks of a kernel fit onto a multiprocessor, by the rules of the CUDA programming guide (technical
//! specifications per compute capability) and of the occupancy calculator.

/// What a multiprocessor of one architecture has.
pub struct Limits {
    pub arch: &'static str,
    /// Warps at a time.
    warps: u32,
    /// Blocks at a time.
    blocks: u32,
    /// Shared memory of all blocks, in bytes.
    shared: u32,
}

pub const ARCHITECTURES: [Limits; 4] = [
    Limits { arch: "sm_80", warps: 64, blocks: 32, shared: 164 << 10 },
    Limits { arch: "sm_86", warps: 48, blocks: 16, shared: 100 << 10 },
    Limits { arch: "sm_89", warps: 48, blocks: 24, shared: 100 << 10 },
    Limits { arch: "sm_90a", warps: 64, blocks: 32, shared: 228 << 10 },
];

/// Registers of a multiprocessor of any of them.
const REGISTERS: u32 = 65_536;
/// Registers are given to a warp in units of so many, and to so many warps at a time.
const REGISTER_UNIT: u32 = 256;
const WARP_UNIT: u32 = 4;
/// Shared memory is given to a block in units of so many bytes.
const SHARED_UNIT: u32 = 128;
/// What the system takes of it per block.
const SHARED_RESERVED: u32 = 1024;

impl Limits {
    /// Blocks of `threads` threads that fit at a time, and what limits them first: `warps`, `registers`, `shared` or
    /// `blocks`. `shared` is static and dynamic shared memory of a block in bytes.
    pub fn resident(&self, threads: u32, registers: u32, shared: u32) -> (u32, &'static str) {
        let warps = threads.div_ceil(32);
        let per_warp = (registers * 32).next_multiple_of(REGISTER_UNIT).max(REGISTER_UNIT);
        let by_registers = REGISTERS / per_warp / WARP_UNIT * WARP_UNIT / warps;
        let by_shared = self.shared / (shared + SHARED_RESERVED).next_multiple_of(SHARED_UNIT);
        // The first of equals.
        let limits = [
            (self.warps / warps, "warps"),
            (by_registers, "registers"),
            (by_shared, "shared"),
            (self.blocks, "blocks"),
        ];
        limits.into_iter().min_by_key(|l| l.0).expect("four limits")
    }
}

/// Figures of NVIDIA's occupancy calculator.
#[test]
fn occupancy_is_that_of_the_calculator() {
    let on = |arch: &str, threads, registers, shared| {
        let limits = ARCHITECTURES.iter().find(|l| l.arch == arch).expect("architecture");
        limits.resident(threads, registers, shared)
    };
    // 32 registers of 256 threads: full on an A100, six blocks of 48 warps on an L4.
    assert_eq!(on("sm_80", 256, 32, 0), (8, "warps"));
    assert_eq!(on("sm_89", 256, 32, 0), (6, "warps"));
    // 255 registers: 8192 per warp, eight warps.
    assert_eq!(on("sm_80", 128, 255, 0), (2, "registers"));
    // 33 registers are given as 40: 1280 per warp, 51 warps, of which groups of four make 48.
    assert_eq!(on("sm_90a", 128, 33, 0), (12, "registers"));
    // The largest block of shared memory fits once, a byte more than a half does too.
    assert_eq!(on("sm_80", 128, 32, 163 << 10), (1, "shared"));
    assert_eq!(on("sm_86", 128, 32, 49 << 10), (2, "shared"));
    assert_eq!(on("sm_86", 128, 32, (49 << 10) + 1), (1, "shared"));
    assert_eq!(on("sm_90a", 32, 16, 0), (32, "blocks"));
}
