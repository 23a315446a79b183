//! What a convolution is, but for its numbers.

use crate::error::{Error, Result};

/// Geometry of a convolution over rows and columns; pairs are (rows, columns).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConvSpec {
    /// Taps each way.
    pub kernel: [usize; 2],
    /// Input pixels from one output pixel to the next; of a transposed convolution the other way round.
    pub stride: [usize; 2],
    /// Zeros (before, behind) the rows, and the columns.
    pub padding: [[usize; 2]; 2],
    /// Input pixels from one tap to the next.
    pub dilation: [usize; 2],
    /// Parts that the channels are cut into, each with weights of its own.
    pub groups: usize,
}

impl ConvSpec {
    /// A square kernel at every pixel, without padding.
    pub fn new(kernel: usize) -> Self {
        Self { kernel: [kernel; 2], stride: [1; 2], padding: [[0; 2]; 2], dilation: [1; 2], groups: 1 }
    }

    /// The same with another stride, both ways.
    pub fn stride(self, stride: usize) -> Self {
        Self { stride: [stride; 2], ..self }
    }

    /// The same with as many zeros on all four sides.
    pub fn padding(self, padding: usize) -> Self {
        Self { padding: [[padding; 2]; 2], ..self }
    }

    /// The same with another dilation, both ways.
    pub fn dilation(self, dilation: usize) -> Self {
        Self { dilation: [dilation; 2], ..self }
    }

    /// The same in groups of channels.
    pub fn groups(self, groups: usize) -> Self {
        Self { groups, ..self }
    }

    /// Taps of a kernel.
    pub fn taps(&self) -> usize {
        self.kernel[0] * self.kernel[1]
    }

    /// Whether each of the `channels` input channels makes one output channel of `n`, by itself.
    pub fn is_depthwise(&self, channels: usize, n: usize) -> bool {
        self.groups > 1 && self.groups == channels && channels == n
    }

    /// Height and width of the output for an input of `size`.
    ///
    /// # Errors
    /// [`Error::Runtime`] where the padded input is smaller than the kernel, or the spec has a zero where there can be none.
    pub fn output(&self, size: [usize; 2]) -> Result<[usize; 2]> {
        self.check()?;
        let along = |axis: usize| {
            let reach = self.dilation[axis] * (self.kernel[axis] - 1) + 1;
            let padded = size[axis] + self.padding[axis][0] + self.padding[axis][1];
            padded.checked_sub(reach).map(|free| free / self.stride[axis] + 1)
        };
        match (along(0), along(1)) {
            (Some(height), Some(width)) => Ok([height, width]),
            _ => {
                Err(Error::Runtime(format!("convolution: an input of {size:?} is smaller than the kernel of {self:?}")))
            }
        }
    }

    /// Height and width of the output of a transposed convolution of an input of `size`; `extra` pixels below and to the right
    /// are those that the stride leaves open (PyTorch's `output_padding`).
    ///
    /// # Errors
    /// [`Error::Runtime`] where the padding leaves nothing, or `extra` is no less than the stride.
    pub fn transposed_output(&self, size: [usize; 2], extra: [usize; 2]) -> Result<[usize; 2]> {
        self.check()?;
        let along = |axis: usize| {
            let whole =
                size[axis].checked_sub(1)? * self.stride[axis] + self.dilation[axis] * (self.kernel[axis] - 1) + 1;
            let left = (whole + extra[axis]).checked_sub(self.padding[axis][0] + self.padding[axis][1])?;
            Some(left).filter(|&left| left > 0 && extra[axis] < self.stride[axis])
        };
        match (along(0), along(1)) {
            (Some(height), Some(width)) => Ok([height, width]),
            _ => Err(Error::Runtime(format!(
                "transposed convolution: no output of {size:?} by {self:?} and {extra:?} more"
            ))),
        }
    }

    /// Refuses a zero where there can be none.
    fn check(&self) -> Result<()> {
        let parts = self.kernel.iter().chain(&self.stride).chain(&self.dilation).chain([&self.groups]);
        match parts.min() {
            Some(0) => Err(Error::Runtime(format!("convolution: {self:?} has a zero where there can be none"))),
            _ => Ok(()),
        }
    }
}
