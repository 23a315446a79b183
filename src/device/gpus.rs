//! What is known about GPU models before anything is measured on them: the yardstick of achieved bandwidth and
//! arithmetic.

/// One GPU model.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Gpu {
    /// The part of the driver's name for it that tells it from others.
    pub name: &'static str,
    /// The architecture that its kernels are compiled for.
    pub arch: &'static str,
    /// Number of multiprocessors.
    pub multiprocessors: u32,
    /// Memory bandwidth, 10^9 bytes per second.
    pub gb_per_s: f64,
    /// Dense f16 matrix products accumulated in f32, 10^12 operations per second.
    pub tflops: f64,
}

/// The models that arclet is tuned for. Bandwidth and peak are those of the data sheets (dense, boost clock), except on
/// the H200, where they are what a copy and a large matrix product were measured to reach.
pub const KNOWN: [Gpu; 6] = [
    Gpu { name: "H200", arch: "sm_90a", multiprocessors: 132, gb_per_s: 4300.0, tflops: 790.0 },
    Gpu { name: "H100", arch: "sm_90a", multiprocessors: 132, gb_per_s: 3350.0, tflops: 989.0 },
    Gpu { name: "A100", arch: "sm_80", multiprocessors: 108, gb_per_s: 2039.0, tflops: 312.0 },
    Gpu { name: "A10", arch: "sm_86", multiprocessors: 72, gb_per_s: 600.0, tflops: 125.0 },
    Gpu { name: "RTX 4090", arch: "sm_89", multiprocessors: 128, gb_per_s: 1008.0, tflops: 165.0 },
    Gpu { name: "L4", arch: "sm_89", multiprocessors: 58, gb_per_s: 300.0, tflops: 121.0 },
];

/// The known model that the driver calls `name`, for instance `NVIDIA A100-SXM4-80GB`; variants that share a name but
/// not the speed (PCIe, laptops, 40 GB) are not told apart, except that those which say so are not known.
pub fn find(name: &str) -> Option<&'static Gpu> {
    let other = ["PCIe", "Laptop", "NVL", "MIG", "40GB", "4090 D"];
    if other.iter().any(|o| name.contains(o)) {
        return None;
    }
    let words: Vec<&str> = name.split([' ', '-']).collect();
    KNOWN.iter().find(|gpu| {
        let wanted: Vec<&str> = gpu.name.split(' ').collect();
        words.windows(wanted.len()).any(|w| w == wanted)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_matched_by_whole_words() {
        for (name, known) in [
            ("NVIDIA H200", Some("H200")),
            ("NVIDIA H100 80GB HBM3", Some("H100")),
            ("NVIDIA H100 PCIe", None),
            ("NVIDIA A100-SXM4-80GB", Some("A100")),
            ("NVIDIA A100-SXM4-40GB", None),
            ("NVIDIA A10", Some("A10")),
            ("NVIDIA GeForce RTX 4090", Some("RTX 4090")),
            ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
            ("NVIDIA L4", Some("L4")),
            ("NVIDIA L40S", None),
            ("arclet emulated GPU (sm_80)", None),
        ] {
            assert_eq!(find(name).map(|g| g.name), known, "{name}");
        }
    }
}
