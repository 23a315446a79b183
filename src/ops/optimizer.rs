//! What follows the backward pass: the norm of all gradients, a step of Adam or AdamW on master weights, their moving
//! average, and the copy of the weights in the compute type.
//!
//! Gradients, master weights, moments and averages are of the wide type (f32, in tests f64). What changes from step to step
//! stands in a small tensor ([`StepValues`]) and what the gradients allow in another ([`GradReport`]), both on the device:
//! a training step captured once is replayed with other values, and skipped on the device where a gradient is not finite.
//! Nothing here depends on the number of threads: every sum has one order, and there are no atomics.

use rayon::prelude::*;

use super::reduce::lanes;
use super::simd::vectorized;
use super::{SpecLayout, expect, launch_elementwise, moves, spec, to_i32, to_u32, with_real};
use crate::device::Device;
use crate::device::cuda::{Cuda, Launch};
use crate::error::{Error, Result};
use crate::tensor::{DType, Real, Tensor};

spec! {
    /// Geometry of `grad_squares_f32`.
    SquaresSpec { elements: i32, first: i32 }
}
spec! {
    /// Geometry of `grad_report_f32`.
    ReportSpec { partials: i32 }
}
spec! {
    /// Geometry and constants of `adam_f32`.
    AdamSpec { elements: i32, decoupled: i32, rest1: f32, rest2: f32, eps: f32, decay: f32 }
}
spec! {
    /// Geometry of `ema_f32`, `cast_*` and `fill_zero_f32`.
    ElementsSpec { elements: i32 }
}
pub(super) const LAYOUTS: [SpecLayout; 4] =
    [SquaresSpec::LAYOUT, ReportSpec::LAYOUT, AdamSpec::LAYOUT, ElementsSpec::LAYOUT];

/// Elements whose squares are summed to one partial sum.
const CHUNK: usize = 8192;

/// Elements that one task of the CPU updates.
const TASK: usize = 4096;

/// Elements of the tensor of [`StepValues`], of the wide type.
pub const VALUES: usize = 6;

/// Elements of the tensor that [`grad_report`] writes, of the wide type: norm, 1 if it is finite, factor of each gradient.
pub const REPORT: usize = 3;

/// What changes from step to step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepValues {
    /// Learning rate, of the decoupled decay.
    pub lr: f64,
    /// Learning rate over 1 - beta1^t, t the number of this step from 1 on.
    pub step_size: f64,
    /// The root of 1 - beta2^t.
    pub root2: f64,
    /// What gradients are multiplied by before anything else: 1 over the loss scale.
    pub grad_scale: f64,
    /// Norm that gradients are clipped to; infinite for no clipping.
    pub max_norm: f64,
    /// The part of the weights in the new moving average, 1 - decay: 0 leaves the average, 1 copies the weights.
    pub ema_weight: f64,
}

impl StepValues {
    /// Writes the values to `to` [[`VALUES`]].
    ///
    /// # Errors
    /// [`Error::Runtime`] for another tensor; the driver's, on a GPU.
    pub fn write(&self, device: &Device, to: &mut Tensor) -> Result<()> {
        expect("values of a step", to, to.dtype().wide(), &[VALUES])?;
        let rows = [self.lr, self.step_size, self.root2, self.grad_scale, self.max_norm, self.ema_weight];
        if to.dtype() == DType::F64 {
            to.host_mut::<f64>()?.copy_from_slice(&rows);
            return Ok(());
        }
        to.write_f32(device, &rows.map(|v| v as f32))
    }
}

/// What [`grad_report`] found.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GradReport {
    /// Norm of all gradients together, without the loss scale and before clipping.
    pub norm: f64,
    /// Whether the step was made: the norm is finite.
    pub finite: bool,
}

impl GradReport {
    /// Reads `report` back; waits for the device.
    ///
    /// # Errors
    /// The driver's, on a GPU.
    pub fn read(device: &Device, report: &Tensor) -> Result<Self> {
        let values = report.to_f64(device)?;
        Ok(Self { norm: values[0], finite: values[1] != 0.0 })
    }
}

/// Elements of the scratch of [`grad_report`] for gradients of these lengths.
pub fn report_scratch_len(lens: impl IntoIterator<Item = usize>) -> usize {
    lens.into_iter().map(|n| n.div_ceil(CHUNK)).sum()
}

/// report [[`REPORT`]] "=" the norm of `grads` times the scale in `values`, 1 if it is finite, and the factor that
/// [`adam`] multiplies gradients by: scale min(1, max_norm / (norm + 1e-6)), as `torch.nn.utils.clip_grad_norm_`.
///
/// The squares are summed in the wide type: in f32 a norm above 1.8e19 counts as infinite. `scratch` has
/// [`report_scratch_len`] elements.
///
/// # Errors
/// [`Error::Runtime`] if types or shapes do not fit.
pub fn grad_report(
    device: &Device,
    grads: &[&Tensor],
    values: &Tensor,
    scratch: &mut Tensor,
    report: &mut Tensor,
) -> Result<()> {
    let wide = values.dtype();
    let partials = report_scratch_len(grads.iter().map(|g| g.len()));
    expect("values of a step", values, wide.wide(), &[VALUES])?;
    expect("scratch of the norm", scratch, wide, &[partials])?;
    expect("report of the gradients", report, wide, &[REPORT])?;
    for grad in grads {
        expect("gradient", grad, wide, grad.shape())?;
    }
    match device {
        Device::Cpu(_) => with_real!(wide, T => {
            let grads = grads.iter().map(|g| g.host::<T>()).collect::<Result<Vec<_>>>()?;
            let chunks: Vec<&[T]> = grads.iter().flat_map(|g| g.chunks(CHUNK)).collect();
            let [_, _, _, scale, max_norm, _] = numbers::<T, VALUES>(values)?;
            let partials = scratch.host_mut::<T>()?;
            let sums = partials.par_iter_mut().zip(chunks);
            sums.for_each(|(to, grad)| squares(std::slice::from_mut(to), grad, scale));
            // In f64 the last sum adds no error to those of the chunks.
            let norm = T::from_f64(partials.iter().map(|p| p.to_f64()).sum::<f64>().sqrt());
            let one = T::from_f64(1.0);
            let clip = max_norm / (norm + T::from_f64(1e-6));
            let finite = if norm.to_f64().is_finite() { one } else { T::default() };
            let clip = if clip < one { clip } else { one };
            report.host_mut::<T>()?.copy_from_slice(&[norm, finite, scale * clip]);
            Ok(())
        }),
        Device::Cuda(cuda) => {
            let (values, scratch) = (values.address(0)?, scratch.address(0)?);
            let mut first = 0;
            for grad in grads.iter().filter(|g| !g.is_empty()) {
                let (elements, blocks) = (grad.len(), grad.len().div_ceil(CHUNK));
                let spec = SquaresSpec { elements: to_i32(elements)?, first: to_i32(first)? };
                let pointers = [grad.address(0)?, values, scratch];
                launch(cuda, "grad_squares_f32", blocks, &pointers, bytemuck::bytes_of(&spec), grad.bytes())?;
                first += blocks;
            }
            let (spec, pointers) = (ReportSpec { partials: to_i32(partials)? }, [scratch, values, report.address(0)?]);
            launch(cuda, "grad_report_f32", 1, &pointers, bytemuck::bytes_of(&spec), partials * 4)
        }
    }
}

/// Constants of Adam and AdamW for one parameter.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamRule {
    /// Decay of the mean of gradients.
    pub beta1: f64,
    /// Decay of the mean of their squares.
    pub beta2: f64,
    /// Added to the root of the mean of squares.
    pub eps: f64,
    /// Weight decay.
    pub weight_decay: f64,
    /// Whether the decay shrinks the weights (AdamW) or is added to the gradient (Adam).
    pub decoupled: bool,
}

impl AdamRule {
    /// `torch.optim.Adam`'s: betas 0.9 and 0.999, eps 1e-8, no decay.
    pub const ADAM: Self = Self { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.0, decoupled: false };
    /// `torch.optim.AdamW`'s: the same, decoupled decay of 0.01.
    pub const ADAMW: Self = Self { weight_decay: 0.01, decoupled: true, ..Self::ADAM };
}

/// One step of Adam (Kingma & Ba 2015) or AdamW (Loshchilov & Hutter 2019) as `torch.optim`'s, on one parameter of any
/// shape: `weight` and its moments `mean` and `square` are updated where `report` says that the gradients are finite.
///
/// g = factor grad; AdamW: w -= lr decay w; Adam: g += decay w; mean += (1 - beta1) (g - mean);
/// square += (1 - beta2) (g^2 - square); w -= step_size mean / (sqrt(square) / root2 + eps).
///
/// # Errors
/// [`Error::Runtime`] if types or shapes do not fit.
pub fn adam(
    device: &Device,
    rule: AdamRule,
    values: &Tensor,
    report: &Tensor,
    weight: &mut Tensor,
    grad: &Tensor,
    [mean, square]: [&mut Tensor; 2],
) -> Result<()> {
    let wide = check_step(values, report)?;
    for (what, tensor) in [("weight", &*weight), ("mean of gradients", &*mean), ("mean of squares", &*square)] {
        expect(what, tensor, wide, grad.shape())?;
    }
    expect("gradient", grad, wide, grad.shape())?;
    match device {
        Device::Cpu(_) => with_real!(wide, T => {
            let [_, finite, factor] = numbers::<T, REPORT>(report)?;
            if finite == T::default() {
                return Ok(());
            }
            let [lr, step_size, root2, ..] = numbers::<T, VALUES>(values)?;
            let decay = T::from_f64(rule.weight_decay);
            let zero = T::default();
            let (shrink, add) = if rule.decoupled { (lr * decay, zero) } else { (zero, decay) };
            let (rest1, rest2) = (T::from_f64(1.0 - rule.beta1), T::from_f64(1.0 - rule.beta2));
            let eps = T::from_f64(rule.eps);
            let c = Coefficients { factor, shrink, add, rest1, rest2, eps, step_size, root2 };
            let moments = mean.host_mut::<T>()?.par_chunks_mut(TASK).zip(square.host_mut::<T>()?.par_chunks_mut(TASK));
            let weights = weight.host_mut::<T>()?.par_chunks_mut(TASK).zip(grad.host::<T>()?.par_chunks(TASK));
            weights.zip(moments).for_each(|((w, g), (m, v))| update(w, g, m, v, &c));
            Ok(())
        }),
        Device::Cuda(cuda) => {
            let spec = AdamSpec {
                elements: to_i32(grad.len())?,
                decoupled: rule.decoupled as i32,
                rest1: (1.0 - rule.beta1) as f32,
                rest2: (1.0 - rule.beta2) as f32,
                eps: rule.eps as f32,
                decay: rule.weight_decay as f32,
            };
            let [w, g, m, v] = [&*weight, grad, &*mean, &*square].map(|t| t.address(0));
            let pointers = [w?, g?, m?, v?, values.address(0)?, report.address(0)?];
            let bytes = 7 * grad.bytes();
            launch(cuda, "adam_f32", blocks_of_fours(grad.len()), &pointers, bytemuck::bytes_of(&spec), bytes)
        }
    }
}

/// average += ema_weight (weight - average), with the `ema_weight` of `values`, where `report` says that the step was made.
///
/// # Errors
/// [`Error::Runtime`] if types or shapes do not fit.
pub fn ema(device: &Device, values: &Tensor, report: &Tensor, weight: &Tensor, average: &mut Tensor) -> Result<()> {
    let wide = check_step(values, report)?;
    expect("weight", weight, wide, weight.shape())?;
    expect("average", average, wide, weight.shape())?;
    match device {
        Device::Cpu(_) => with_real!(wide, T => {
            let ([_, finite, _], [.., part]) = (numbers::<T, REPORT>(report)?, numbers::<T, VALUES>(values)?);
            if finite != T::default() {
                let pairs = average.host_mut::<T>()?.par_chunks_mut(TASK).zip(weight.host::<T>()?.par_chunks(TASK));
                pairs.for_each(|(average, weight)| lerp(average, weight, part));
            }
            Ok(())
        }),
        Device::Cuda(cuda) => {
            let spec = ElementsSpec { elements: to_i32(weight.len())? };
            let pointers = [weight.address(0)?, average.address(0)?, values.address(0)?, report.address(0)?];
            let bytes = 3 * weight.bytes();
            launch(cuda, "ema_f32", blocks_of_fours(weight.len()), &pointers, bytemuck::bytes_of(&spec), bytes)
        }
    }
}

/// to "=" `master` (wide type) rounded to the type of `to`, of the same shape: f16, bf16, or the wide type itself.
///
/// # Errors
/// [`Error::Runtime`] if types or shapes do not fit, or `to` is packed for the products of a CPU.
pub fn cast(device: &Device, master: &Tensor, to: &mut Tensor) -> Result<()> {
    let dtype = to.dtype();
    expect("master weight", master, dtype.wide(), to.shape())?;
    match device {
        Device::Cpu(_) => with_real!(dtype, T => {
            let pairs = to.host_mut::<T>()?.par_chunks_mut(TASK).zip(master.host::<T>()?.par_chunks(TASK));
            pairs.for_each(|(to, from)| to.copy_from_slice(from));
            super::round(to)
        }),
        Device::Cuda(cuda) => {
            let spec = ElementsSpec { elements: to_i32(to.len())? };
            let (pointers, bytes) = ([master.address(0)?, to.address(0)?], master.bytes() + to.bytes());
            let kernel = ("optimizer", format!("cast_{dtype}"));
            launch_elementwise(cuda, kernel, to.len(), &pointers, bytemuck::bytes_of(&spec), bytes)
        }
    }
}

/// x "=" 0, of the wide type: gradients before the first backward pass that adds to them.
///
/// # Errors
/// [`Error::Runtime`] for another type.
pub fn fill_zero(device: &Device, x: &mut Tensor) -> Result<()> {
    expect("what is set to zero", x, x.dtype().wide(), x.shape())?;
    match device {
        Device::Cpu(_) => with_real!(x.dtype(), T => {
            x.host_mut::<T>()?.par_chunks_mut(TASK).for_each(|x| x.fill(T::default()));
            Ok(())
        }),
        Device::Cuda(cuda) => {
            let spec = ElementsSpec { elements: to_i32(x.len())? };
            let kernel = ("optimizer", "fill_zero_f32".to_string());
            launch_elementwise(cuda, kernel, x.len(), &[x.address(0)?], bytemuck::bytes_of(&spec), x.bytes())
        }
    }
}

/// The wide type of a step, once values and report have it and their shapes.
fn check_step(values: &Tensor, report: &Tensor) -> Result<DType> {
    let wide = values.dtype().wide();
    expect("values of a step", values, wide, &[VALUES])?;
    expect("report of the gradients", report, wide, &[REPORT])?;
    Ok(wide)
}

fn numbers<T: Real, const N: usize>(tensor: &Tensor) -> Result<[T; N]> {
    let values = tensor.host::<T>()?;
    values.try_into().map_err(|_| Error::Runtime(format!("{} numbers found, {N} expected", values.len())))
}

/// Blocks of 256 threads for four elements a thread.
fn blocks_of_fours(elements: usize) -> usize {
    elements.div_ceil(4).div_ceil(256)
}

fn launch(cuda: &Cuda, kernel: &str, blocks: usize, pointers: &[u64], spec: &[u8], bytes: usize) -> Result<()> {
    cuda.launch(&Launch {
        module: "optimizer",
        kernel: kernel.into(),
        grid: [to_u32(blocks)?, 1, 1],
        threads: 256,
        pointers,
        spec,
        work: moves(bytes),
        ..Launch::default()
    })
}

/// What [`update`] computes with.
struct Coefficients<T> {
    factor: T,
    /// lr decay, where it is decoupled.
    shrink: T,
    /// decay, where it is added to the gradient.
    add: T,
    rest1: T,
    rest2: T,
    eps: T,
    step_size: T,
    root2: T,
}

vectorized! {
    /// to[0] = the sum of (scale grad)^2.
    fn squares(to: &mut [T], grad: &[T], scale: T) {
        let step = |acc: T, [g]: [T; 1]| (g * scale).mul_add(g * scale, acc);
        to[0] = lanes([grad], T::default(), step, |a, b| a + b);
    }
}

vectorized! {
    /// A step of [`adam`] on consecutive elements, operation by operation as the kernel.
    fn update(w: &mut [T], g: &[T], m: &mut [T], v: &mut [T], c: &Coefficients<T>) {
        let n = w.len();
        let (g, m, v) = (&g[..n], &mut m[..n], &mut v[..n]);
        for i in 0..n {
            let d = c.add.mul_add(w[i], g[i] * c.factor);
            let weight = (-c.shrink).mul_add(w[i], w[i]);
            m[i] = c.rest1.mul_add(d - m[i], m[i]);
            v[i] = c.rest2.mul_add(d * d - v[i], v[i]);
            let root = v[i].sqrt() / c.root2 + c.eps;
            w[i] = (-c.step_size).mul_add(m[i] / root, weight);
        }
    }
}

vectorized! {
    /// average + part (weight - average), from the nearer end as `torch.lerp`, so that 0 and 1 are exact.
    fn lerp(average: &mut [T], weight: &[T], part: T) {
        let weight = &weight[..average.len()];
        let rest = T::from_f64(1.0) - part;
        let near = part < T::from_f64(0.5);
        for i in 0..average.len() {
            let d = weight[i] - average[i];
            average[i] = if near { part.mul_add(d, average[i]) } else { (-rest).mul_add(d, weight[i]) };
        }
    }
}
