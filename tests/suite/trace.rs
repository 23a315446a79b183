//! What a trace of launches holds, and what can be done with it.

use arclet::device::Device;
use arclet::device::cuda::Cuda;
use arclet::device::trace::Work;
use arclet::error::Error;
use arclet::flow::sampler::{Sampler, SamplerOptions};
use arclet::flow::schedule::{Schedule, Solver, TimeConvention};
use arclet::nn::norm::Layers;
use arclet::ops::Columns;
use arclet::ops::embed::take_token;
use arclet::ops::linear::{Activation, Operands, Residual, Workspace, linear, workspace_size};
use arclet::ops::solver::advance;
use arclet::tensor::{DType, Tensor};

use crate::engines::{self, count};
use crate::goldens::load;

fn cuda() -> Cuda {
    match engines::cuda() {
        Device::Cuda(cuda) => cuda,
        Device::Cpu(_) => panic!("the engine of the tests is a GPU"),
    }
}

#[test]
fn a_trace_is_what_ran_in_order_and_runs_again() {
    let cuda = cuda();
    let device = Device::Cuda(cuda.clone());
    let (m, n, k) = (3, 64, 32);
    let f16 = |shape: &[usize]| Tensor::zeros(&device, DType::F16, shape).unwrap();
    let (x, weight, bias, mut y) = (f16(&[1, m, k]), f16(&[n, k]), f16(&[n]), f16(&[1, m, n]));
    let mut space = Workspace::new(&device, DType::F16, workspace_size(&device, DType::F16, 1, m, n, k)).unwrap();
    let mut counter = Tensor::from_u32(&device, &[1], &[0]).unwrap();
    let phases = cuda.trace(|| {
        advance(&device, &mut counter)?;
        let (bias, act, residual) = (Some(Columns::Shared(&bias)), Activation::Gelu, Residual::InPlace);
        linear(&device, Operands { bias, act, residual, ..Operands::new(&x, &weight) }, &mut y, None, &mut space)?;
        advance(&device, &mut counter)
    });
    let phases = phases.unwrap();
    let kernels: Vec<&str> = phases.iter().map(|p| p.kernel.as_str()).collect();
    let product = if cuda.hopper() { "linear_hopper_fwd_f16_104x64" } else { "linear_fwd_f16_64x64" };
    assert_eq!(kernels, ["counter_advance", product, "counter_advance"]);
    assert_eq!(
        (phases[0].work, phases[0].grid, phases[0].threads),
        (Work { flops: 0, bytes: 8, weights: 0 }, [1, 1, 1], 1)
    );
    let elements = m * k + n * k + n + 2 * m * n;
    let work = Work { flops: 2 * (m * n * k) as u64, bytes: 2 * elements as u64, weights: 2 * (n * k) as u64 };
    assert_eq!(phases[1].work, work);
    assert!(phases[0].is_like(&phases[2]) && !phases[0].is_like(&phases[1]));
    assert_eq!(count(&device, &counter), 2.0);
    for phase in &phases {
        cuda.relaunch(phase).unwrap();
    }
    assert_eq!(count(&device, &counter), 4.0);
    let again = cuda.trace(|| Ok(())).unwrap();
    assert!(again.is_empty(), "only launches inside count");
}

#[test]
fn a_trace_ends_when_its_work_fails() {
    let cuda = cuda();
    let failed = cuda.trace(|| Err(Error::Runtime("no".into())));
    assert_eq!(failed.unwrap_err().to_string(), "no");
    let nested = cuda.trace(|| cuda.trace(|| Ok(())).map(drop));
    assert!(nested.unwrap_err().to_string().contains("inside another"));
    assert!(cuda.trace(|| Ok(())).unwrap().is_empty());
}

#[test]
fn a_dry_gpu_notes_launches_and_runs_none() {
    arclet_emu::load();
    let cuda = Cuda::dry(0).unwrap();
    let device = Device::Cuda(cuda.clone());
    let x = Tensor::from_f32(&device, DType::F32, &[1, 1, 1], &[7.0]).unwrap();
    let mut y = Tensor::from_f32(&device, DType::F32, &[1, 1], &[3.0]).unwrap();
    let phases = cuda.trace(|| take_token(&device, &x, &mut y)).unwrap();
    assert_eq!(phases.iter().map(|p| p.kernel.as_str()).collect::<Vec<_>>(), ["take_token_fwd_f32"]);
    assert_eq!(y.to_f32(&device).unwrap(), [3.0]);
}

/// How many kernels whose names begin with each of `names` one image in f16 takes, of a model of two blocks.
fn launched<const N: usize>(layers: Layers, names: [&str; N]) -> [usize; N] {
    let cuda = cuda();
    let mut model = load("a1_flow_vit", &Device::Cuda(cuda.clone()), DType::F16);
    model.layers = layers;
    let schedule = Schedule::new(Solver::Euler, 1, TimeConvention::Train).unwrap();
    let options = SamplerOptions { guidance: 1.0, clamp: true };
    let mut sampler = Sampler::with_graphs_of(None, &model, &schedule, 1, options).unwrap();
    sampler.draw_noise(1, 0).unwrap();
    let phases = cuda.trace(|| sampler.run(&[])).unwrap();
    names.map(|name| phases.iter().filter(|p| p.kernel.starts_with(name)).count())
}

#[test]
fn layers_are_launched_as_they_say() {
    let names = ["attention_scores", "attention_softmax", "attention_values", "attention_fwd", "layernorm_fwd"];
    assert_eq!(launched(Layers::Unfused, names), [2, 2, 2, 0, 4]);
    assert_eq!(launched(Layers::Separate, names), [0, 0, 0, 2, 4]);
    assert_eq!(launched(Layers::Fused, names), [0, 0, 0, 2, 0]);
}

#[test]
fn products_stay_off_hopper_tiles_when_told_to() {
    let cuda = cuda();
    let products = || launched(Layers::Fused, ["linear_hopper_fwd", "linear_fwd"]);
    let [hopper, portable] = products();
    assert_eq!(
        (cuda.hopper_tiles(), hopper > 0),
        (cuda.hopper(), cuda.hopper()),
        "on from the beginning, where it can be"
    );
    cuda.set_hopper_tiles(false);
    assert!(!cuda.hopper_tiles());
    assert_eq!(products(), [0, hopper + portable]);
    cuda.set_hopper_tiles(true);
    assert_eq!(products(), [hopper, portable]);
}
