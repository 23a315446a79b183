//! What devices and operations refuse, and several threads on one GPU.

use std::sync::mpsc;
use std::time::Duration;

use arclet::device::cuda::Cuda;
use arclet::device::images::KernelImages;
use arclet::device::{Device, level::Level};
use arclet::error::{Error, Result};
use arclet::flow::sampler::{Sampler, SamplerOptions};
use arclet::flow::schedule::{Schedule, Solver, TimeConvention};
use arclet::ops::attention::{Heads, attention};
use arclet::ops::layernorm::{Affine, layernorm};
use arclet::ops::linear::{Norm, Operands, Residual, Workspace, WorkspaceSize, linear, workspace_size};
use arclet::ops::patch::patchify;
use arclet::ops::solver::advance;
use arclet::ops::{Columns, Select};
use arclet::tensor::{DType, Tensor};

use crate::common::cpu;
use crate::engines::{count, cuda};
use crate::goldens::load;

fn zeros(device: &Device, dtype: DType, shape: &[usize]) -> Tensor {
    Tensor::zeros(device, dtype, shape).unwrap()
}

/// Wants an error of the run, no fault and no panic, that holds all `parts`.
fn refused(result: Result<()>, parts: &[&str]) {
    let error = result.unwrap_err();
    assert_eq!(error.exit_code(), 1, "{error}");
    for part in parts {
        assert!(error.to_string().contains(part), "{part:?} is not in: {error}");
    }
}

#[test]
fn host_memory_that_is_not_there_is_an_error() {
    for dtype in [DType::F32, DType::F64, DType::U32] {
        match Tensor::zeros(&cpu(), dtype, &[1 << 20, 1 << 22]) {
            Err(Error::OutOfMemory { device, asked, .. }) => {
                assert_eq!((device.as_str(), asked), ("cpu", dtype.size() << 42));
            }
            Err(e) => panic!("{e}"),
            Ok(_) => panic!("sixteen terabytes"),
        }
    }
}

/// Typed, with what was asked for and what is free; what was allocated on the way is given back, and the same GPU goes on.
#[test]
fn gpu_memory_that_is_not_there_is_an_error_and_the_process_goes_on() {
    let device = cuda();
    let Device::Cuda(gpu) = &device else { unreachable!("the GPU's device") };
    let refused = |error: Option<Error>, least: usize| match error {
        Some(Error::OutOfMemory { device, asked, free }) => {
            assert_eq!(device, "cuda:0");
            assert!(asked >= least && 0 < free && free < asked, "asked for {asked}, {free} free");
            let said = Error::OutOfMemory { device, asked, free };
            assert_eq!(said.exit_code(), 4);
            let words = format!("out of cuda:0 memory: asked for {asked} bytes, {free} bytes free");
            assert_eq!(said.to_string(), words);
        }
        other => panic!("{other:?}"),
    };
    refused(Tensor::zeros(&device, DType::F16, &[1 << 20, 1 << 22]).err(), 2 << 42);

    let model = load("a1_flow_vit", &device, DType::F16);
    let schedule = Schedule::new(Solver::Euler, 2, TimeConvention::Train).unwrap();
    let options = SamplerOptions { guidance: 1.0, clamp: true };
    let draw = || {
        let mut sampler = Sampler::new(&model, &schedule, 2, options).unwrap();
        sampler.draw_noise(1, 0).unwrap();
        sampler.run(&[]).unwrap();
        sampler.state().unwrap()
    };
    let (images, used) = (draw(), gpu.allocated().0);
    refused(Sampler::new(&model, &schedule, 1 << 30, options).err(), 1 << 30);
    assert_eq!(gpu.allocated().0, used, "bytes of the batch that was too large");
    assert_eq!(images, draw());
}

#[test]
fn the_cpu_is_described_by_what_decides_its_last_bits() {
    assert!(cpu().description().starts_with(&format!("cpu ({}", Level::detect().name())));
}

#[test]
fn operands_of_another_type_are_refused() {
    for device in [cpu(), cuda()] {
        let z = |dtype, shape: &[usize]| zeros(&device, dtype, shape);
        let (f16, f32) = (DType::F16, DType::F32);
        // Few tiles, a long K and an odd N, so that every GPU writes partial sums to the workspace.
        let (rows, n, k) = (3, 41, 1096);
        let space = || Workspace::new(&device, f16, workspace_size(&device, f16, 1, rows, n, k)).unwrap();
        let product = |x, weight, bias, gate, mut space: Workspace| {
            let (x, weight, bias) = (z(x, &[1, rows, k]), z(weight, &[n, k]), z(bias, &[n]));
            let (gate, mut y) = (z(gate, &[1, n]), z(f16, &[1, rows, n]));
            let (residual, bias) = (Residual::Gated(Columns::PerImage(&gate)), Some(Columns::Shared(&bias)));
            let operands = Operands { bias, residual, ..Operands::new(&x, &weight) };
            device.run(|| linear(&device, operands, &mut y, None, &mut space))
        };
        product(f16, f16, f16, f16, space()).unwrap();
        refused(product(f32, f16, f16, f16, space()), &["linear x", "f32", "f16"]);
        refused(product(f16, f32, f16, f16, space()), &["linear weight"]);
        refused(product(f16, f16, f32, f16, space()), &["linear bias"]);
        refused(product(f16, f16, f16, f32, space()), &["linear gate"]);
        let none = Workspace::new(&device, f16, WorkspaceSize::default()).unwrap();
        refused(product(f16, f16, f16, f16, none), &["workspace is too small"]);

        let (x, weight) = (z(f16, &[1, rows, k]), z(f16, &[n, k]));
        let (short, sums) = (z(f32, &[1, rows, 17, 2]), z(f16, &[n]));
        let norm = Some(Norm { stats: &short, sums: Columns::Shared(&sums), eps: 1e-6 });
        let operands = Operands { norm, ..Operands::new(&x, &weight) };
        let y = &mut z(f16, &[1, rows, n]);
        refused(linear(&device, operands, y, None, &mut space()), &["stats of x", "17", "18"]);
        let (counter, picked) = (z(DType::U32, &[1]), z(f32, &[1]));
        let select = Some(Select { counter: &counter, rows: &picked, conditions: 1 });
        let operands = Operands { select, ..Operands::new(&x, &weight) };
        refused(linear(&device, operands, y, None, &mut space()), &["rows of conditions", "f32", "u32"]);

        let qkv = z(f16, &[1, 4, 96]);
        let part = |offset| Heads { tensor: &qkv, offset };
        refused(attention(&device, part(0), part(32), part(64), 1, &mut z(f32, &[1, 4, 32])), &["attention", "f16"]);
        let (weight, bias) = (z(f32, &[8]), z(f32, &[8]));
        let affine = Affine::Learned(&weight, &bias);
        refused(layernorm(&device, &z(f16, &[1, 2, 8]), affine, 1e-6, &mut z(f16, &[1, 2, 8])), &["layernorm weight"]);
        refused(patchify(&device, &z(f16, &[1, 1, 4, 4]), 2, &mut z(f16, &[1, 4, 4])), &["patchify image"]);
        refused(advance(&device, &mut z(f16, &[1])), &["counter", "f16", "u32"]);
    }
}

#[test]
fn what_the_kernels_cannot_launch_is_refused() {
    let device = cuda();
    let rows = 65_536 * 64;
    let (x, weight) = (zeros(&device, DType::F16, &[1, rows, 1]), zeros(&device, DType::F16, &[1, 1]));
    let mut y = zeros(&device, DType::F16, &[1, rows, 1]);
    let mut space = Workspace::new(&device, DType::F16, WorkspaceSize::default()).unwrap();
    let product = linear(&device, Operands::new(&x, &weight), &mut y, None, &mut space);
    refused(product, &["linear_fwd_f16", "65536", "65535"]);

    for (stride, offset) in [(100, 0), (104, 4)] {
        let qkv = zeros(&device, DType::F16, &[1, 4, stride]);
        let part = |offset| Heads { tensor: &qkv, offset };
        let mut out = zeros(&device, DType::F16, &[1, 4, 32]);
        refused(attention(&device, part(offset), part(32), part(64), 1, &mut out), &["attention", "multiples of 8"]);
    }
}

/// One thread records while another allocates, copies, launches and frees on the same GPU: the other one waits, and
/// nothing that it does gets into the graph.
#[test]
fn a_recording_is_alone_on_its_gpu() {
    let device = cuda();
    let mut counter = Tensor::from_u32(&device, &[1], &[0]).unwrap();
    // Recording must not load code.
    advance(&device, &mut counter).unwrap();
    let spare = zeros(&device, DType::F32, &[16]);
    let (begun, begins) = mpsc::channel();
    let other = device.clone();
    let graph = std::thread::scope(|scope| {
        let worker = scope.spawn(move || {
            begins.recv().unwrap();
            drop(spare);
            let mut mine = Tensor::from_u32(&other, &[1], &[0]).unwrap();
            advance(&other, &mut mine).unwrap();
            Tensor::from_f32(&other, DType::F32, &[2], &[1.0, 2.0]).unwrap().to_f32(&other).unwrap()
        });
        let recorded = device.capture(|| {
            begun.send(()).unwrap();
            // Time for the other thread to get in the way.
            std::thread::sleep(Duration::from_millis(100));
            advance(&device, &mut counter)
        });
        assert_eq!(worker.join().unwrap(), [1.0, 2.0]);
        recorded.unwrap().unwrap()
    });
    for _ in 0..3 {
        graph.launch().unwrap();
    }
    device.synchronize().unwrap();
    // One advance before the recording, three after it.
    assert_eq!(count(&device, &counter), 4.0);
    let nested = device.capture(|| device.capture(|| Ok(())).map(drop));
    assert!(nested.is_err(), "a recording inside a recording");
    device.synchronize().unwrap();
}

/// Kernels that the driver cannot load are found when the GPU is opened, not at the first launch.
#[test]
fn kernels_that_the_driver_cannot_load_are_an_error_of_opening() {
    if arclet_emu::real_driver() {
        return;
    }
    arclet_emu::load();
    match Cuda::new(0, KernelImages::manifest(arclet_emu::manifest("100"))) {
        Err(e) => {
            assert_eq!(e.exit_code(), 4);
            let message = e.to_string();
            assert!(message.contains("supports CUDA 1") && message.contains("linear"), "{message}");
        }
        Ok(_) => panic!("the emulated GPU is older than compute capability 10.0"),
    }
}
