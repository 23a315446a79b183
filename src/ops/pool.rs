//! Max, average, adaptive and global average pooling of images [B, H, W, C], by PyTorch's rules, and their backward: dx is
//! written (`=`).

mod cpu;

use super::{SpecLayout, expect, launch_elementwise, moves, round, spec, to_i32, to_u32, with_real};
use crate::device::Device;
use crate::device::cuda::{Cuda, Launch};
use crate::error::{Error, Result};
use crate::tensor::Tensor;

spec! {
    /// Geometry of `*_pool_*` and `global_average_fwd_*`.
    PoolSpec {
        images: i32, height: i32, width: i32, channels: i32, out_height: i32, out_width: i32,
        kernel_h: i32, kernel_w: i32, stride_h: i32, stride_w: i32, pad_h: i32, pad_w: i32, include_pad: i32,
    }
}
pub(super) const LAYOUT: SpecLayout = PoolSpec::LAYOUT;

/// Windows over rows and columns.
#[derive(Clone, Copy, Debug)]
pub struct Window {
    /// Rows and columns of a window.
    pub kernel: [usize; 2],
    /// From one window to the next.
    pub stride: [usize; 2],
    /// Rows above and below and columns on both sides that lie outside, at most half the kernel.
    pub padding: [usize; 2],
}

impl Window {
    /// A square window.
    pub fn square(kernel: usize, stride: usize, padding: usize) -> Self {
        Self { kernel: [kernel; 2], stride: [stride; 2], padding: [padding; 2] }
    }

    /// Rows and columns that come of images of `size`: floor((size + 2 padding - kernel) / stride) + 1 each.
    ///
    /// # Errors
    /// [`Error::Runtime`] for a window of nothing, one larger than the padded image, or a padding above half the kernel.
    pub fn output(&self, size: [usize; 2]) -> Result<[usize; 2]> {
        let mut output = [0; 2];
        for (i, output) in output.iter_mut().enumerate() {
            let (kernel, stride, padding) = (self.kernel[i], self.stride[i], self.padding[i]);
            let room = (size[i] + 2 * padding).checked_sub(kernel);
            let fits = kernel > 0 && stride > 0 && padding <= kernel / 2;
            let room =
                room.filter(|_| fits).ok_or_else(|| Error::Runtime(format!("{self:?} over images of {size:?}")))?;
            *output = room / stride + 1;
        }
        Ok(output)
    }
}

/// How an average is taken.
#[derive(Clone, Copy, Debug)]
pub enum Average {
    /// Of windows. `include_pad`: of all their places, those of the padding being 0; else of what lies inside.
    Windows(Window, bool),
    /// Of as many windows as the output has rows and columns: window o of n covers floor(o size / n) up to
    /// ceil((o + 1) size / n).
    Adaptive([usize; 2]),
}

impl Average {
    /// Rows and columns that come of images of `size`.
    ///
    /// # Errors
    /// [`Error::Runtime`] as of [`Window::output`], or for no output.
    pub fn output(&self, size: [usize; 2]) -> Result<[usize; 2]> {
        match self {
            Self::Windows(window, _) => window.output(size),
            Self::Adaptive(output) if output.contains(&0) => Err(Error::Runtime(format!("pooling to {output:?}"))),
            Self::Adaptive(output) => Ok(*output),
        }
    }
}

/// y [B, H', W', C] = the largest of each window of x [B, H, W, C]; NaN where one is in it.
///
/// # Errors
/// [`Error::Runtime`] if types or shapes do not fit.
pub fn max_pool(device: &Device, x: &Tensor, window: Window, y: &mut Tensor) -> Result<()> {
    let shape = Shape::new(x, Average::Windows(window, false))?;
    expect("max pool output", y, x.dtype(), &shape.output)?;
    match device {
        Device::Cpu(_) => with_real!(x.dtype(), T => {
            cpu::max_pool::<T>(&shape, x.host()?, y.host_mut()?);
            Ok(())
        }),
        Device::Cuda(cuda) => {
            let (pointers, bytes) = ([x.address(0)?, y.address(0)?], x.bytes() + y.bytes());
            launch(cuda, format!("max_pool_fwd_{}", x.dtype()), &shape, y.len(), &pointers, bytes)
        }
    }
}

/// Backward of [`max_pool`]: dx [B, H, W, C] from x and dy [B, H', W', C]. The gradient of a window goes to its first maximum,
/// row by row, or to its last NaN.
///
/// # Errors
/// [`Error::Runtime`] if types or shapes do not fit.
pub fn max_pool_backward(device: &Device, x: &Tensor, window: Window, dy: &Tensor, dx: &mut Tensor) -> Result<()> {
    let shape = Shape::new(x, Average::Windows(window, false))?;
    expect("max pool dy", dy, x.dtype(), &shape.output)?;
    expect("max pool dx", dx, x.dtype(), x.shape())?;
    match device {
        Device::Cpu(_) => {
            with_real!(x.dtype(), T => cpu::max_pool_backward::<T>(&shape, x.host()?, dy.host()?, dx.host_mut()?));
            round(dx)
        }
        Device::Cuda(cuda) => {
            let (pointers, bytes) = ([x.address(0)?, dy.address(0)?, dx.address(0)?], 2 * x.bytes() + dy.bytes());
            launch(cuda, format!("max_pool_bwd_{}", x.dtype()), &shape, dx.len(), &pointers, bytes)
        }
    }
}

/// y [B, H', W', C] = averages of x [B, H, W, C]. `Average::Adaptive([1, 1])` is the global average.
///
/// # Errors
/// [`Error::Runtime`] if types or shapes do not fit.
pub fn average_pool(device: &Device, x: &Tensor, average: Average, y: &mut Tensor) -> Result<()> {
    let shape = Shape::new(x, average)?;
    expect("average pool output", y, x.dtype(), &shape.output)?;
    match device {
        Device::Cpu(_) => {
            with_real!(x.dtype(), T => cpu::average_pool::<T>(&shape, x.host()?, y.host_mut()?));
            round(y)
        }
        Device::Cuda(cuda) => {
            let (pointers, bytes) = ([x.address(0)?, y.address(0)?], x.bytes() + y.bytes());
            if !matches!(average, Average::Adaptive([1, 1])) {
                return launch(cuda, format!("average_pool_fwd_{}", x.dtype()), &shape, y.len(), &pointers, bytes);
            }
            cuda.launch(&Launch {
                module: "pool",
                kernel: format!("global_average_fwd_{}", x.dtype()),
                grid: [to_u32(x.last_dim().div_ceil(32))?, to_u32(x.dim(0))?, 1],
                threads: 256,
                pointers: &pointers,
                spec: bytemuck::bytes_of(&shape.spec()?),
                work: moves(bytes),
                ..Launch::default()
            })
        }
    }
}

/// Backward of [`average_pool`]: dx [B, H, W, C] from dy [B, H', W', C].
///
/// # Errors
/// [`Error::Runtime`] if types or shapes do not fit.
pub fn average_pool_backward(device: &Device, average: Average, dy: &Tensor, dx: &mut Tensor) -> Result<()> {
    let shape = Shape::new(dx, average)?;
    expect("average pool dy", dy, dx.dtype(), &shape.output)?;
    match device {
        Device::Cpu(_) => {
            with_real!(dx.dtype(), T => cpu::average_pool_backward::<T>(&shape, dy.host()?, dx.host_mut()?));
            round(dx)
        }
        Device::Cuda(cuda) => {
            let (pointers, bytes) = ([dy.address(0)?, dx.address(0)?], dx.bytes() + dy.bytes());
            launch(cuda, format!("average_pool_bwd_{}", dx.dtype()), &shape, dx.len(), &pointers, bytes)
        }
    }
}

/// Images, windows and output of a pooling.
struct Shape {
    input: [usize; 4],
    output: [usize; 4],
    average: Average,
}

impl Shape {
    fn new(x: &Tensor, average: Average) -> Result<Self> {
        let &[images, height, width, channels] = x.shape() else {
            return Err(Error::Runtime(format!("pooling: images [B, H, W, C] expected, {:?} found", x.shape())));
        };
        if x.is_empty() {
            return Err(Error::Runtime(format!("pooling of no images: {:?}", x.shape())));
        }
        let [out_height, out_width] = average.output([height, width])?;
        Ok(Self {
            input: [images, height, width, channels],
            output: [images, out_height, out_width, channels],
            average,
        })
    }

    fn spec(&self) -> Result<PoolSpec> {
        let [images, height, width, channels] = self.input;
        let [_, out_height, out_width, _] = self.output;
        let (window, include_pad) = match self.average {
            Average::Windows(window, include_pad) => (window, include_pad),
            Average::Adaptive(_) => (Window::square(0, 0, 0), false),
        };
        // Elements, and the products of the adaptive rule, are counted in 32 bits.
        to_i32(self.input.iter().product::<usize>().max(self.output.iter().product()))?;
        to_i32((height + 1) * (out_height + 1) + (width + 1) * (out_width + 1))?;
        Ok(PoolSpec {
            images: to_i32(images)?,
            height: to_i32(height)?,
            width: to_i32(width)?,
            channels: to_i32(channels)?,
            out_height: to_i32(out_height)?,
            out_width: to_i32(out_width)?,
            kernel_h: to_i32(window.kernel[0])?,
            kernel_w: to_i32(window.kernel[1])?,
            stride_h: to_i32(window.stride[0])?,
            stride_w: to_i32(window.stride[1])?,
            pad_h: to_i32(window.padding[0])?,
            pad_w: to_i32(window.padding[1])?,
            include_pad: include_pad.into(),
        })
    }
}

fn launch(cuda: &Cuda, kernel: String, shape: &Shape, elements: usize, pointers: &[u64], bytes: usize) -> Result<()> {
    launch_elementwise(cuda, ("pool", kernel), elements, pointers, bytemuck::bytes_of(&shape.spec()?), bytes)
}
