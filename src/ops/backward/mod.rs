//! Backward of the transformer's operations, written by hand, with the forward passes that leave what they need.
//!
//! Gradients of parameters are added to (`+=`) and are kept in the wide type ([`crate::tensor::DType::wide`]), so that
//! accumulation over micro-batches is free; gradients of activations are written (`=`) in the model's type. Every
//! reduction has one fixed order and there are no float atomics, so the bits do not depend on threads; those of an image's
//! activation gradients depend neither on the batch nor on the image's place in it.

pub mod attention;
pub mod embed;
pub mod layernorm;
pub mod linear;
pub mod patch;
pub(super) mod product;
pub mod sums;

/// Layouts of the spec structs.
pub(super) fn layouts() -> [super::SpecLayout; 5] {
    [attention::LAYOUT, embed::LAYOUT, layernorm::LAYOUT, linear::LAYOUT, sums::LAYOUT]
}
