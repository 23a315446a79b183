//! What one kernel launch is made of, tensor maps included.

use std::ffi::c_void;
use std::mem::MaybeUninit;

use cudarc::driver::sys;

use super::trace::Work;
use crate::error::{Error, Result};

/// One kernel launch, described once: pointers first, then one spec struct by value, then tensor maps.
#[derive(Default)]
pub(crate) struct Launch<'a> {
    /// The `.cu` file that holds the kernel.
    pub module: &'static str,
    /// Exported name.
    pub kernel: String,
    /// Blocks in x, y, z.
    pub grid: [u32; 3],
    /// Threads per block.
    pub threads: u32,
    /// Dynamic shared memory in bytes.
    pub shared_bytes: u32,
    /// Device addresses, in the kernel's order; 0 for a null pointer.
    pub pointers: &'a [u64],
    /// Bytes of the spec struct; empty for a kernel without one.
    pub spec: &'a [u8],
    /// What the kernel takes as `dev::TensorMap`.
    pub maps: &'a [TensorMap],
    /// The least that it has to do.
    pub work: Work,
    /// Blocks of a cluster, all along z: 0 or 1 for none, else a divisor of the grid's z. Hopper only.
    pub cluster: u32,
}

impl Launch<'_> {
    /// Addresses of the parameters, for the driver to read.
    pub(super) fn params(&self) -> Vec<*mut c_void> {
        let pointers = self.pointers.iter().map(|p| (&raw const *p).cast_mut().cast());
        let spec = (!self.spec.is_empty()).then(|| self.spec.as_ptr().cast_mut().cast());
        let maps = self.maps.iter().map(|m| (&raw const m.0).cast_mut().cast());
        pointers.chain(spec).chain(maps).collect()
    }

    /// Launch attributes: the cluster, and `dependent` as programmatic stream serialization.
    pub(super) fn attributes(&self, dependent: bool) -> Vec<sys::CUlaunchAttribute> {
        use sys::CUlaunchAttributeID as Id;
        let attribute = |id, set: &dyn Fn(&mut sys::CUlaunchAttributeValue)| {
            // SAFETY: a struct of plain values and unions of such, all of which may be zero.
            let mut attribute: sys::CUlaunchAttribute = unsafe { MaybeUninit::zeroed().assume_init() };
            attribute.id = id;
            set(&mut attribute.value);
            attribute
        };
        let cluster = (self.cluster > 1).then(|| {
            attribute(Id::CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION, &|v| {
                v.clusterDim = sys::CUlaunchAttributeValue_union__bindgen_ty_1 { x: 1, y: 1, z: self.cluster };
            })
        });
        let dependent = dependent.then(|| {
            let id = Id::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION;
            attribute(id, &|v| v.programmaticStreamSerializationAllowed = 1)
        });
        cluster.into_iter().chain(dependent).collect()
    }
}

/// How TMA reads a matrix of 16-bit numbers: in tiles of some rows and 64 columns, swizzled over 128 bytes, zero outside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TensorMap(sys::CUtensorMap);

impl TensorMap {
    /// Columns of a tile: the 128 bytes of the swizzle.
    pub const COLUMNS: usize = 64;

    /// Of a row-major matrix [rows, columns] at a device address, in tiles of `tile_rows`. `bf16` tells its numbers from f16.
    ///
    /// # Errors
    /// A device error where the address or a row is no multiple of 16 bytes, or a tile has no rows or more than 256.
    pub fn new(address: u64, bf16: bool, rows: usize, columns: usize, tile_rows: usize) -> Result<Self> {
        use sys::CUtensorMapDataType as Type;
        let kind = if bf16 { Type::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 } else { Type::CU_TENSOR_MAP_DATA_TYPE_FLOAT16 };
        let (size, stride) = ([columns as u64, rows as u64], 2 * columns as u64);
        let (tile, steps) = ([Self::COLUMNS as u32, tile_rows as u32], [1u32; 2]);
        let mut map = MaybeUninit::<sys::CUtensorMap>::zeroed();
        // SAFETY: every array has the length that the rank of 2 asks for and lives through the call, `map` is aligned as
        // its type says, and the matrix itself is not touched.
        let status = unsafe {
            sys::cuTensorMapEncodeTiled(
                map.as_mut_ptr(),
                kind,
                2,
                address as *mut c_void,
                size.as_ptr(),
                &stride,
                tile.as_ptr(),
                steps.as_ptr(),
                sys::CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
                sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B,
                sys::CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                sys::CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
            )
        };
        status.result().map_err(|e| {
            Error::device(format!("tensor map of [{rows}, {columns}] in tiles of {tile_rows} rows: {e}"))
        })?;
        // SAFETY: zeroed bytes, then written by the driver; any bytes are a valid map.
        Ok(Self(unsafe { map.assume_init() }))
    }
}
