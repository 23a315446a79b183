//! What every operation's backward has to keep.

use arclet::device::Device;
use arclet::device::cpu::Cpu;
use arclet::device::level::Level;
use arclet::tensor::{DType, Tensor};

use crate::common::{cpu, cpu_at, relative_error, rms_error, rounding_cpu};
use crate::engines::{CUDA_DTYPES, cuda, every_mode};

/// What an input is to the operation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Role {
    /// Its gradient is added to, in the wide type.
    Parameter,
    /// Its gradient is written, in the model's type.
    Activation,
    /// The same, for inputs of the wide type (images).
    Image,
}

/// An input of an operation.
pub struct Input {
    pub name: &'static str,
    pub role: Role,
    pub shape: Vec<usize>,
    pub values: Vec<f64>,
}

impl Input {
    pub fn new(name: &'static str, role: Role, shape: &[usize], random: &mut Random) -> Self {
        let values = random.values(shape.iter().product());
        Self { name, role, shape: shape.to_vec(), values }
    }

    fn dtype(&self, dtype: DType) -> DType {
        if self.role == Role::Image { dtype.wide() } else { dtype }
    }

    fn gradient_dtype(&self, dtype: DType) -> DType {
        if self.role == Role::Activation { dtype } else { dtype.wide() }
    }
}

/// Numbers that f16 and bf16 have to round.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 >> 11
    }

    /// From `low` to `high`, both included.
    pub fn size(&mut self, low: usize, high: usize) -> usize {
        low + self.next() as usize % (high - low + 1)
    }

    /// In [-1, 1), exact in f32.
    pub fn values(&mut self, n: usize) -> Vec<f64> {
        (0..n).map(|_| f64::from((self.next() as f64 / (1u64 << 52) as f64 - 1.0) as f32)).collect()
    }
}

/// An operation of some inputs and its backward.
pub struct Case<F, B> {
    pub name: String,
    pub inputs: Vec<Input>,
    /// y of the inputs.
    pub forward: F,
    /// Gradients of the inputs from that of y.
    pub backward: B,
}

/// [`Case`], whatever its closures are.
pub trait Differentiable: Sync {
    fn name(&self) -> &str;
    fn inputs(&self) -> &[Input];
    fn inputs_mut(&mut self) -> &mut [Input];
    fn forward(&self, device: &Device, dtype: DType, inputs: &[Tensor]) -> Tensor;
    fn backward(&self, device: &Device, dtype: DType, inputs: &[Tensor], dy: &Tensor, grads: &mut [Tensor]);
}

impl<F, B> Differentiable for Case<F, B>
where
    F: Fn(&Device, DType, &[Tensor]) -> Tensor + Sync,
    B: Fn(&Device, DType, &[Tensor], &Tensor, &mut [Tensor]) + Sync,
{
    fn name(&self) -> &str {
        &self.name
    }
    fn inputs(&self) -> &[Input] {
        &self.inputs
    }
    fn inputs_mut(&mut self) -> &mut [Input] {
        &mut self.inputs
    }
    fn forward(&self, device: &Device, dtype: DType, inputs: &[Tensor]) -> Tensor {
        (self.forward)(device, dtype, inputs)
    }
    fn backward(&self, device: &Device, dtype: DType, inputs: &[Tensor], dy: &Tensor, grads: &mut [Tensor]) {
        (self.backward)(device, dtype, inputs, dy, grads);
    }
}

fn tensors(case: &dyn Differentiable, device: &Device, dtype: DType, values: &[Vec<f64>]) -> Vec<Tensor> {
    let all = case.inputs().iter().zip(values);
    all.map(|(input, v)| Tensor::from_f64(device, input.dtype(dtype), &input.shape, v).unwrap()).collect()
}

fn given(case: &dyn Differentiable) -> Vec<Vec<f64>> {
    case.inputs().iter().map(|i| i.values.clone()).collect()
}

fn forward(case: &dyn Differentiable, device: &Device, dtype: DType, values: &[Vec<f64>]) -> Tensor {
    let inputs = tensors(case, device, dtype, values);
    device.run(|| case.forward(device, dtype, &inputs))
}

/// Gradients after `times` backward passes: of parameters from 0.25 on, of activations from what must not matter.
fn gradients(case: &dyn Differentiable, device: &Device, dtype: DType, dy: &[f64], times: usize) -> Vec<Vec<f64>> {
    let inputs = tensors(case, device, dtype, &given(case));
    let y = device.run(|| case.forward(device, dtype, &inputs));
    let dy = Tensor::from_f64(device, y.dtype(), y.shape(), dy).unwrap();
    let filled = |input: &Input| {
        let value = if input.role == Role::Parameter { 0.25 } else { f64::NAN };
        Tensor::from_f64(device, input.gradient_dtype(dtype), &input.shape, &vec![value; input.values.len()]).unwrap()
    };
    let mut grads: Vec<Tensor> = case.inputs().iter().map(filled).collect();
    for _ in 0..times {
        device.run(|| case.backward(device, dtype, &inputs, &dy, &mut grads));
    }
    let finish = |(input, grad): (&Input, &Tensor)| {
        let before = if input.role == Role::Parameter { 0.25 } else { 0.0 };
        grad.to_f64(device).unwrap().iter().map(|g| g - before).collect()
    };
    case.inputs().iter().zip(&grads).map(finish).collect()
}

/// max |got - want| / max |want|.
fn worst(got: &[f64], want: &[f64]) -> f64 {
    assert!(got.len() == want.len() && got.iter().all(|v| v.is_finite()), "non-finite values");
    let top = want.iter().fold(0f64, |m, w| m.max(w.abs()));
    let off = got.iter().zip(want).fold(0f64, |m, (g, w)| m.max((g - w).abs()));
    // A gradient that vanishes everywhere (a norm of one channel) leaves nothing to be relative to.
    off / if top < 1e-9 { 1.0 } else { top }
}

/// Central differences of sum(y dy) by every number of every input.
fn differences(case: &dyn Differentiable, device: &Device, dy: &[f64]) -> Vec<Vec<f64>> {
    const STEP: f64 = 1e-5;
    let mut values = given(case);
    let loss = |values: &[Vec<f64>]| -> f64 {
        let y = forward(case, device, DType::F64, values).to_f64(device).unwrap();
        y.iter().zip(dy).map(|(y, d)| y * d).sum()
    };
    let mut all = Vec::new();
    for i in 0..values.len() {
        let mut of_input = Vec::new();
        for e in 0..values[i].len() {
            let at = values[i][e];
            values[i][e] = at + STEP;
            let above = loss(&values);
            values[i][e] = at - STEP;
            let below = loss(&values);
            values[i][e] = at;
            of_input.push((above - below) / (2.0 * STEP));
        }
        all.push(of_input);
    }
    all
}

fn slope_of(case: &dyn Differentiable, device: &Device) -> Vec<f64> {
    Random::new(77).values(forward(case, device, DType::F64, &given(case)).len())
}

/// f64 against finite differences within 1e-6, f32 against f64 within 1e-5, and a second pass adds as much again to the
/// gradients of parameters and changes no other.
pub fn on_cpu(case: &dyn Differentiable) {
    let device = cpu();
    let dy = slope_of(case, &device);
    let exact = gradients(case, &device, DType::F64, &dy, 1);
    let named = |i: usize| format!("{}: gradient of {}", case.name(), case.inputs()[i].name);
    for (i, want) in differences(case, &device, &dy).iter().enumerate() {
        let error = worst(&exact[i], want);
        assert!(error < 1e-6, "{} against finite differences: relative error {error:.2e}", named(i));
    }
    compare_f32(case, &device, &dy, &exact);
}

/// [`on_cpu`] without finite differences, for larger shapes.
pub fn f32_on_cpu(case: &dyn Differentiable) {
    let device = cpu();
    let dy = slope_of(case, &device);
    compare_f32(case, &device, &dy, &gradients(case, &device, DType::F64, &dy, 1));
}

fn compare_f32(case: &dyn Differentiable, device: &Device, dy: &[f64], exact: &[Vec<f64>]) {
    let [once, twice] = [1, 2].map(|times| gradients(case, device, DType::F32, dy, times));
    for (i, input) in case.inputs().iter().enumerate() {
        let what = format!("{}: gradient of {}", case.name(), input.name);
        let error = worst(&once[i], &exact[i]);
        assert!(error < 1e-5, "{what} in f32: relative error {error:.2e}");
        let factor = if input.role == Role::Parameter { 2.0 } else { 1.0 };
        let doubled: Vec<f64> = exact[i].iter().map(|g| g * factor).collect();
        let error = worst(&twice[i], &doubled);
        assert!(error < 1e-5, "{what} after two passes: relative error {error:.2e}");
    }
}

/// The output and the gradients from `dy` on the CPU are `want` (first the output, then one an input): in f64 within 3e-7, in f32
/// within 1e-5.
pub fn agrees_with(case: &dyn Differentiable, dy: &[f64], want: &[Vec<f64>]) {
    let device = cpu();
    for (dtype, bound) in [(DType::F64, 3e-7), (DType::F32, 1e-5)] {
        let mut got = vec![forward(case, &device, dtype, &given(case)).to_f64(&device).unwrap()];
        got.extend(gradients(case, &device, dtype, dy, 1));
        assert_eq!(got.len(), want.len(), "{}", case.name());
        for (i, (got, want)) in got.iter().zip(want).enumerate() {
            let what = if i == 0 { "output" } else { case.inputs()[i - 1].name };
            let error = worst(got, want);
            assert!(error < bound, "{}: {what} in {dtype}: relative error {error:.2e}", case.name());
        }
    }
}

/// The GPU against the CPU in f64 by the rules of `engines::check`: forward and every gradient, after two passes.
pub fn on_gpu(case: &dyn Differentiable) {
    let (cpu, cuda) = (rounding_cpu(), cuda());
    let dy = slope_of(case, &cpu);
    let narrow = |v: &[f64]| v.iter().map(|&v| v as f32).collect::<Vec<f32>>();
    let all = |device: &Device, dtype: DType| -> Vec<Vec<f32>> {
        let y = forward(case, device, dtype, &given(case)).to_f32(device).unwrap();
        let grads = gradients(case, device, dtype, &dy, 2);
        std::iter::once(y).chain(grads.iter().map(|g| narrow(g))).collect()
    };
    let want = all(&cpu, DType::F64);
    for dtype in CUDA_DTYPES {
        let what = format!("{} in {dtype}", case.name());
        let joined = every_mode(&what, || all(&cuda, dtype).concat());
        let rounded = all(&cpu, dtype);
        let mut at = 0;
        for (i, want) in want.iter().enumerate() {
            let (got, yardstick) = (&joined[at..at + want.len()], &rounded[i]);
            at += want.len();
            let what = if i == 0 { what.clone() } else { format!("{what}, gradient of {}", case.inputs()[i - 1].name) };
            if dtype == DType::F32 {
                let error = relative_error(got, want);
                assert!(error < 1e-5, "{what}: relative error {error:.2e}");
            } else {
                let (error, allowed) = (rms_error(got, want), 2.0 * rms_error(yardstick, want));
                assert!(error <= allowed, "{what}: RMS error {error:.2e}, {allowed:.2e} allowed");
            }
        }
    }
}

/// At every level of instructions: f32 against f64 within 1e-5, and bf16 within twice the error of the loops that round.
pub fn at_every_level(case: &dyn Differentiable) {
    let (portable, rounding) = (cpu_at(Level::Portable), rounding_cpu());
    let dy = slope_of(case, &portable);
    let narrow = |v: &[f64]| v.iter().map(|&v| v as f32).collect::<Vec<f32>>();
    let exact = gradients(case, &portable, DType::F64, &dy, 1);
    let rounded = gradients(case, &rounding, DType::BF16, &dy, 1);
    for level in Level::ALL {
        let [f32s, bf16s] = [DType::F32, DType::BF16].map(|dtype| gradients(case, &cpu_at(level), dtype, &dy, 1));
        for (i, want) in exact.iter().enumerate() {
            let what = format!("{} at {}: gradient of {}", case.name(), level.name(), case.inputs()[i].name);
            let error = worst(&f32s[i], want);
            assert!(error < 1e-5, "{what} in f32: relative error {error:.2e}");
            let [got, yardstick, want] = [&bf16s[i], &rounded[i], want].map(|v| narrow(v));
            let (error, allowed) = (rms_error(&got, &want), 2.0 * rms_error(&yardstick, &want));
            assert!(error <= allowed, "{what} in bf16: RMS error {error:.2e}, {allowed:.2e} allowed");
        }
    }
}

/// Gradients in f32 have the same bits with one thread and with three.
pub fn same_bits_on_any_threads(case: &dyn Differentiable) {
    let on = |threads: usize| {
        let device = Device::Cpu(Cpu::new(threads).unwrap());
        let dy = slope_of(case, &device);
        gradients(case, &device, DType::F32, &dy, 1).concat()
    };
    assert!(on(1) == on(3), "{}: the bits depend on threads", case.name());
}

/// Gradients of the activations of the first image have the same bits alone and in front of others. `case` of one and of
/// several images; all activations begin with a dimension of images.
pub fn same_bits_in_any_batch(alone: &mut dyn Differentiable, batch: &dyn Differentiable) {
    let exact = cpu();
    let dy = slope_of(batch, &exact);
    for (mine, all) in alone.inputs_mut().iter_mut().zip(batch.inputs()) {
        let len = mine.values.len();
        mine.values.copy_from_slice(&all.values[..len]);
    }
    let alone = &*alone;
    let dy_alone = &dy[..forward(alone, &exact, DType::F64, &given(alone)).len()];
    for device in [exact, cuda()] {
        let want = gradients(alone, &device, DType::F32, dy_alone, 1);
        let got = gradients(batch, &device, DType::F32, &dy, 1);
        for (input, (want, got)) in alone.inputs().iter().zip(want.iter().zip(&got)) {
            let same = input.role == Role::Parameter || got[..want.len()] == want[..];
            assert!(same, "{} on {}: {} depends on the batch", batch.name(), device.name(), input.name);
        }
    }
}
