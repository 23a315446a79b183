//! PNG previews: a grid of images, one channel through a colour map, three as RGB.

use std::path::Path;

use ::png::{BitDepth, ColorType, Compression, Encoder};

use crate::error::{Error, Result};
use crate::io::atomic::write_atomic;
use crate::io::colormap::inferno;

/// Pixels between neighbouring images, and their colour.
const GAP: usize = 2;
const GAP_COLOUR: u8 = 255;
/// Edge that small images are enlarged to, in pixels.
const TILE: usize = 160;
/// Largest preview, in pixels: beyond it images are shown smaller, then fewer.
const MAX_PIXELS: usize = 16 << 20;

/// Images to be shown and how.
#[derive(Clone, Debug)]
pub struct GridPng<'a> {
    /// (n, channels, height, width), row-major.
    pub images: &'a [f32],
    /// Number of images, at least 1.
    pub n: usize,
    /// Channels: 1 is drawn through the colour map, 3 are red, green and blue; of any other number each channel gets
    /// a tile of its own, side by side.
    pub channels: usize,
    /// Height of an image in pixels.
    pub height: usize,
    /// Width of an image in pixels.
    pub width: usize,
    /// Values drawn as the darkest and the brightest colour; what lies outside is clamped.
    pub range: (f32, f32),
    /// Images in a row; by default the grid is about square.
    pub columns: Option<usize>,
    /// Whole factor of enlargement; by default small images are enlarged to about 160 pixels.
    pub zoom: Option<usize>,
}

/// What [`write_grid_png`] has drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GridLayout {
    /// Images shown: the first ones, where all would make the file too large.
    pub shown: usize,
    /// Tiles in a row: images, times the channels where each has its own tile.
    pub columns: usize,
    /// Rows of tiles.
    pub rows: usize,
    /// Factor of enlargement.
    pub zoom: usize,
}

/// Draws the grid and writes it to `path`, whole or not at all. [`Error::Runtime`] if the sizes contradict each other
/// or the range is empty.
pub fn write_grid_png(path: impl AsRef<Path>, grid: &GridPng<'_>) -> Result<GridLayout> {
    let layout = grid.layout()?;
    let (pixels, width, height) = grid.draw(&layout);
    write_atomic(path, &encode(&pixels, width, height)?)?;
    Ok(layout)
}

impl GridPng<'_> {
    /// Tiles per image and planes per tile.
    fn tiles(&self) -> (usize, usize) {
        if self.channels == 3 { (1, 3) } else { (self.channels, 1) }
    }

    fn layout(&self) -> Result<GridLayout> {
        let sizes = [self.n, self.channels, self.height, self.width];
        let expected = sizes.iter().try_fold(1usize, |product, &extent| product.checked_mul(extent));
        let (low, high) = self.range;
        let ordered = low.is_finite() && high.is_finite() && low < high;
        if sizes.contains(&0) || expected != Some(self.images.len()) || !ordered {
            let found = self.images.len();
            return Err(Error::Runtime(format!(
                "preview: {found} values of sizes {sizes:?} in the range {:?}",
                self.range
            )));
        }
        let (tiles, _) = self.tiles();
        let place = |shown: usize, zoom: usize| {
            let columns = self.columns.unwrap_or_else(|| (shown as f64).sqrt().ceil() as usize).clamp(1, shown);
            GridLayout { shown, columns: columns * tiles, rows: shown.div_ceil(columns), zoom }
        };
        let fits = |layout: &GridLayout| {
            let (width, height) = self.size(layout);
            width.saturating_mul(height) <= MAX_PIXELS
        };
        let largest = self.height.max(self.width);
        let mut zoom = self.zoom.unwrap_or_else(|| TILE.div_ceil(largest).min(8)).max(1);
        while zoom > 1 && !fits(&place(self.n, zoom)) {
            zoom -= 1;
        }
        let mut shown = self.n;
        while shown > 1 && !fits(&place(shown, zoom)) {
            shown -= shown.div_ceil(16);
        }
        Ok(place(shown, zoom))
    }

    /// Width and height of the whole picture.
    fn size(&self, layout: &GridLayout) -> (usize, usize) {
        let edge = |count: usize, tile: usize| count.saturating_mul(tile.saturating_mul(layout.zoom) + GAP) + GAP;
        (edge(layout.columns, self.width), edge(layout.rows, self.height))
    }

    /// RGB bytes, width and height.
    fn draw(&self, layout: &GridLayout) -> (Vec<u8>, usize, usize) {
        let (width, height) = self.size(layout);
        let mut pixels = vec![GAP_COLOUR; width * height * 3];
        let (tiles, planes) = self.tiles();
        let plane = self.height * self.width;
        let mut line = Vec::with_capacity(self.width * layout.zoom * 3);
        for (index, tile) in self.images.chunks_exact(planes * plane).take(layout.shown * tiles).enumerate() {
            let left = GAP + (index % layout.columns) * (self.width * layout.zoom + GAP);
            let top = GAP + (index / layout.columns) * (self.height * layout.zoom + GAP);
            for y in 0..self.height {
                line.clear();
                for x in 0..self.width {
                    let at = y * self.width + x;
                    let colour = if planes == 1 {
                        inferno(self.scaled(tile[at]))
                    } else {
                        std::array::from_fn(|c| (self.scaled(tile[c * plane + at]) * 255.0).round() as u8)
                    };
                    (0..layout.zoom).for_each(|_| line.extend_from_slice(&colour));
                }
                for copy in 0..layout.zoom {
                    let start = ((top + y * layout.zoom + copy) * width + left) * 3;
                    pixels[start..start + line.len()].copy_from_slice(&line);
                }
            }
        }
        (pixels, width, height)
    }

    /// Position of a value in the range, clamped to 0..1. NaN stays NaN, which the colour map and the conversion to bytes take
    /// for 0.
    fn scaled(&self, value: f32) -> f32 {
        let (low, high) = self.range;
        // In f64, where the width of any finite f32 range is finite.
        ((f64::from(value) - f64::from(low)) / (f64::from(high) - f64::from(low))).clamp(0.0, 1.0) as f32
    }
}

fn encode(pixels: &[u8], width: usize, height: usize) -> Result<Vec<u8>> {
    let failed = |e: ::png::EncodingError| Error::Runtime(format!("preview: {e}"));
    let edge = |n: usize| u32::try_from(n).map_err(|_| Error::Runtime(format!("preview: {n} pixels are too many")));
    let mut out = Vec::new();
    let mut encoder = Encoder::new(&mut out, edge(width)?, edge(height)?);
    encoder.set_color(ColorType::Rgb);
    encoder.set_depth(BitDepth::Eight);
    encoder.set_compression(Compression::Balanced);
    let mut writer = encoder.write_header().map_err(failed)?;
    writer.write_image_data(pixels).map_err(failed)?;
    writer.finish().map_err(failed)?;
    Ok(out)
}
