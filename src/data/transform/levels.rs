//! Steps that change values, and those that move pixels without reading between them.

/// Clips each plane of `len` values to its percentiles.
pub fn clip_percentile(pixels: &mut [f32], len: usize, [low, high]: [f64; 2]) {
    for plane in pixels.chunks_mut(len) {
        let mut sorted = plane.to_vec();
        sorted.sort_unstable_by(f32::total_cmp);
        let (low, high) = (percentile(&sorted, low), percentile(&sorted, high));
        plane.iter_mut().for_each(|v| *v = v.clamp(low, high));
    }
}

/// numpy's `percentile` with linear interpolation, of sorted values.
fn percentile(sorted: &[f32], percent: f64) -> f32 {
    let rank = percent / 100.0 * (sorted.len() - 1) as f64;
    let below = rank.floor() as usize;
    let (a, b) = (f64::from(sorted[below]), f64::from(sorted[(below + 1).min(sorted.len() - 1)]));
    (a + (b - a) * (rank - below as f64)) as f32
}

/// ln(1 + x).
pub fn log1p(pixels: &mut [f32]) -> Result<(), String> {
    if let Some(bad) = pixels.iter().find(|v| **v <= -1.0) {
        return Err(format!("log1p: found the value {bad}, expected values above -1"));
    }
    pixels.iter_mut().for_each(|v| *v = v.ln_1p());
    Ok(())
}

/// The least value becomes 0 and the greatest 1; equal values become 0.
pub fn min_max(pixels: &mut [f32]) {
    let low = pixels.iter().copied().fold(f32::INFINITY, f32::min);
    let high = pixels.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    // In f64, where the distance of two f32 values cannot overflow.
    let (low, span) = (f64::from(low), f64::from(high) - f64::from(low));
    pixels.iter_mut().for_each(|v| *v = if span > 0.0 { ((f64::from(*v) - low) / span) as f32 } else { 0.0 });
}

/// `low` becomes 0 and `high` 1.
pub fn from_range(pixels: &mut [f32], [low, high]: [f32; 2]) {
    pixels.iter_mut().for_each(|v| *v = (*v - low) / (high - low));
}

/// 0 becomes `low` and 1 `high`.
pub fn to_range(pixels: &mut [f32], [low, high]: [f32; 2]) {
    pixels.iter_mut().for_each(|v| *v = *v * (high - low) + low);
}

/// The square of `side` at the centre of planes of `h` by `w`; an odd margin is halved to the even number.
pub fn centre_crop(pixels: &[f32], [c, h, w]: [usize; 3], side: usize) -> Result<Vec<f32>, String> {
    if side > h.min(w) {
        return Err(format!("crop: found {h} x {w} pixels, expected at least {side} x {side}"));
    }
    let margin = |extent: usize| {
        let half = (extent - side) / 2;
        // Python's round: k + 1/2 goes to the even neighbour.
        if (extent - side) % 2 == 1 && half % 2 == 1 { half + 1 } else { half }
    };
    let (top, left) = (margin(h), margin(w));
    let mut out = Vec::with_capacity(c * side * side);
    for plane in pixels.chunks(h * w) {
        for row in plane.chunks(w).skip(top).take(side) {
            out.extend_from_slice(&row[left..left + side]);
        }
    }
    Ok(out)
}

/// Mirrors rows of `w` pixels.
pub fn flip_horizontal(pixels: &mut [f32], w: usize) {
    pixels.chunks_mut(w).for_each(<[f32]>::reverse);
}

/// Mirrors a plane of rows of `w` pixels.
pub fn flip_vertical(plane: &mut [f32], w: usize) {
    let h = plane.len() / w;
    for y in 0..h / 2 {
        let (above, below) = plane.split_at_mut((h - 1 - y) * w);
        above[y * w..][..w].swap_with_slice(&mut below[..w]);
    }
}
