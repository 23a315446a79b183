//! Parameters by name: what a model needs, and where the numbers come from.

use crate::device::Device;
use crate::error::Result;
use crate::tensor::{DType, Tensor};

/// One parameter of a model, under the project's own name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParamSpec {
    /// Name, as in an exported file.
    pub name: String,
    /// Dimensions, outermost first, as PyTorch has them.
    pub shape: Vec<usize>,
}

impl ParamSpec {
    /// A parameter called `name` of `shape`.
    pub fn new(name: impl Into<String>, shape: &[usize]) -> Self {
        Self { name: name.into(), shape: shape.to_vec() }
    }
}

/// Weight and bias of a linear layer, K inputs and N outputs.
pub fn linear_specs(name: &str, n: usize, k: usize) -> [ParamSpec; 2] {
    [ParamSpec::new(format!("{name}.weight"), &[n, k]), ParamSpec::new(format!("{name}.bias"), &[n])]
}

/// Where parameters are read from: a checkpoint under a key map, or a rule.
pub trait WeightSource {
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

    /// The device that tensors are put on.
    pub fn device(&self) -> &'a Device {
        self.device
    }

    /// Elements of parameter `name` on the host.
    pub fn read(&self, name: &str) -> Result<Vec<f32>> {
        self.source.read(&self.name(name))
    }

    /// Parameter `name` on the device, its elements read as `shape`.
    pub fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        self.given(shape, &self.read(name)?)
    }

    /// Elements read on the host before, put on the device.
    pub fn given(&self, shape: &[usize], values: &[f32]) -> Result<Tensor> {
        Tensor::from_f32(self.device, self.dtype, shape, values)
    }

    /// Elements computed on the host, put on the device.
    pub fn computed(&self, shape: &[usize], values: &[f64]) -> Result<Tensor> {
        Tensor::from_f64(self.device, self.dtype, shape, values)
    }

    fn name(&self, last: &str) -> String {
        if self.path.is_empty() { last.to_string() } else { format!("{}.{last}", self.path) }
    }
}
