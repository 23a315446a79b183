//! One image out of one `.npy` file, in any of the layouts seen in the wild.

use std::path::Path;

use crate::error::{Error, Result};
use crate::io::object_npy::parse_any_npy;
use crate::io::{AnyNpy, NpyData, ObjectArray, ObjectValue, read_any_npy};

/// Most channels that the first axis of three is taken for.
pub const MAX_CHANNELS: usize = 16;

/// An image.
#[derive(Clone, Debug, PartialEq)]
pub struct Image {
    /// Channels, height, width.
    pub shape: [usize; 3],
    /// Row-major pixels.
    pub pixels: Vec<f32>,
    /// The number beside the image, where the file has one: the mass of `[image, mass]`, the label of a flat file.
    pub number: Option<f64>,
}

/// Reads an image: (H, W), (C, H, W) or flat numbers of any float or integer type, in C or Fortran order; flat numbers
/// with a label at their end; an object array of rows, or of an image and its mass. Pickles are read and never run.
/// [`Error::Input`] for anything else, and for pixels that are not finite.
pub fn read_image(path: impl AsRef<Path>) -> Result<Image> {
    let path = path.as_ref();
    let image = from_npy(read_any_npy(path)?).map_err(|reason| Error::input(path, reason))?;
    refuse_non_finite(&image.pixels, image.shape).map_err(|reason| Error::input(path, reason))?;
    Ok(image)
}

/// The image in the content of a `.npy` file; the error lacks the file's name.
pub fn parse_image(bytes: &[u8]) -> Result<Image, String> {
    let image = from_npy(parse_any_npy(bytes)?)?;
    refuse_non_finite(&image.pixels, image.shape)?;
    Ok(image)
}

fn from_npy(file: AnyNpy) -> Result<Image, String> {
    match file {
        AnyNpy::Numbers(array) => {
            let pixels = match array.data {
                NpyData::F32(values) => values,
                other => other.to_f32(),
            };
            shaped(&array.shape, pixels)
        }
        AnyNpy::Objects(array) => from_objects(&array),
    }
}

fn from_objects(array: &ObjectArray) -> Result<Image, String> {
    if let ([2], [first, second]) = (&array.shape[..], &array.items[..])
        && let Some(number) = single(second)
        && single(first).is_none()
    {
        let (shape, values) = first.to_numbers()?;
        let mut image = shaped(&shape, narrow(&values))?;
        image.number = Some(number);
        return Ok(image);
    }
    let (shape, values) = array.to_numbers()?;
    shaped(&shape, narrow(&values))
}

/// The value of a number, also as an array of one element.
fn single(value: &ObjectValue) -> Option<f64> {
    match value.to_numbers().ok()?.1[..] {
        [number] => Some(number),
        _ => None,
    }
}

fn narrow(values: &[f64]) -> Vec<f32> {
    values.iter().map(|&v| v as f32).collect()
}

/// An image of numbers, by their shape.
fn shaped(shape: &[usize], mut pixels: Vec<f32>) -> Result<Image, String> {
    let (shape, number) = match *shape {
        [h, w] => ([1, h, w], None),
        [c, h, w] if c <= MAX_CHANNELS => ([c, h, w], None),
        [n] => {
            let (side, labelled) = flat_side(n).ok_or_else(|| {
                format!("found {n} numbers in a row, expected a square of them, or one more for a label")
            })?;
            let label = if labelled { pixels.pop() } else { None };
            ([1, side, side], label.map(f64::from))
        }
        _ => {
            return Err(format!(
                "found shape {shape:?}, expected (H, W), (C, H, W) with at most {MAX_CHANNELS} channels, or a flat square"
            ));
        }
    };
    if shape.contains(&0) {
        return Err(format!("found shape {shape:?}, expected pixels"));
    }
    Ok(Image { shape, pixels, number })
}

/// Side of a flat square image of `n` numbers, and whether one of them is a label.
pub(crate) fn flat_side(n: usize) -> Option<(usize, bool)> {
    let side = n.isqrt();
    match n - side * side {
        0 if side > 0 => Some((side, false)),
        1 if side > 1 => Some((side, true)),
        _ => None,
    }
}

/// The first pixel that is NaN or infinite, as a reason.
pub(crate) fn refuse_non_finite(pixels: &[f32], shape: [usize; 3]) -> Result<(), String> {
    // One pass without an early exit vectorises; the second only runs on a broken image.
    if pixels.iter().fold(true, |all, v| all & v.is_finite()) {
        return Ok(());
    }
    let bad = pixels.iter().position(|v| !v.is_finite()).unwrap_or(0);
    let count = pixels.iter().filter(|v| !v.is_finite()).count();
    let [_, h, w] = shape;
    let (c, y, x) = (bad / (h * w), bad / w % h, bad % w);
    Err(format!(
        "{count} of {} pixels not finite, the first at channel {c}, row {y}, column {x}: {}",
        pixels.len(),
        pixels[bad]
    ))
}
