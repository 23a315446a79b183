//! Parameters by name: what a model needs, and where the numbers come from.

use rayon::prelude::*;

use crate::device::Device;
use crate::error::{Error, Result};
use crate::tensor::{DType, Real, Tensor};

/// One parameter of a model, under the project's own name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParamSpec {
    /// Name, as in an exported file.
    pub name: String,
    /// Dimensions, outermost first, as PyTorch has them.
    pub shape: Vec<usize>,
}

/// Last parts of the names of BatchNorm's running statistics.
const RUNNING: [&str; 2] = ["running_mean", "running_var"];

impl ParamSpec {
    /// Whether it is measured while training and not learned: running statistics of BatchNorm.
    pub fn is_statistic(&self) -> bool {
        self.name.rsplit('.').next().is_some_and(|last| RUNNING.contains(&last))
    }

    /// A parameter called `name` of `shape`.
    pub fn new(name: impl Into<String>, shape: &[usize]) -> Self {
        Self { name: name.into(), shape: shape.to_vec() }
    }
}

/// Weight and bias of a linear layer, K inputs and N outputs.
pub fn linear_specs(name: &str, n: usize, k: usize) -> [ParamSpec; 2] {
    [ParamSpec::new(format!("{name}.weight"), &[n, k]), ParamSpec::new(format!("{name}.bias"), &[n])]
}

/// Weight [N, C, K, K] and bias of a convolution; C is the channels of one group.
pub fn conv_specs(name: &str, [n, c, k]: [usize; 3]) -> [ParamSpec; 2] {
    [ParamSpec::new(format!("{name}.weight"), &[n, c, k, k]), ParamSpec::new(format!("{name}.bias"), &[n])]
}

/// Weight and bias of a norm over C channels.
pub fn norm_specs(name: &str, c: usize) -> [ParamSpec; 2] {
    ["weight", "bias"].map(|part| ParamSpec::new(format!("{name}.{part}"), &[c]))
}

/// Weight, bias and running statistics of a BatchNorm over C channels.
pub fn batch_norm_specs(name: &str, c: usize) -> [ParamSpec; 4] {
    ["weight", "bias", RUNNING[0], RUNNING[1]].map(|part| ParamSpec::new(format!("{name}.{part}"), &[c]))
}

/// Where parameters are read from: a checkpoint under a key map, or a rule.
pub trait WeightSource: Sync {
    /// The file or the rule, as messages name it.
    fn origin(&self) -> &std::path::Path;

    /// All elements of parameter `name`, finite, as many as its spec says.
    ///
    /// # Errors
    /// [`crate::error::Error::Input`] if the file does not hold it so.
    fn read(&self, name: &str) -> Result<Vec<f32>>;
}

/// Puts parameters on a device, under a path of names.
#[derive(Clone)]
pub struct Loader<'a> {
    source: &'a dyn WeightSource,
    device: &'a Device,
    dtype: DType,
    path: String,
}

impl<'a> Loader<'a> {
    /// Loads from `source` to `device` as `dtype`.
    pub fn new(source: &'a dyn WeightSource, device: &'a Device, dtype: DType) -> Self {
        Self { source, device, dtype, path: String::new() }
    }

    /// The same, below `name`.
    pub fn at(&self, name: impl std::fmt::Display) -> Self {
        Self { path: self.name(&name.to_string()), ..self.clone() }
    }

    /// `count` parts of a model, by number: on a CPU several at a time.
    pub fn each<T: Send>(&self, count: usize, load: impl Fn(usize) -> Result<T> + Send + Sync) -> Result<Vec<T>> {
        match self.device {
            Device::Cpu(cpu) => cpu.install(|| (0..count).into_par_iter().map(load).collect()),
            Device::Cuda(_) => (0..count).map(load).collect(),
        }
    }

    /// The device that tensors are put on.
    pub fn device(&self) -> &'a Device {
        self.device
    }

    /// Elements of parameter `name` on the host, to compute with before [`Loader::computed`].
    pub fn read(&self, name: &str) -> Result<Vec<f32>> {
        self.source.read(&self.name(name))
    }

    /// Elements of parameter `name` on the host, to be put on the device with [`Loader::given`].
    ///
    /// # Errors
    /// The source's, or [`Error::Input`] for an element that the type cannot hold.
    pub fn stored(&self, name: &str) -> Result<Vec<f32>> {
        let values = self.read(name)?;
        self.check_range(name, &values)?;
        Ok(values)
    }

    /// Parameter `name` on the device, its elements read as `shape`.
    ///
    /// # Errors
    /// As of [`Loader::stored`], and the device's.
    pub fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        self.given(shape, &self.stored(name)?)
    }

    /// Parameter `name` as the weight [n, k] of a linear layer, on the device.
    ///
    /// # Errors
    /// As of [`Loader::stored`], and the device's.
    pub fn matrix(&self, name: &str, n: usize, k: usize) -> Result<Tensor> {
        self.given_matrix(n, k, &self.stored(name)?)
    }

    /// Elements of [`Loader::stored`] parameters, put on the device as the weight [n, k] of a linear layer.
    pub fn given_matrix(&self, n: usize, k: usize, values: &[f32]) -> Result<Tensor> {
        Tensor::matrix(self.device, self.dtype, [n, k], values)
    }

    /// Elements computed on the host from parameter `name`, put on the device as the weight [n, k] of a linear layer.
    ///
    /// # Errors
    /// As of [`Loader::computed`].
    pub fn computed_matrix(&self, name: &str, n: usize, k: usize, values: &[f64]) -> Result<Tensor> {
        if self.dtype == DType::F64 {
            return self.computed(name, &[n, k], values);
        }
        self.check_range(name, values)?;
        self.given_matrix(n, k, &values.iter().map(|&v| v as f32).collect::<Vec<_>>())
    }

    /// Elements of [`Loader::stored`] parameters, put on the device.
    pub fn given(&self, shape: &[usize], values: &[f32]) -> Result<Tensor> {
        Tensor::from_f32(self.device, self.dtype, shape, values)
    }

    /// Elements computed on the host from parameter `name`, put on the device.
    ///
    /// # Errors
    /// [`Error::Input`] for an element that the type cannot hold; the device's.
    pub fn computed(&self, name: &str, shape: &[usize], values: &[f64]) -> Result<Tensor> {
        self.check_range(name, values)?;
        Tensor::from_f64(self.device, self.dtype, shape, values)
    }

    /// `value` as the type holds it.
    pub fn rounded(&self, value: f64) -> f64 {
        if self.dtype == DType::F64 { value } else { self.dtype.round(value as f32).into() }
    }

    /// The error for a parameter whose numbers cannot be.
    pub fn refusal(&self, name: &str, reason: String) -> Error {
        Error::input(self.source.origin(), format!("parameter {}: {reason}", self.name(name)))
    }

    /// The type of tensors.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Refuses numbers that rounding to the type makes infinite.
    pub fn check_range<T: Real>(&self, name: &str, values: &[T]) -> Result<()> {
        // The least magnitude that does not fit.
        let (limit, advice) = match self.dtype {
            // Half a step above the largest number rounds up.
            DType::F16 => (65_520.0, ": use --dtype bf16 or f32"),
            DType::BF16 => (f64::from(f32::from_bits(0x7f7f_8000)), ": use --dtype f32"),
            _ => (f64::from(f32::MAX) * (1.0 + 0.25 * f64::from(f32::EPSILON)), ""),
        };
        let large = |v: &T| v.to_f64().abs() >= limit;
        // Without an early exit, so that the loop vectorises.
        if self.dtype == DType::F64 || !values.iter().fold(false, |any, v| any | large(v)) {
            return Ok(());
        }
        let (at, value) = values.iter().enumerate().find(|(_, v)| large(v)).map_or((0, 0.0), |(i, v)| (i, v.to_f64()));
        let (dtype, name) = (self.dtype, self.name(name));
        Err(Error::input(
            self.source.origin(),
            format!("parameter {name}: element {at} is {value:e}, too large for {dtype}{advice}"),
        ))
    }

    fn name(&self, last: &str) -> String {
        if self.path.is_empty() { last.to_string() } else { format!("{}.{last}", self.path) }
    }
}
