//! One update of an explicit solver, fused with classifier-free guidance and the last clamp. The coefficients of every
//! update stand in a table on the device; a counter there picks the row, so that captured work can be replayed.

use rayon::prelude::*;

use super::{SpecLayout, expect, launch_elementwise, moves, shape_error, spec, to_i32, with_real};
use crate::device::Device;
use crate::device::cuda::Launch;
use crate::error::{Error, Result};
use crate::tensor::{DType, Real, Tensor};

/// One row of the table: x <- from + v_coef v + prev_coef prev.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct SolverStep {
    /// Factor of the velocity just evaluated.
    pub v_coef: f32,
    /// Factor of the velocity saved before.
    pub prev_coef: f32,
    /// [`FROM_BASE`], [`SAVE_BASE`], [`SAVE_PREV`], [`LAST`].
    pub flags: u32,
    /// Zero.
    pub reserved: u32,
}

/// The update starts from the saved state, not from x.
pub const FROM_BASE: u32 = 1;
/// x is saved before the update.
pub const SAVE_BASE: u32 = 2;
/// The guided velocity is saved.
pub const SAVE_PREV: u32 = 4;
/// The last update of a trajectory: the clamp follows.
pub const LAST: u32 = 8;

spec! {
    /// Geometry of `solver_step_fwd_*`.
    SolverSpec { elements: i32, guided: i32, guidance: f32, clamp: i32, lo: f32, hi: f32 }
}
pub(super) const LAYOUTS: [SpecLayout; 2] = [
    SolverSpec::LAYOUT,
    SpecLayout {
        name: "SolverStep",
        size: size_of::<SolverStep>(),
        fields: &[
            ("v_coef", std::mem::offset_of!(SolverStep, v_coef)),
            ("prev_coef", std::mem::offset_of!(SolverStep, prev_coef)),
            ("flags", std::mem::offset_of!(SolverStep, flags)),
            ("reserved", std::mem::offset_of!(SolverStep, reserved)),
        ],
    },
];

/// State of the solver: three tensors [B, C, H, W], f32 whatever the model's type (f64 with an f64 model).
pub struct SolverState {
    /// The images on their way from noise to data.
    pub x: Tensor,
    /// x as it was when a multi-stage step began.
    pub base: Tensor,
    /// The velocity of an earlier evaluation.
    pub prev: Tensor,
}

/// Constants of a run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SolverOptions {
    /// Guidance scale g: v = u + g (c - u), where the batch holds B conditional images c and then B unconditional u.
    /// `None`: the batch holds B images.
    pub guidance: Option<f32>,
    /// Range that the final x is clamped to.
    pub clamp: Option<(f32, f32)>,
}

/// Updates the state by the velocity v [B or 2B, C, H, W], by row `counter` of the table [E, 4] of [`SolverStep`]s.
///
/// # Errors
/// [`Error::Runtime`] if types or shapes do not fit.
pub fn solver_step(
    device: &Device,
    state: &mut SolverState,
    v: &Tensor,
    table: &Tensor,
    counter: &Tensor,
    options: SolverOptions,
) -> Result<()> {
    let elements = state.x.len();
    let expected = if options.guidance.is_some() { 2 * elements } else { elements };
    if v.len() != expected {
        return Err(shape_error("solver velocity", v.shape(), &[expected]));
    }
    for (name, tensor) in [("x", &state.x), ("base", &state.base), ("velocity before", &state.prev)] {
        expect(&format!("solver {name}"), tensor, v.dtype().wide(), state.x.shape())?;
    }
    expect("solver table", table, DType::U32, &[table.dim(0), 4])?;
    expect("solver counter", counter, DType::U32, &[1])?;
    match device {
        Device::Cpu(_) => {
            let row = counter.host_u32()?[0] as usize * 4;
            let row: &[u32] = table
                .host_u32()?
                .get(row..row + 4)
                .ok_or_else(|| Error::Runtime("solver: the counter ran past the table".into()))?;
            let step: SolverStep = *bytemuck::from_bytes(bytemuck::cast_slice(row));
            with_real!(v.dtype(), T => cpu::<T>(state, v, step, options))
        }
        Device::Cuda(cuda) => {
            let (lo, hi) = options.clamp.unwrap_or_default();
            let spec = SolverSpec {
                elements: to_i32(elements)?,
                guided: options.guidance.is_some() as i32,
                guidance: options.guidance.unwrap_or(1.0),
                clamp: options.clamp.is_some() as i32,
                lo,
                hi,
            };
            let SolverState { x, base, prev } = state;
            let pointers = [
                x.address(0)?,
                base.address(0)?,
                prev.address(0)?,
                v.address(0)?,
                table.address(0)?,
                counter.address(0)?,
            ];
            let kernel = format!("solver_step_fwd_{}", v.dtype());
            // What every step touches: x, read and written, the velocity, its row and the counter.
            let bytes = 2 * x.bytes() + v.bytes() + size_of::<SolverStep>() + counter.bytes();
            launch_elementwise(cuda, ("solver", kernel), elements, &pointers, bytemuck::bytes_of(&spec), bytes)
        }
    }
}

fn cpu<T: Real>(state: &mut SolverState, v: &Tensor, step: SolverStep, options: SolverOptions) -> Result<()> {
    let (c, u) = v.host::<T>()?.split_at(state.x.len());
    let (v_coef, prev_coef) = (T::from_f64(step.v_coef as f64), T::from_f64(step.prev_coef as f64));
    let has = |flag| step.flags & flag != 0;
    let guidance = options.guidance.map(|g| T::from_f64(g as f64));
    let clamp = options.clamp.filter(|_| has(LAST)).map(|(lo, hi)| (T::from_f64(lo as f64), T::from_f64(hi as f64)));
    let SolverState { x, base, prev } = state;
    let states = x.host_mut::<T>()?.par_iter_mut().zip(base.host_mut::<T>()?).zip(prev.host_mut::<T>()?);
    states.enumerate().with_min_len(4096).for_each(|(i, ((x, base), prev))| {
        let v = guidance.map_or(c[i], |g| g.mul_add(c[i] - u[i], u[i]));
        let mut new = v_coef.mul_add(v, if has(FROM_BASE) { *base } else { *x });
        if step.prev_coef != 0.0 {
            new = prev_coef.mul_add(*prev, new);
        }
        if has(SAVE_BASE) {
            *base = *x;
        }
        if has(SAVE_PREV) {
            *prev = v;
        }
        if let Some((lo, hi)) = clamp {
            new = if new < lo {
                lo
            } else if new > hi {
                hi
            } else {
                new
            };
        }
        *x = new;
    });
    Ok(())
}

/// counter `[1]` += 1, after the last use of a row.
///
/// # Errors
/// [`Error::Runtime`] for another tensor than a counter; the driver's, on a GPU.
pub fn advance(device: &Device, counter: &mut Tensor) -> Result<()> {
    expect("counter", counter, DType::U32, &[1])?;
    match device {
        Device::Cpu(_) => {
            counter.host_u32_mut()?[0] += 1;
            Ok(())
        }
        Device::Cuda(cuda) => cuda.launch(&Launch {
            module: "solver",
            kernel: "counter_advance".into(),
            grid: [1, 1, 1],
            threads: 1,
            shared_bytes: 0,
            pointers: &[counter.address(0)?],
            spec: &[],
            work: moves(2 * counter.bytes()),
            ..Launch::default()
        }),
    }
}

/// The table as a tensor [E, 4].
///
/// # Errors
/// The driver's, on a GPU.
pub fn step_table(device: &Device, steps: &[SolverStep]) -> Result<Tensor> {
    Tensor::from_u32(device, &[steps.len(), 4], bytemuck::cast_slice(steps))
}

/// Zeroed solver state for images of `shape` [B, C, H, W]; f64 for an f64 model, else f32.
///
/// # Errors
/// [`Error::OutOfMemory`].
pub fn solver_state(device: &Device, model_dtype: DType, shape: &[usize]) -> Result<SolverState> {
    let zeros = || Tensor::zeros(device, model_dtype.wide(), shape);
    Ok(SolverState { x: zeros()?, base: zeros()?, prev: zeros()? })
}
