//! A convolution of images [B, H, W, C] with bias. A BatchNorm behind it is folded into it when it is loaded, which is exact
//! but for rounding.

use super::params::Loader;
use crate::device::Device;
use crate::error::Result;
use crate::ops::Columns;
use crate::ops::conv::{ConvSpec, Operands, Residual, conv2d, weight, workspace_size};
use crate::ops::linear::{Activation, Workspace, WorkspaceSize};
use crate::tensor::{DType, Tensor};

/// y = act(conv(x) + bias + residual).
pub struct Conv {
    spec: ConvSpec,
    weight: Tensor,
    /// `[N]`.
    bias: Tensor,
    /// C, of all groups.
    channels: usize,
}

/// What a convolution does to the sum of its products.
#[derive(Clone, Copy)]
pub struct Behind<'a> {
    /// Instead of the layer's own bias.
    pub bias: Option<Columns<'a>>,
    /// Activation.
    pub act: Activation,
    /// Before or behind it.
    pub residual: Residual<'a>,
}

impl Behind<'_> {
    /// The layer's bias and `act`.
    pub fn act(act: Activation) -> Self {
        Self { bias: None, act, residual: Residual::None }
    }
}

impl Conv {
    /// Reads `weight` [n, c / groups, k, k] and `bias` `[n]` below the loader's path.
    ///
    /// # Errors
    /// The loader's.
    pub fn load(loader: &Loader, spec: ConvSpec, [n, c]: [usize; 2]) -> Result<Self> {
        let bias = loader.tensor("bias", &[n])?;
        Self::new(loader, spec, [n, c], &loader.stored("weight")?, bias)
    }

    /// Reads the convolution `conv` [n, c / groups, k, k] without bias and the BatchNorm `norm` behind it, both below the
    /// loader's path: y = (conv(x) - mean) gain / sqrt(var + eps) + shift.
    ///
    /// # Errors
    /// The loader's, and [`crate::error::Error::Input`] for a variance below zero.
    pub fn load_folded(
        loader: &Loader,
        [conv, norm]: [&str; 2],
        spec: ConvSpec,
        [n, c]: [usize; 2],
        eps: f64,
    ) -> Result<Self> {
        let (conv, norm) = (loader.at(conv), loader.at(norm));
        let weight = conv.read("weight")?;
        let [gain, shift, mean, var] =
            ["weight", "bias", "running_mean", "running_var"].map(|part| norm.read(part).map(widen));
        let (gain, shift, mean, var) = (gain?, shift?, mean?, var?);
        if let Some((i, v)) = var.iter().enumerate().find(|(_, v)| **v < 0.0) {
            return Err(norm.refusal("running_var", format!("element {i} is {v}, a variance of 0 or more expected")));
        }
        let scale: Vec<f64> = gain.iter().zip(&var).map(|(gain, var)| gain / (var + eps).sqrt()).collect();
        let row = weight.len() / n;
        let folded: Vec<f64> = weight.iter().enumerate().map(|(i, &w)| f64::from(w) * scale[i / row]).collect();
        conv.check_range("weight", &folded)?;
        let bias: Vec<f64> = (0..n).map(|i| shift[i] - mean[i] * scale[i]).collect();
        let bias = norm.computed("bias", &[n], &bias)?;
        let folded: Vec<f32> = folded.into_iter().map(|w| w as f32).collect();
        Self::new(&conv, spec, [n, c], &folded, bias)
    }

    fn new(loader: &Loader, spec: ConvSpec, [n, c]: [usize; 2], values: &[f32], bias: Tensor) -> Result<Self> {
        let [kh, kw] = spec.kernel;
        let weight = weight(loader.device(), loader.dtype(), spec, [n, c / spec.groups, kh, kw], values)?;
        Ok(Self { spec, weight, bias, channels: c })
    }

    /// N.
    pub fn outputs(&self) -> usize {
        self.bias.len()
    }

    /// Its own bias, `[N]`.
    pub fn bias(&self) -> &Tensor {
        &self.bias
    }

    /// Height and width of what comes of images of `size`.
    ///
    /// # Errors
    /// [`crate::error::Error::Runtime`] for images smaller than the kernel.
    pub fn output(&self, size: [usize; 2]) -> Result<[usize; 2]> {
        self.spec.output(size)
    }

    /// y [B, OH, OW, N] of x [B, H, W, C], several tensors whose channels follow each other.
    ///
    /// # Errors
    /// The operation's.
    pub fn forward(
        &self,
        device: &Device,
        x: &[&Tensor],
        behind: Behind,
        y: &mut Tensor,
        workspace: &mut Workspace,
    ) -> Result<()> {
        let Behind { bias, act, residual } = behind;
        let bias = Some(bias.unwrap_or(Columns::Shared(&self.bias)));
        let operands = Operands { bias, act, residual, ..Operands::new(self.spec, x, &self.weight) };
        conv2d(device, operands, y, workspace)
    }

    /// What `images` images whose outputs are of `output` need.
    pub fn workspace_size(&self, device: &Device, images: usize, output: [usize; 2]) -> WorkspaceSize {
        let dtype: DType = self.weight.dtype();
        workspace_size(device, dtype, self.spec, [images, self.channels, self.outputs()], output)
    }
}

fn widen(values: Vec<f32>) -> Vec<f64> {
    values.into_iter().map(f64::from).collect()
}
