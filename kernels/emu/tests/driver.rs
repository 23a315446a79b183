//! cudarc, unmodified, on the emulated driver.

mod common;

use common::{Gpu, ptr, shape};

#[test]
fn scales_a_vector_in_every_mode() {
    let gpu = Gpu::new();
    let x: Vec<f32> = (0..1000).map(|i| i as f32).collect();
    for mode in arclet_emu::ALL {
        arclet_emu::with_mode(mode, || {
            let dx = gpu.stream.clone_htod(&x).unwrap();
            let dy = gpu.stream.alloc_zeros::<f32>(1000).unwrap();
            let spec = 1000u64 | (2.5f32.to_bits() as u64) << 32;
            gpu.run("emutest_scale", shape(8, 128, 0), &[ptr(&dx, &gpu.stream), ptr(&dy, &gpu.stream), spec]).unwrap();
            let y = gpu.stream.clone_dtoh(&dy).unwrap();
            assert!(y.iter().zip(&x).all(|(y, x)| *y == 2.5 * x), "{mode:?}");
        });
    }
}
