//! Element types, shapes and contiguous row-major tensors.

use half::{bf16, f16};

use crate::device::cpu::Cpu;
use crate::device::level::Level;
use crate::device::packed::{Element, PackedMatrix, PackedRows, bf16_bits};
use crate::device::{Buffer, Device, cpu, wrong_place};
use crate::error::{Error, Result};

/// Element type of stored numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DType {
    /// IEEE binary16.
    F16,
    /// bfloat16: the upper half of a binary32.
    BF16,
    /// IEEE binary32.
    F32,
    /// IEEE binary64: tests and reference loops on the CPU only.
    F64,
    /// 32-bit unsigned integers: labels, counters, step tables.
    U32,
}

impl DType {
    /// Bytes of one element.
    pub fn size(self) -> usize {
        match self {
            Self::F16 | Self::BF16 => 2,
            Self::F32 | Self::U32 => 4,
            Self::F64 => 8,
        }
    }

    /// What a model of this type sums in and keeps images in: f64 for f64, else f32.
    pub fn wide(self) -> Self {
        if self == Self::F64 { Self::F64 } else { Self::F32 }
    }

    /// What weights and activations of a model are best stored in on `device`: f16 on a GPU, on a CPU bf16 where it has
    /// instructions for it, else f32.
    pub fn best(device: &Device) -> Self {
        match device {
            Device::Cpu(cpu) if cpu.level().has_bf16() => Self::BF16,
            Device::Cpu(_) => Self::F32,
            Device::Cuda(_) => Self::F16,
        }
    }

    /// Name used in kernel names, flags and recipes.
    pub fn name(self) -> &'static str {
        match self {
            Self::F16 => "f16",
            Self::BF16 => "bf16",
            Self::F32 => "f32",
            Self::F64 => "f64",
            Self::U32 => "u32",
        }
    }

    /// How the operands of products of tensors of this type are packed on a CPU; `None`: not at all.
    pub fn packing(self, cpu: &Cpu) -> Option<Element> {
        match (cpu.level(), self) {
            (Level::Portable, _) | (_, Self::F64 | Self::U32) => None,
            (level, Self::BF16) if level.has_bf16() => Some(Element::Bf16Pair),
            _ => Some(Element::F32),
        }
    }

    /// Whether a CPU rounds numbers of this type after each operation, to compute as a GPU stores; where it has
    /// instructions for the type they are rounded as they enter a product and nowhere else.
    pub(crate) fn rounds_on(self, cpu: &Cpu) -> bool {
        self == Self::F16 || self == Self::BF16 && !cpu.level().has_bf16()
    }

    /// `value` rounded to this type and widened again.
    #[inline]
    pub fn round(self, value: f32) -> f32 {
        match self {
            Self::F16 => f16::from_f32(value).to_f32(),
            Self::BF16 => f32::from_bits(bf16_bits(value) << 16),
            _ => value,
        }
    }
}

impl std::fmt::Display for DType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// A float type that the CPU loops are written for. f16 and bf16 tensors are computed in f32 and rounded after each
/// operation.
pub trait Real:
    Copy
    + Default
    + Send
    + Sync
    + PartialOrd
    + std::ops::Add<Output = Self>
    + std::ops::Sub<Output = Self>
    + std::ops::Mul<Output = Self>
    + std::ops::Div<Output = Self>
    + std::ops::AddAssign
    + std::ops::Neg<Output = Self>
    + std::iter::Sum
    + 'static
{
    /// Nearest value of this type.
    fn from_f64(x: f64) -> Self;
    /// Exact widening.
    fn to_f64(self) -> f64;
    /// e^x.
    fn exp(self) -> Self;
    /// e^self of a number that is not above 0.
    fn exp_of_nonpositive(self) -> Self;
    /// Hyperbolic tangent.
    fn tanh(self) -> Self;
    /// Error function.
    fn erf(self) -> Self;
    /// Square root.
    fn sqrt(self) -> Self;
    /// self * a + b, rounded once.
    fn mul_add(self, a: Self, b: Self) -> Self;
    /// Larger of the two.
    fn max(self, other: Self) -> Self;
    /// The elements of a host buffer of this type.
    fn of(buffer: &Buffer) -> Option<&[Self]>;
    /// The elements of a host buffer of this type, to be written.
    fn of_mut(buffer: &mut Buffer) -> Option<&mut [Self]>;
}

impl Real for f32 {
    #[inline(always)]
    fn from_f64(x: f64) -> Self {
        x as f32
    }
    fn to_f64(self) -> f64 {
        self as f64
    }
    #[inline(always)]
    fn exp(self) -> Self {
        crate::math::exp(self)
    }
    #[inline(always)]
    fn exp_of_nonpositive(self) -> Self {
        crate::math::exp_of_nonpositive(self)
    }
    #[inline(always)]
    fn tanh(self) -> Self {
        crate::math::tanh(self)
    }
    #[inline(always)]
    fn erf(self) -> Self {
        crate::math::erf(self)
    }
    #[inline(always)]
    fn sqrt(self) -> Self {
        f32::sqrt(self)
    }
    #[inline(always)]
    fn mul_add(self, a: Self, b: Self) -> Self {
        f32::mul_add(self, a, b)
    }
    #[inline(always)]
    fn max(self, other: Self) -> Self {
        f32::max(self, other)
    }
    fn of(buffer: &Buffer) -> Option<&[Self]> {
        match buffer {
            Buffer::F32(v) => Some(v),
            _ => None,
        }
    }
    fn of_mut(buffer: &mut Buffer) -> Option<&mut [Self]> {
        match buffer {
            Buffer::F32(v) => Some(v),
            _ => None,
        }
    }
}

impl Real for f64 {
    #[inline(always)]
    fn from_f64(x: f64) -> Self {
        x
    }
    fn to_f64(self) -> f64 {
        self
    }
    fn exp(self) -> Self {
        f64::exp(self)
    }
    fn exp_of_nonpositive(self) -> Self {
        f64::exp(self)
    }
    fn tanh(self) -> Self {
        f64::tanh(self)
    }
    fn erf(self) -> Self {
        libm::erf(self)
    }
    fn sqrt(self) -> Self {
        f64::sqrt(self)
    }
    fn mul_add(self, a: Self, b: Self) -> Self {
        f64::mul_add(self, a, b)
    }
    fn max(self, other: Self) -> Self {
        f64::max(self, other)
    }
    fn of(buffer: &Buffer) -> Option<&[Self]> {
        match buffer {
            Buffer::F64(v) => Some(v),
            _ => None,
        }
    }
    fn of_mut(buffer: &mut Buffer) -> Option<&mut [Self]> {
        match buffer {
            Buffer::F64(v) => Some(v),
            _ => None,
        }
    }
}

/// A contiguous row-major array on one device.
pub struct Tensor {
    shape: Vec<usize>,
    dtype: DType,
    buffer: Buffer,
}

impl Tensor {
    /// Zeros of `shape`.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`], or [`Error::Runtime`] for f64 on a GPU or a shape whose size overflows.
    pub fn zeros(device: &Device, dtype: DType, shape: &[usize]) -> Result<Self> {
        let n = elements(shape)?;
        let buffer = match (device, dtype) {
            (Device::Cpu(_), DType::F64) => Buffer::F64(host_zeros(n)?),
            (Device::Cpu(_), DType::U32) => Buffer::U32(host_zeros(n)?),
            (Device::Cpu(_), _) => Buffer::F32(host_zeros(n)?),
            (Device::Cuda(_), DType::F64) => return Err(Error::Runtime("f64 tensors exist on the CPU only".into())),
            (Device::Cuda(cuda), _) => Buffer::Cuda(cuda.alloc(n * dtype.size())?),
        };
        Ok(Self { shape: shape.to_vec(), dtype, buffer })
    }

    /// A tensor holding `values`, rounded to `dtype`.
    pub fn from_f32(device: &Device, dtype: DType, shape: &[usize], values: &[f32]) -> Result<Self> {
        let mut tensor = Self::zeros(device, dtype, shape)?;
        tensor.write_f32(device, values)?;
        Ok(tensor)
    }

    /// A tensor holding `values`, rounded to `dtype`.
    pub fn from_f64(device: &Device, dtype: DType, shape: &[usize], values: &[f64]) -> Result<Self> {
        if let (Device::Cpu(_), DType::F64) = (device, dtype) {
            check_len(shape, values.len())?;
            let mut tensor = Self::zeros(device, dtype, shape)?;
            tensor.host_mut()?.copy_from_slice(values);
            return Ok(tensor);
        }
        let narrow: Vec<f32> = values.iter().map(|&v| v as f32).collect();
        Self::from_f32(device, dtype, shape, &narrow)
    }

    /// A matrix [N, K] that [`crate::ops::linear`] will read as its weight, rounded to `dtype`: on a CPU in the layout of
    /// its products.
    ///
    /// # Errors
    /// As of [`Self::zeros`], and [`Error::Runtime`] if there are not N K values.
    pub fn matrix(device: &Device, dtype: DType, shape: [usize; 2], values: &[f32]) -> Result<Self> {
        let packing = match device {
            Device::Cpu(cpu) => dtype.packing(cpu),
            Device::Cuda(_) => None,
        };
        let Some(element) = packing else { return Self::from_f32(device, dtype, &shape, values) };
        check_len(&shape, values.len())?;
        check_memory(element.bytes(shape[0], shape[1]))?;
        let [n, k] = shape;
        let packed = match dtype {
            DType::F32 => PackedMatrix::pack(element, n, k, values),
            DType::BF16 if element == Element::Bf16Pair => PackedMatrix::pack(element, n, k, values),
            _ => PackedMatrix::pack(element, n, k, &values.iter().map(|&v| dtype.round(v)).collect::<Vec<_>>()),
        };
        Ok(Self { shape: shape.to_vec(), dtype, buffer: Buffer::Packed(packed) })
    }

    /// Activations of `shape` in the layout of the products of the CPU.
    pub(crate) fn from_rows(dtype: DType, shape: &[usize], rows: PackedRows) -> Result<Self> {
        check_len(shape, rows.rows() * rows.columns())?;
        Ok(Self { shape: shape.to_vec(), dtype, buffer: Buffer::Rows(rows) })
    }

    /// A tensor of integers.
    pub fn from_u32(device: &Device, shape: &[usize], values: &[u32]) -> Result<Self> {
        let mut tensor = Self::zeros(device, DType::U32, shape)?;
        tensor.write_u32(device, values)?;
        Ok(tensor)
    }

    /// Dimensions, outermost first.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Size of dimension `axis`.
    pub fn dim(&self, axis: usize) -> usize {
        self.shape[axis]
    }

    /// Size of the innermost dimension.
    pub fn last_dim(&self) -> usize {
        *self.shape.last().expect("tensors have at least one dimension")
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// True if there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Bytes that the tensor occupies on its device.
    pub fn bytes(&self) -> usize {
        match &self.buffer {
            Buffer::F32(v) => v.len() * 4,
            Buffer::F64(v) => v.len() * 8,
            Buffer::U32(v) => v.len() * 4,
            Buffer::Packed(p) => p.element().bytes(self.shape[0], self.shape[1]),
            Buffer::Rows(p) => size_of_val(p.lines()),
            Buffer::Cuda(b) => b.len(),
        }
    }

    /// The same elements under another shape of as many.
    pub fn reshape(mut self, shape: &[usize]) -> Result<Self> {
        check_len(shape, self.len())?;
        self.shape = shape.to_vec();
        Ok(self)
    }

    /// Overwrites all elements, rounding to the tensor's type.
    pub fn write_f32(&mut self, device: &Device, values: &[f32]) -> Result<()> {
        check_len(&self.shape, values.len())?;
        match (&mut self.buffer, device) {
            (Buffer::F32(v), _) => {
                let dtype = self.dtype;
                v.iter_mut().zip(values).for_each(|(to, &from)| *to = dtype.round(from));
            }
            (Buffer::F64(v), _) => v.iter_mut().zip(values).for_each(|(to, &from)| *to = from as f64),
            (Buffer::Cuda(buffer), Device::Cuda(cuda)) => match self.dtype {
                DType::F32 => cuda.upload(bytemuck::cast_slice(values), buffer)?,
                DType::F16 => {
                    let narrow: Vec<f16> = values.iter().map(|&v| f16::from_f32(v)).collect();
                    cuda.upload(bytemuck::cast_slice(&narrow), buffer)?;
                }
                DType::BF16 => {
                    let narrow: Vec<bf16> = values.iter().map(|&v| bf16::from_f32(v)).collect();
                    cuda.upload(bytemuck::cast_slice(&narrow), buffer)?;
                }
                DType::F64 | DType::U32 => return Err(wrong_place()),
            },
            _ => return Err(wrong_place()),
        }
        Ok(())
    }

    /// Overwrites all elements, rounding to the tensor's type.
    pub fn write_f64(&mut self, device: &Device, values: &[f64]) -> Result<()> {
        if let Buffer::F64(v) = &mut self.buffer {
            check_len(&self.shape, values.len())?;
            v.copy_from_slice(values);
            return Ok(());
        }
        self.write_f32(device, &values.iter().map(|&v| v as f32).collect::<Vec<_>>())
    }

    /// Overwrites all elements of an integer tensor.
    pub fn write_u32(&mut self, device: &Device, values: &[u32]) -> Result<()> {
        check_len(&self.shape, values.len())?;
        match (&mut self.buffer, device) {
            (Buffer::U32(v), _) => v.copy_from_slice(values),
            (Buffer::Cuda(buffer), Device::Cuda(cuda)) if self.dtype == DType::U32 => {
                cuda.upload(bytemuck::cast_slice(values), buffer)?;
            }
            _ => return Err(wrong_place()),
        }
        Ok(())
    }

    /// All elements, widened (f16, bf16) or narrowed (f64).
    pub fn to_f32(&self, device: &Device) -> Result<Vec<f32>> {
        match (&self.buffer, device) {
            (Buffer::F32(v), _) => {
                let mut out = host_zeros(v.len())?;
                out.copy_from_slice(v);
                Ok(out)
            }
            (Buffer::F64(v), _) => Ok(v.iter().map(|&x| x as f32).collect()),
            (Buffer::Packed(p), _) => Ok(p.unpack()),
            (Buffer::Rows(p), _) => Ok(p.unpack()),
            (Buffer::Cuda(buffer), Device::Cuda(cuda)) => match self.dtype {
                DType::F32 => {
                    let mut out: Vec<f32> = host_zeros(self.len())?;
                    cuda.download(buffer, bytemuck::cast_slice_mut(&mut out))?;
                    Ok(out)
                }
                DType::F16 => {
                    let mut out: Vec<f16> = host_zeros(self.len())?;
                    cuda.download(buffer, bytemuck::cast_slice_mut(&mut out))?;
                    Ok(out.iter().map(|v| v.to_f32()).collect())
                }
                DType::BF16 => {
                    let mut out: Vec<bf16> = host_zeros(self.len())?;
                    cuda.download(buffer, bytemuck::cast_slice_mut(&mut out))?;
                    Ok(out.iter().map(|v| v.to_f32()).collect())
                }
                DType::F64 | DType::U32 => Err(wrong_place()),
            },
            _ => Err(wrong_place()),
        }
    }

    /// All elements, widened.
    pub fn to_f64(&self, device: &Device) -> Result<Vec<f64>> {
        match &self.buffer {
            Buffer::F64(v) => Ok(v.clone()),
            _ => Ok(self.to_f32(device)?.into_iter().map(f64::from).collect()),
        }
    }

    /// Device address of element `offset`.
    pub(crate) fn address(&self, offset: usize) -> Result<u64> {
        match &self.buffer {
            Buffer::Cuda(buffer) => Ok(buffer.address() + (offset * self.dtype.size()) as u64),
            _ => Err(wrong_place()),
        }
    }

    /// The elements on the host, in the type that the CPU computes in.
    pub(crate) fn host<T: Real>(&self) -> Result<&[T]> {
        T::of(&self.buffer).ok_or_else(wrong_place)
    }

    /// The elements on the host, to be written.
    pub(crate) fn host_mut<T: Real>(&mut self) -> Result<&mut [T]> {
        T::of_mut(&mut self.buffer).ok_or_else(wrong_place)
    }

    /// The matrix as the products of the CPU read it, if it is in that form.
    pub(crate) fn packed(&self) -> Option<&PackedMatrix> {
        match &self.buffer {
            Buffer::Packed(p) => Some(p),
            _ => None,
        }
    }

    /// The rows as the products of the CPU read them, if they are in that form.
    pub(crate) fn packed_rows(&self) -> Option<&PackedRows> {
        match &self.buffer {
            Buffer::Rows(p) => Some(p),
            _ => None,
        }
    }

    /// The same, to be written.
    pub(crate) fn packed_rows_mut(&mut self) -> Option<&mut PackedRows> {
        match &mut self.buffer {
            Buffer::Rows(p) => Some(p),
            _ => None,
        }
    }

    /// The integers of a host tensor.
    pub(crate) fn host_u32(&self) -> Result<&[u32]> {
        match &self.buffer {
            Buffer::U32(v) => Ok(v),
            _ => Err(wrong_place()),
        }
    }

    /// The integers of a host tensor, to be written.
    pub(crate) fn host_u32_mut(&mut self) -> Result<&mut [u32]> {
        match &mut self.buffer {
            Buffer::U32(v) => Ok(v),
            _ => Err(wrong_place()),
        }
    }
}

/// Allocations from this many bytes on are compared with the memory that is there: Linux grants more than it has, and
/// ends the process when the memory is used.
const LARGE: usize = 64 << 20;

/// `n` zeros in host memory, or [`Error::OutOfMemory`].
pub(crate) fn host_zeros<T: Default + Clone>(n: usize) -> Result<Vec<T>> {
    let asked = n.saturating_mul(size_of::<T>());
    check_memory(asked)?;
    let mut zeros = Vec::new();
    zeros.try_reserve_exact(n).map_err(|_| full(asked, cpu::available_memory().unwrap_or(0)))?;
    // Writes to every page, so that the next large allocation sees what is left.
    zeros.resize(n, T::default());
    Ok(zeros)
}

/// Refuses an allocation of `asked` bytes that the machine has no memory for.
fn check_memory(asked: usize) -> Result<()> {
    let available = if asked >= LARGE { cpu::available_memory() } else { None };
    available.filter(|&free| free < asked).map_or(Ok(()), |free| Err(full(asked, free)))
}

fn full(asked: usize, free: usize) -> Error {
    Error::OutOfMemory { device: "cpu".into(), asked, free }
}

fn elements(shape: &[usize]) -> Result<usize> {
    shape
        .iter()
        .try_fold(1usize, |n, &d| n.checked_mul(d))
        .filter(|n| n.checked_mul(8).is_some())
        .ok_or_else(|| Error::Runtime(format!("a tensor of shape {shape:?} is too large")))
}

fn check_len(shape: &[usize], len: usize) -> Result<()> {
    if elements(shape)? != len {
        return Err(Error::Runtime(format!("{len} values given for shape {shape:?}")));
    }
    Ok(())
}
