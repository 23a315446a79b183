//! The model that is part of the program. Its bytes are here and not in the library, so that programs built on the
//! library do not carry them.

use arclet::error::Result;
use arclet::io::Checkpoint;

/// Name of the embedded model.
pub const NAME: &str = "lens-dit-s";

static WEIGHTS: &[u8] = include_bytes!("../../weights/lens-dit-s/model.safetensors");
static CONFIG: &str = include_str!("../../weights/lens-dit-s/config.json");

/// The embedded model.
///
/// # Errors
/// None, as a test opens it.
pub fn checkpoint() -> Result<Checkpoint> {
    Checkpoint::from_static(NAME, WEIGHTS, Some(CONFIG))
}
