//! The devices that one case runs on, and the bounds that each has to keep.

use arclet::device::Device;
use arclet::device::cuda::Cuda;
use arclet::device::images::KernelImages;
use arclet::device::level::Level;
use arclet::ops::linear::{Operands, Workspace, WorkspaceSize, linear};
use arclet::ops::{Columns, Select};
use arclet::tensor::{DType, Tensor};

use crate::common::{cpu, cpu_at, relative_error, rms_error, rounding_cpu};

/// The GPU: the emulated one, or the machine's with `ARCLET_TEST_DRIVER=real`. Each test thread has a stream of its own,
/// because a stream that one test records on must not be synchronised by another.
pub fn cuda() -> Device {
    thread_local! {
        static DEVICE: Cuda = {
            arclet_emu::load();
            let images = match arclet_emu::real_driver() {
                true => KernelImages::embedded(),
                false => KernelImages::manifest(arclet_emu::manifest("80")),
            };
            Cuda::new(0, images).unwrap_or_else(|e| panic!("{e}"))
        };
    }
    Device::Cuda(DEVICE.with(Cuda::clone))
}

/// Runs `work` in every schedule and under the checker, wants the same bits each time, and returns them.
pub fn every_mode(what: &str, work: impl Fn() -> Vec<f32>) -> Vec<f32> {
    let mut first: Option<Vec<f32>> = None;
    for &mode in arclet_emu::modes() {
        let got = arclet_emu::with_mode(mode, &work);
        let bits = |v: &[f32]| v.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        match &first {
            Some(want) => assert!(bits(want) == bits(&got), "{what}: the result depends on the schedule ({mode:?})"),
            None => first = Some(got),
        }
    }
    first.expect("there is a mode")
}

/// Types that the GPU computes in.
pub const CUDA_DTYPES: [DType; 3] = [DType::F32, DType::F16, DType::BF16];

/// Runs one operation everywhere and compares with `want`, computed in f64 from the unrounded inputs:
/// the CPU in f64, the CPU at every level and the GPU in f32 within `1e-5` of the largest value; the RMS error of the GPU in
/// f16 and bf16, and of a CPU with instructions for bf16, is at most twice that of the f32 loops with every input and
/// output rounded to the type.
pub fn check(what: &str, want: &[f64], run: impl Fn(&Device, DType) -> Vec<f32>) {
    check_on_cpu(what, want, &run);
    let want: Vec<f32> = want.iter().map(|&w| w as f32).collect();
    let cuda = cuda();
    for dtype in CUDA_DTYPES {
        let got = every_mode(&format!("{what} in {dtype}"), || run(&cuda, dtype));
        within(what, "cuda", dtype, &got, &want, &run);
    }
}

/// The same on the CPU alone.
pub fn check_on_cpu(what: &str, want: &[f64], run: &impl Fn(&Device, DType) -> Vec<f32>) {
    let want: Vec<f32> = want.iter().map(|&w| w as f32).collect();
    let error = relative_error(&run(&cpu(), DType::F64), &want);
    assert!(error <= 3e-7, "{what} on cpu in f64: relative error {error:.2e}");
    for level in Level::ALL {
        let cpu = cpu_at(level);
        within(what, level.name(), DType::F32, &run(&cpu, DType::F32), &want, run);
        if level.has_bf16() {
            within(what, level.name(), DType::BF16, &run(&cpu, DType::BF16), &want, run);
        }
    }
}

/// The bound of f32, or the yardstick of the narrow types.
fn within(
    what: &str,
    device: &str,
    dtype: DType,
    got: &[f32],
    want: &[f32],
    run: &impl Fn(&Device, DType) -> Vec<f32>,
) {
    if dtype == DType::F32 {
        let error = relative_error(got, want);
        assert!(error <= 1e-5, "{what} on {device} in f32: relative error {error:.2e}");
        return;
    }
    let (error, yardstick) = (rms_error(got, want), rms_error(&run(&rounding_cpu(), dtype), want));
    assert!(
        error <= 2.0 * yardstick,
        "{what} on {device} in {dtype}: RMS error {error:.2e}, rounding gives {yardstick:.2e}"
    );
}

/// What a counter of evaluations holds: it picks the bias of a product with zeros.
pub fn count(device: &Device, counter: &Tensor) -> f32 {
    let table: Vec<f32> = (0..8).map(|v| v as f32).collect();
    let table = Tensor::from_f32(device, DType::F32, &[8, 1], &table).unwrap();
    let rows = Tensor::from_u32(device, &[1], &[0]).unwrap();
    let [x, weight, mut y] = [0; 3].map(|_| Tensor::zeros(device, DType::F32, &[1, 1]).unwrap());
    let select = Some(Select { counter, rows: &rows, conditions: 1 });
    let operands = Operands { bias: Some(Columns::PerImage(&table)), select, ..Operands::new(&x, &weight) };
    let mut space = Workspace::new(device, DType::F32, WorkspaceSize::default()).unwrap();
    linear(device, operands, &mut y, None, &mut space).unwrap();
    y.to_f32(device).unwrap()[0]
}
