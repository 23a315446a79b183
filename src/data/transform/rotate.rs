//! Rotation about the centre, as torchvision's `functional.rotate` on tensors without a fill: counter-clockwise by
//! degrees, same size, zeros outside.

use serde::{Deserialize, Serialize};

/// How a value between pixels is read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Interpolation {
    /// The pixel next to it: torchvision's default, and ours.
    #[default]
    Nearest,
    /// The four around it, weighted by nearness.
    Bilinear,
}

/// `pixels` of (channels, height, width), rotated by `degrees`.
///
/// The output pixel at (x, y) from the centre shows the input at (x cos a - y sin a, x sin a + y cos a): rows run
/// downward, so this turns the picture counter-clockwise.
pub fn rotate(pixels: &[f32], [c, h, w]: [usize; 3], degrees: f64, interpolation: Interpolation) -> Vec<f32> {
    let (sin, cos) = degrees.to_radians().sin_cos();
    let (centre_x, centre_y) = ((w as f64 - 1.0) / 2.0, (h as f64 - 1.0) / 2.0);
    let mut out = vec![0f32; c * h * w];
    for y in 0..h {
        for x in 0..w {
            let (dx, dy) = (x as f64 - centre_x, y as f64 - centre_y);
            let source = (dx * cos - dy * sin + centre_x, dx * sin + dy * cos + centre_y);
            for (plane, to) in pixels.chunks(h * w).zip(out.chunks_mut(h * w)) {
                let at = |x: f64, y: f64| {
                    let inside = x >= 0.0 && y >= 0.0 && x < w as f64 && y < h as f64;
                    if inside { plane[y as usize * w + x as usize] } else { 0.0 }
                };
                to[y * w + x] = match interpolation {
                    Interpolation::Nearest => at(source.0.round_ties_even(), source.1.round_ties_even()),
                    Interpolation::Bilinear => {
                        let (left, top) = (source.0.floor(), source.1.floor());
                        let (fx, fy) = ((source.0 - left) as f32, (source.1 - top) as f32);
                        let upper = at(left, top) * (1.0 - fx) + at(left + 1.0, top) * fx;
                        let lower = at(left, top + 1.0) * (1.0 - fx) + at(left + 1.0, top + 1.0) * fx;
                        upper * (1.0 - fy) + lower * fy
                    }
                };
            }
        }
    }
    out
}
