//! Sets of images with classes: reading them in the layouts seen in the wild, transforms, and batches for training.
//!
//! Images are f32, (channels, height, width), row-major. Nothing in a file is believed or executed: what does not fit
//! is refused with the file and the reason.

pub mod check;
pub mod convert;
pub mod folder;
pub mod image;
pub mod labels;
pub mod loader;
pub mod parameters;
pub mod random;
pub mod set;
pub mod simulate;
pub mod stats;
pub mod table;
pub mod transform;

pub use self::image::Image;
pub use self::loader::{Batch, Loader, LoaderState};
pub use self::parameters::ParameterTable;
pub use self::set::{DataSet, SourceOptions, splits};
pub use self::transform::TransformConfig;
