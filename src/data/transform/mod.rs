//! What happens to an image between its file and the model. The steps have one order, whatever the order in the
//! settings: clip, log1p, normalize, resize, crop, rotate, flip, repeat channels, output range.

mod levels;
mod resize;
mod rotate;

pub use self::resize::resize_bilinear;
pub use self::rotate::{Interpolation, rotate};

use serde::{Deserialize, Serialize};

use crate::data::image::Image;
use crate::data::random::Draw;
use crate::error::{Error, Result};
use crate::io::known;

/// Largest side that an image is resized to.
const MAX_SIDE: usize = 8192;

/// The settings; what is left out does not happen.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TransformConfig {
    /// Per image and channel, values below the first and above the second percentile become these (numpy's linear ones).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clip_percentile: Option<[f64; 2]>,
    /// ln(1 + x) of every value; values of -1 and below are refused.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub log1p: bool,
    /// To the range 0 to 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub normalize: Option<Normalize>,
    /// Antialiased bilinear, as torchvision's `Resize(antialias=True)` on tensors: one number is the shorter side.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resize: Option<Size>,
    /// Centre crop to a square of this side, as torchvision's `CenterCrop`; smaller images are refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub crop: Option<usize>,
    /// Random angle in degrees from minus to plus this, about the centre; outside the image is 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rotate: Option<f64>,
    /// How a rotation reads between pixels: `nearest` (torchvision's default) or `bilinear`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interpolation: Option<Interpolation>,
    /// Probability of a mirror image, left to right.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub horizontal_flip: Option<f64>,
    /// Probability of a mirror image, top to bottom.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vertical_flip: Option<f64>,
    /// A single channel, this many times.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub repeat_channels: Option<usize>,
    /// 0 and 1 become these two values; [-1, 1] is what the models take.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub output_range: Option<[f32; 2]>,
}

/// How values come to the range 0 to 1.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Normalize {
    /// By the least and the greatest value of the image; an image of one value becomes 0.
    MinMax,
    /// The same, channel by channel.
    MinMaxChannel,
    /// These two values become 0 and 1; values outside stay outside.
    Range([f32; 2]),
}

/// A size in pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Size {
    /// The shorter side; the longer one keeps the proportion.
    Shorter(usize),
    /// Height and width.
    Exact([usize; 2]),
}

/// Every key of the settings, in the order of the steps.
pub const KEYS: [&str; 11] = [
    "clip_percentile",
    "log1p",
    "normalize",
    "resize",
    "crop",
    "rotate",
    "interpolation",
    "horizontal_flip",
    "vertical_flip",
    "repeat_channels",
    "output_range",
];

impl TransformConfig {
    /// Settings from a TOML table. The reason names an unknown key and the nearest known one, or the key whose value
    /// does not fit.
    pub fn from_table(table: &toml::Table) -> Result<Self, String> {
        let config: Self = known::from_table(table, &KEYS)?;
        config.validate()?;
        Ok(config)
    }

    /// Settings from the text of a TOML file. [`Error::Input`] names `path`.
    pub fn from_toml(path: &std::path::Path, text: &str) -> Result<Self> {
        let table = text.parse::<toml::Table>().map_err(|e| format!("TOML: {}", e.message()));
        table.and_then(|t| Self::from_table(&t)).map_err(|reason| Error::input(path, reason))
    }

    /// Whether any step depends on chance.
    pub fn is_random(&self) -> bool {
        let active = |p: Option<f64>| p.is_some_and(|p| p > 0.0);
        active(self.rotate) || active(self.horizontal_flip) || active(self.vertical_flip)
    }

    /// A reason why values contradict themselves.
    pub fn validate(&self) -> Result<(), String> {
        let refuse =
            |key: &str, found: String, expected: &str| Err(format!("key {key:?}: found {found}, expected {expected}"));
        if let Some([low, high]) = self.clip_percentile
            && !(0.0 <= low && low < high && high <= 100.0)
        {
            return refuse("clip_percentile", format!("[{low}, {high}]"), "two rising numbers from 0 to 100");
        }
        if let Some(Normalize::Range([low, high])) = self.normalize
            && !(low.is_finite() && high.is_finite() && low < high)
        {
            return refuse("normalize", format!("the range [{low}, {high}]"), "two rising numbers");
        }
        let sides = match self.resize {
            None => [1, 1],
            Some(Size::Shorter(side)) => [side, side],
            Some(Size::Exact(sides)) => sides,
        };
        for (key, side) in [("resize", sides[0]), ("resize", sides[1]), ("crop", self.crop.unwrap_or(1))] {
            if !(1..=MAX_SIDE).contains(&side) {
                return refuse(key, side.to_string(), "1 to 8192 pixels");
            }
        }
        if let Some(angle) = self.rotate.filter(|a| !(0.0..=180.0).contains(a)) {
            return refuse("rotate", angle.to_string(), "0 to 180 degrees");
        }
        for (key, p) in [("horizontal_flip", self.horizontal_flip), ("vertical_flip", self.vertical_flip)] {
            if let Some(p) = p.filter(|p| !(0.0..=1.0).contains(p)) {
                return refuse(key, p.to_string(), "a probability");
            }
        }
        if let Some(n) = self.repeat_channels.filter(|n| !(1..=16).contains(n)) {
            return refuse("repeat_channels", n.to_string(), "1 to 16");
        }
        if let Some([low, high]) = self.output_range
            && !(low.is_finite() && high.is_finite() && low < high)
        {
            return refuse("output_range", format!("[{low}, {high}]"), "two rising numbers");
        }
        Ok(())
    }

    /// The image after all steps; the random ones only with a `draw`. A reason for an image that a step cannot take.
    pub fn apply(&self, image: Image, draw: Option<Draw>) -> Result<Image, String> {
        let Image { shape: [mut c, mut h, mut w], mut pixels, number } = image;
        if let Some(percentiles) = self.clip_percentile {
            levels::clip_percentile(&mut pixels, h * w, percentiles);
        }
        if self.log1p {
            levels::log1p(&mut pixels)?;
        }
        match self.normalize {
            None => {}
            Some(Normalize::MinMax) => levels::min_max(&mut pixels),
            Some(Normalize::MinMaxChannel) => pixels.chunks_mut(h * w).for_each(levels::min_max),
            Some(Normalize::Range(range)) => levels::from_range(&mut pixels, range),
        }
        if let Some(size) = self.resize {
            let [to_h, to_w] = size.of(h, w)?;
            pixels = resize_bilinear(&pixels, [c, h, w], [to_h, to_w]);
            (h, w) = (to_h, to_w);
        }
        if let Some(side) = self.crop {
            pixels = levels::centre_crop(&pixels, [c, h, w], side)?;
            (h, w) = (side, side);
        }
        if let Some(draw) = draw {
            if let Some(limit) = self.rotate.filter(|&a| a > 0.0) {
                let angle = (2.0 * draw.rotation - 1.0) * limit;
                pixels = rotate(&pixels, [c, h, w], angle, self.interpolation.unwrap_or_default());
            }
            if self.horizontal_flip.is_some_and(|p| draw.horizontal < p) {
                levels::flip_horizontal(&mut pixels, w);
            }
            if self.vertical_flip.is_some_and(|p| draw.vertical < p) {
                pixels.chunks_mut(h * w).for_each(|plane| levels::flip_vertical(plane, w));
            }
        }
        if let Some(n) = self.repeat_channels {
            if c != 1 {
                return Err(format!("repeat_channels: found {c} channels, expected one"));
            }
            pixels = pixels.repeat(n);
            c = n;
        }
        if let Some(range) = self.output_range {
            levels::to_range(&mut pixels, range);
        }
        Ok(Image { shape: [c, h, w], pixels, number })
    }
}

impl Size {
    /// Height and width that an image of `h` by `w` gets: the longer side is cut to whole pixels, as torchvision does.
    fn of(self, h: usize, w: usize) -> Result<[usize; 2], String> {
        let [to_h, to_w] = match self {
            Self::Exact(sides) => sides,
            Self::Shorter(side) => {
                let longer = |long: usize, short: usize| (side as u128 * long as u128 / short as u128) as usize;
                if h <= w { [side, longer(w, h)] } else { [longer(h, w), side] }
            }
        };
        if to_h.max(to_w) > MAX_SIDE {
            return Err(format!(
                "resize: {h} x {w} pixels would become {to_h} x {to_w}, expected at most {MAX_SIDE} a side"
            ));
        }
        Ok([to_h, to_w])
    }
}
