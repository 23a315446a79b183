//! Which matrix instructions the products of the CPU use.

/// Instruction sets of the matrix products, each a superset of those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// What the `gemm` crate finds; bf16 is f32 arithmetic rounded after every operation.
    Portable,
    /// AVX2 and FMA in f32; bf16 as above.
    Avx2,
    /// AVX-512 in f32; bf16 as above.
    Avx512,
    /// Products of bf16 pairs summed in f32 (AVX512-BF16).
    Avx512Bf16,
    /// The same in tiles (AMX-BF16).
    Amx,
}

impl Level {
    /// All of them, lowest first.
    pub const ALL: [Self; 5] = [Self::Portable, Self::Avx2, Self::Avx512, Self::Avx512Bf16, Self::Amx];

    /// The highest that this machine has and the system permits.
    pub fn detect() -> Self {
        use std::sync::OnceLock;
        static FOUND: OnceLock<Level> = OnceLock::new();
        *FOUND.get_or_init(|| Features::detect().level())
    }

    /// Name that recipes and `doctor` show.
    pub fn name(self) -> &'static str {
        match self {
            Self::Portable if cfg!(target_arch = "x86_64") => "sse2",
            Self::Portable if cfg!(target_arch = "aarch64") => "neon",
            Self::Portable => "portable",
            Self::Avx2 => "avx2+fma",
            Self::Avx512 => "avx512",
            Self::Avx512Bf16 => "avx512-bf16",
            Self::Amx => "amx-bf16",
        }
    }

    /// Whether bf16 has instructions of its own.
    pub fn has_bf16(self) -> bool {
        self >= Self::Avx512Bf16
    }
}

/// Whether AMX can be used: the system saves tiles only for processes that have asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Amx {
    /// The processor has none.
    Absent,
    /// The processor has it, the system does not let this process use it.
    Refused,
    /// This process may use it.
    Granted,
}

/// What decides about the level.
#[derive(Clone, Copy, Debug)]
pub struct Features {
    /// AVX2 and FMA.
    pub avx2: bool,
    /// AVX-512 F, BW, DQ and VL.
    pub avx512: bool,
    /// AVX512-BF16.
    pub avx512_bf16: bool,
    /// AMX-TILE and AMX-BF16.
    pub amx: Amx,
}

impl Features {
    /// Those of this machine. Asks the system for AMX where there is one.
    pub fn detect() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            let avx512 = is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512vl");
            Self {
                avx2: is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma"),
                avx512,
                avx512_bf16: is_x86_feature_detected!("avx512bf16"),
                amx: amx(),
            }
        }
        #[cfg(not(target_arch = "x86_64"))]
        Self { avx2: false, avx512: false, avx512_bf16: false, amx: Amx::Absent }
    }

    /// The highest level whose own instructions and all below are there.
    pub fn level(self) -> Level {
        match self {
            Self { avx2: false, .. } => Level::Portable,
            Self { avx512: false, .. } => Level::Avx2,
            Self { avx512_bf16: false, .. } => Level::Avx512,
            Self { amx: Amx::Granted, .. } => Level::Amx,
            _ => Level::Avx512Bf16,
        }
    }
}

/// CPUID leaf 7 says whether the processor has AMX; Linux (from 5.16 on) grants its tiles on demand.
#[cfg(target_arch = "x86_64")]
fn amx() -> Amx {
    const BF16: u32 = 1 << 22;
    const TILE: u32 = 1 << 24;
    let present = std::arch::x86_64::__cpuid(0).eax >= 7
        && std::arch::x86_64::__cpuid_count(7, 0).edx & (BF16 | TILE) == BF16 | TILE;
    match present {
        false => Amx::Absent,
        true if permission() => Amx::Granted,
        true => Amx::Refused,
    }
}

/// Asks the system to save this process's tiles.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
fn permission() -> bool {
    const ARCH_REQ_XCOMP_PERM: libc::c_int = 0x1023;
    const XFEATURE_XTILEDATA: libc::c_ulong = 18;
    // SAFETY: the call takes two integers and changes nothing but what this process may use.
    unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0 }
}

/// No other system is known to grant tiles in a way that was tried.
#[cfg(all(target_arch = "x86_64", not(target_os = "linux")))]
fn permission() -> bool {
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_needs_all_below_it_and_the_permission_of_the_system() {
        let all = Features { avx2: true, avx512: true, avx512_bf16: true, amx: Amx::Granted };
        assert_eq!(all.level(), Level::Amx);
        assert_eq!(Features { amx: Amx::Refused, ..all }.level(), Level::Avx512Bf16);
        assert_eq!(Features { amx: Amx::Absent, ..all }.level(), Level::Avx512Bf16);
        assert_eq!(Features { avx512_bf16: false, ..all }.level(), Level::Avx512);
        assert_eq!(Features { avx512: false, ..all }.level(), Level::Avx2);
        assert_eq!(Features { avx2: false, ..all }.level(), Level::Portable);
    }
}
