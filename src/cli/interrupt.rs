//! Ctrl-C and termination: the first one asks for an early end, the second one ends the process.

use std::sync::atomic::{AtomicBool, Ordering};

use arclet::error::{Error, Result};

static REQUESTED: AtomicBool = AtomicBool::new(false);

/// Starts to listen.
///
/// # Errors
/// [`Error::Runtime`] if the system refuses the handler.
pub fn listen() -> Result<()> {
    ctrlc::set_handler(|| {
        if REQUESTED.swap(true, Ordering::SeqCst) {
            std::process::exit(130);
        }
    })
    .map_err(|e| Error::Runtime(format!("cannot listen for Ctrl-C: {e}")))
}

/// Whether the user has asked for an end.
pub fn requested() -> bool {
    REQUESTED.load(Ordering::SeqCst)
}
