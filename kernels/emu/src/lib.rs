//! Emulated CUDA driver for tests.
