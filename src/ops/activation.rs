//! y = residual + gate * act(a), what follows a product where training keeps the product itself, and its backward.

use rayon::prelude::*;

use super::linear::{Activation, gelu, gelu_tanh, relu, silu};
use super::simd::vectorized;
use super::{SpecLayout, expect, launch_elementwise, moves, round_on, spec, to_i32, to_u32, with_real};
use crate::device::Device;
use crate::device::cpu::Cpu;
use crate::device::cuda::Launch;
use crate::error::Result;
use crate::tensor::{Real, Tensor};

spec! {
    /// Geometry of `activation_fwd_*`, `activation_bwd_*` and `activation_gate_bwd_*`.
    ActivationSpec { images: i32, rows_per_image: i32, dim: i32, act: i32 }
}
pub(super) const LAYOUT: SpecLayout = ActivationSpec::LAYOUT;

impl ActivationSpec {
    fn new(a: &Tensor, act: Activation) -> Result<Self> {
        let (images, dim) = (a.dim(0), a.last_dim());
        let act = act.code();
        Ok(Self { images: to_i32(images)?, rows_per_image: to_i32(a.len() / (images * dim))?, dim: to_i32(dim)?, act })
    }
}

/// y [B, .., N] = residual [B, .., N] + gate [B, N] * act(a [B, .., N]); no residual is 0, no gate 1.
///
/// # Errors
/// [`crate::error::Error::Runtime`] if types or shapes do not fit.
pub fn activate(
    device: &Device,
    a: &Tensor,
    act: Activation,
    gate: Option<&Tensor>,
    residual: Option<&Tensor>,
    y: &mut Tensor,
) -> Result<()> {
    let (dtype, images, n) = (a.dtype(), a.dim(0), a.last_dim());
    expect("activation output", y, dtype, a.shape())?;
    gate.map_or(Ok(()), |gate| expect("activation gate", gate, dtype, &[images, n]))?;
    residual.map_or(Ok(()), |residual| expect("activation residual", residual, dtype, a.shape()))?;
    if a.is_empty() {
        return Ok(());
    }
    match device {
        Device::Cpu(cpu) => {
            with_real!(dtype, T => {
                let rows = a.len() / (images * n);
                let (a, gate) = (a.host::<T>()?, gate.map(Tensor::host::<T>).transpose()?);
                let residual = residual.map(Tensor::host::<T>).transpose()?;
                y.host_mut::<T>()?.par_chunks_mut(n).zip(a.par_chunks(n)).enumerate().with_min_len(8).for_each(
                    |(row, (y, a))| {
                        let gate = gate.map(|gate| &gate[row / rows * n..][..n]);
                        finish(y, a, act, gate, residual.map(|r| &r[row * n..][..n]));
                    },
                );
            });
            round_on(cpu, y)
        }
        Device::Cuda(cuda) => {
            let spec = ActivationSpec::new(a, act)?;
            let optional = |t: Option<&Tensor>| t.map_or(Ok(0), |t| t.address(0));
            let pointers = [a.address(0)?, optional(gate)?, optional(residual)?, y.address(0)?];
            let kernel = format!("activation_fwd_{dtype}");
            let bytes = a.bytes() + y.bytes() + [gate, residual].iter().flatten().map(|t| t.bytes()).sum::<usize>();
            launch_elementwise(cuda, ("activation", kernel), a.len(), &pointers, bytemuck::bytes_of(&spec), bytes)
        }
    }
}

/// Backward of [`activate`]: da [B, .., N] = gate * act'(a) * dy, and dgate [B, N] = the sum over an image's rows of
/// act(a) * dy. The gradient of the residual is dy itself.
///
/// # Errors
/// [`crate::error::Error::Runtime`] if types or shapes do not fit.
pub fn activate_backward(
    device: &Device,
    a: &Tensor,
    act: Activation,
    gate: Option<&Tensor>,
    dy: &Tensor,
    da: &mut Tensor,
    dgate: Option<&mut Tensor>,
) -> Result<()> {
    let (dtype, images, n) = (a.dtype(), a.dim(0), a.last_dim());
    expect("activation dy", dy, dtype, a.shape())?;
    expect("activation da", da, dtype, a.shape())?;
    gate.map_or(Ok(()), |gate| expect("activation gate", gate, dtype, &[images, n]))?;
    dgate.as_ref().map_or(Ok(()), |dgate| expect("activation dgate", dgate, dtype, &[images, n]))?;
    if a.is_empty() {
        return Ok(());
    }
    match device {
        Device::Cpu(cpu) => with_real!(dtype, T => cpu_backward::<T>(cpu, a, act, gate, dy, da, dgate)),
        Device::Cuda(cuda) => {
            let spec = ActivationSpec::new(a, act)?;
            let gate_address = gate.map_or(Ok(0), |t| t.address(0))?;
            let pointers = [a.address(0)?, gate_address, dy.address(0)?, da.address(0)?];
            let kernel = format!("activation_bwd_{dtype}");
            let bytes = 3 * a.bytes() + gate.map_or(0, Tensor::bytes);
            launch_elementwise(cuda, ("activation", kernel), a.len(), &pointers, bytemuck::bytes_of(&spec), bytes)?;
            let Some(dgate) = dgate else { return Ok(()) };
            cuda.launch(&Launch {
                module: "activation",
                kernel: format!("activation_gate_bwd_{dtype}"),
                grid: [to_u32(n.div_ceil(32))?, to_u32(images)?, 1],
                threads: 256,
                pointers: &[a.address(0)?, dy.address(0)?, dgate.address(0)?],
                spec: bytemuck::bytes_of(&spec),
                work: moves(2 * a.bytes() + dgate.bytes()),
                ..Launch::default()
            })
        }
    }
}

fn cpu_backward<T: Real>(
    cpu: &Cpu,
    a: &Tensor,
    act: Activation,
    gate: Option<&Tensor>,
    dy: &Tensor,
    da: &mut Tensor,
    dgate: Option<&mut Tensor>,
) -> Result<()> {
    let (n, rows) = (a.last_dim(), a.len() / (a.dim(0) * a.last_dim()));
    let (a, dy) = (a.host::<T>()?, dy.host::<T>()?);
    let gate = gate.map(Tensor::host::<T>).transpose()?;
    let all = da.host_mut::<T>()?.par_chunks_mut(n).zip(a.par_chunks(n).zip(dy.par_chunks(n)));
    all.enumerate().with_min_len(8).for_each(|(row, (da, (a, dy)))| {
        differentiate(da, a, act, gate.map(|gate| &gate[row / rows * n..][..n]), dy);
    });
    round_on(cpu, da)?;
    let Some(dgate) = dgate else { return Ok(()) };
    let images = dgate.host_mut::<T>()?.par_chunks_mut(n).zip(a.par_chunks(rows * n).zip(dy.par_chunks(rows * n)));
    images.for_each(|(dgate, (a, dy))| {
        dgate.fill(T::default());
        a.chunks_exact(n).zip(dy.chunks_exact(n)).for_each(|(a, dy)| gather(dgate, a, act, dy));
    });
    round_on(cpu, dgate)
}

#[inline(always)]
fn apply<T: Real>(act: Activation, a: T) -> T {
    match act {
        Activation::None => a,
        Activation::Gelu => gelu(a),
        Activation::GeluTanh => gelu_tanh(a),
        Activation::Silu => silu(a),
        Activation::Relu => relu(a),
    }
}

vectorized! {
    /// One row of [`activate`].
    fn finish(y: &mut [T], a: &[T], act: Activation, gate: Option<&[T]>, residual: Option<&[T]>) {
        // The match outside the loops, so that they become vector instructions.
        match act {
            Activation::None => y.copy_from_slice(a),
            Activation::Gelu => y.iter_mut().zip(a).for_each(|(y, &a)| *y = gelu(a)),
            Activation::GeluTanh => y.iter_mut().zip(a).for_each(|(y, &a)| *y = gelu_tanh(a)),
            Activation::Silu => y.iter_mut().zip(a).for_each(|(y, &a)| *y = silu(a)),
            Activation::Relu => y.iter_mut().zip(a).for_each(|(y, &a)| *y = relu(a)),
        }
        if let Some(gate) = gate {
            y.iter_mut().zip(gate).for_each(|(y, &g)| *y = *y * g);
        }
        if let Some(residual) = residual {
            y.iter_mut().zip(residual).for_each(|(y, &r)| *y += r);
        }
    }
}

vectorized! {
    /// One row of da.
    fn differentiate(da: &mut [T], a: &[T], act: Activation, gate: Option<&[T]>, dy: &[T]) {
        let all = da.iter_mut().zip(a.iter().zip(dy));
        match act {
            Activation::None => da.copy_from_slice(dy),
            Activation::Gelu => all.for_each(|(da, (&a, &dy))| *da = gelu_slope(a) * dy),
            Activation::GeluTanh => all.for_each(|(da, (&a, &dy))| *da = gelu_tanh_slope(a) * dy),
            Activation::Silu => all.for_each(|(da, (&a, &dy))| *da = silu_slope(a) * dy),
            Activation::Relu => all.for_each(|(da, (&a, &dy))| *da = if a > T::default() { dy } else { T::default() }),
        }
        if let Some(gate) = gate {
            da.iter_mut().zip(gate).for_each(|(da, &g)| *da = *da * g);
        }
    }
}

vectorized! {
    /// dgate += act(a) * dy over one row.
    fn gather(dgate: &mut [T], a: &[T], act: Activation, dy: &[T]) {
        for ((dgate, &a), &dy) in dgate.iter_mut().zip(a).zip(dy) {
            *dgate = apply(act, a).mul_add(dy, *dgate);
        }
    }
}

/// (x Phi(x))' = Phi(x) + x phi(x).
#[inline(always)]
pub(super) fn gelu_slope<T: Real>(x: T) -> T {
    let (one, half) = (T::from_f64(1.0), T::from_f64(0.5));
    let inverse_root_two_pi = T::from_f64(0.398_942_280_401_432_7);
    let below = half * (one + (x * T::from_f64(std::f64::consts::FRAC_1_SQRT_2)).erf());
    let density = inverse_root_two_pi * (-half * x * x).exp();
    x.mul_add(density, below)
}

/// Of x (1 + tanh u) / 2 with u = sqrt(2 / pi) (x + 0.044715 x^3).
#[inline(always)]
fn gelu_tanh_slope<T: Real>(x: T) -> T {
    let (one, half) = (T::from_f64(1.0), T::from_f64(0.5));
    let (root, cubic) = (T::from_f64(0.797_884_560_802_865_4), T::from_f64(0.044715));
    let t = (root * (x + cubic * x * x * x)).tanh();
    let inner = root * (one + T::from_f64(3.0) * cubic * x * x);
    half * (one + t) + half * x * (one - t * t) * inner
}

/// (x s(x))' = s (1 + x (1 - s)), s the logistic function.
#[inline(always)]
pub(super) fn silu_slope<T: Real>(x: T) -> T {
    let one = T::from_f64(1.0);
    let s = one / (one + (-x).exp());
    s * (one + x * (one - s))
}
