//! Antialiased bilinear resizing, equal to PyTorch's `interpolate(mode="bilinear", antialias=True)`, which
//! torchvision's `Resize(antialias=True)` calls on tensors.
//!
//! Along each axis an output pixel is a weighted mean of input pixels: a triangle of half-width s = max(in / out, 1)
//! centred at (i + 1/2) in / out, its weights normalised to sum 1. Columns first, then rows.

/// Weights of one output pixel: the first input pixel, and one weight for each from there.
struct Taps {
    first: usize,
    weights: Vec<f32>,
}

/// `pixels` of (channels, height, width), resized to (height, width). A size that stays costs nothing along its axis.
pub fn resize_bilinear(pixels: &[f32], [c, h, w]: [usize; 3], [to_h, to_w]: [usize; 2]) -> Vec<f32> {
    let mut wide = Vec::with_capacity(c * h * to_w);
    if to_w == w {
        wide.extend_from_slice(pixels);
    } else {
        let taps = taps(w, to_w);
        for row in pixels.chunks(w) {
            wide.extend(
                taps.iter()
                    .map(|t| row[t.first..].iter().zip(&t.weights).fold(0f32, |sum, (&v, &weight)| sum + v * weight)),
            );
        }
    }
    if to_h == h {
        return wide;
    }
    let taps = taps(h, to_h);
    let mut out = vec![0f32; c * to_h * to_w];
    for (plane, to) in wide.chunks(h * to_w).zip(out.chunks_mut(to_h * to_w)) {
        for (t, to_row) in taps.iter().zip(to.chunks_mut(to_w)) {
            for (row, &weight) in plane.chunks(to_w).skip(t.first).zip(&t.weights) {
                to_row.iter_mut().zip(row).for_each(|(sum, &v)| *sum += v * weight);
            }
        }
    }
    out
}

fn taps(from: usize, to: usize) -> Vec<Taps> {
    let scale = from as f64 / to as f64;
    let support = scale.max(1.0);
    let tap = |i: usize| {
        let centre = scale * (i as f64 + 0.5);
        // `as usize` cuts towards zero and takes negative numbers for 0.
        let first = (centre - support + 0.5) as usize;
        let end = ((centre + support + 0.5) as usize).min(from);
        let triangle = |j: usize| (1.0 - ((j as f64 - centre + 0.5) / support).abs()).max(0.0);
        let weights: Vec<f64> = (first..end).map(triangle).collect();
        let sum: f64 = weights.iter().sum();
        Taps { first, weights: weights.into_iter().map(|v| (v / sum) as f32).collect() }
    };
    (0..to).map(tap).collect()
}
