//! Counter-based noise: standard normal numbers that depend on (seed, image index, stream, position) only.
//!
//! Bits come from Philox4x32-10 (Salmon, Moraes, Dror & Shaw 2011, "Parallel random numbers: as easy as 1, 2, 3")
//! with key = seed (low, high word) and counter = (index low, index high, draw / 4, stream). Each pair of words gives two
//! normals (Box & Muller 1958).
//!
//! `kernels/normal.cuh` mirrors this file operation by operation. Everything between the bits and the normals is addition,
//! multiplication, fused multiply-add, division and square root, all correctly rounded by IEEE 754, in one fixed order and
//! without a library function, so the same call gives the same bits on every device. Where the kernel says `__fmaf_rn`, this
//! file says [`f32::mul_add`]; nothing else may be fused, and nothing here may be reassociated.

/// Four random words for a 128-bit counter and a 64-bit key: Philox4x32 with ten rounds, as in Random123.
#[inline]
pub fn philox4x32_10(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    let ([mut c0, mut c1, mut c2, mut c3], [mut k0, mut k1]) = (counter, key);
    for _ in 0..10 {
        let (p0, p1) = (u64::from(c0) * 0xD251_1F53, u64::from(c2) * 0xCD9E_8D57);
        (c0, c1, c2, c3) = ((p1 >> 32) as u32 ^ c1 ^ k0, p1 as u32, (p0 >> 32) as u32 ^ c3 ^ k1, p0 as u32);
        k0 = k0.wrapping_add(0x9E37_79B9);
        k1 = k1.wrapping_add(0xBB67_AE85);
    }
    [c0, c1, c2, c3]
}

/// Fills `out` with draws 0, 1, 2, ... of image `index`: independent standard normal numbers, finite, within ±6.77.
///
/// The values depend on the four arguments' values and on the position in `out` alone: a shorter `out` is a prefix of a longer
/// one, and no image depends on another. `stream` separates uses of one seed (initial noise, training, ...).
/// Positions past 2^34 would repeat; no image is that large.
pub fn normals(seed: u64, index: u64, stream: u32, out: &mut [f32]) {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("fma") {
        // SAFETY: the processor has FMA, the one feature that `fill_fma` needs.
        return unsafe { fill_fma(seed, index, stream, out) };
    }
    fill(seed, index, stream, out);
}

/// [`fill`] with `mul_add` as one instruction; a fused multiply-add is exact, so the bits are the same.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "fma")]
fn fill_fma(seed: u64, index: u64, stream: u32, out: &mut [f32]) {
    fill(seed, index, stream, out);
}

#[inline(always)]
fn fill(seed: u64, index: u64, stream: u32, out: &mut [f32]) {
    let key = [seed as u32, (seed >> 32) as u32];
    for (four, chunk) in out.chunks_mut(4).enumerate() {
        let [a, b, c, d] = philox4x32_10([index as u32, (index >> 32) as u32, four as u32, stream], key);
        let ((p, q), (r, s)) = (box_muller(a, b), box_muller(c, d));
        for (to, v) in chunk.iter_mut().zip([p, q, r, s]) {
            *to = v;
        }
    }
}

/// Two normals from two words: radius sqrt(-2 ln u) with u = (a + 1/2) / 2^32, angle 2π b / 2^32.
#[inline(always)]
fn box_muller(a: u32, b: u32) -> (f32, f32) {
    let r = (-2.0 * ln_uniform(a)).sqrt();
    let (cos, sin) = cos_sin(b);
    (r * cos, r * sin)
}

/// ln((a + 1/2) / 2^32), relative error below 2e-7; always negative.
///
/// u = 2^k m with m in [√½, √2); ln m = 2 atanh(f / (2 + f)), f = m - 1 (coefficients and order of FreeBSD's `logf`).
/// From √½ on, f = u - 1 is taken from the complement of the word, which has all its bits where u rounds to 1.
#[inline(always)]
fn ln_uniform(a: u32) -> f32 {
    let unit = |word: u32| (word as f32).mul_add(2.328_306_4e-10, 1.164_153_2e-10); // (word + 1/2) / 2^32
    let bits = unit(a).to_bits().wrapping_add(0x3f80_0000 - 0x3f35_04f3);
    let upper = a >= 0xB504_F334; // √½ 2^32
    let k = if upper { 0.0 } else { ((bits >> 23) as i32 - 127) as f32 };
    let f = if upper { -unit(!a) } else { f32::from_bits((bits & 0x007f_ffff) + 0x3f35_04f3) - 1.0 };
    let s = f / (2.0 + f);
    let z = s * s;
    let w = z * z;
    let even = w * w.mul_add(0.242_790_79, 0.400_009_72);
    let odd = z * w.mul_add(0.284_987_87, 0.666_666_6);
    let half_square = 0.5 * f * f;
    let y = s * (half_square + (odd + even));
    let y = k.mul_add(9.058_001e-6, y);
    let y = y - half_square + f;
    k.mul_add(0.693_138_1, y)
}

/// (cos, sin) of 2π b / 2^32, each within 1e-7.
///
/// The quadrant is integer arithmetic; the rest, |t| <= π/4, goes through the polynomials of Cephes' `sinf` and `cosf`.
#[inline(always)]
fn cos_sin(b: u32) -> (f32, f32) {
    let quadrant = b.wrapping_add(0x2000_0000) >> 30;
    let t = b.wrapping_sub(quadrant << 30) as i32 as f32 * 1.462_918_1e-9; // (π/2) / 2^30
    let z = t * t;
    let s = z.mul_add(-1.951_529_6e-4, 8.332_161e-3);
    let s = z.mul_add(s, -0.166_666_55);
    let s = (z * t).mul_add(s, t);
    let c = z.mul_add(2.443_315_7e-5, -1.388_731_6e-3);
    let c = z.mul_add(c, 4.166_664_6e-2);
    let c = (z * z).mul_add(c, z.mul_add(-0.5, 1.0));
    let (x, y) = if quadrant & 1 == 1 { (s, c) } else { (c, s) };
    (if (quadrant + 1) & 2 == 2 { -x } else { x }, if quadrant & 2 == 2 { -y } else { y })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::f64::consts::{PI, TAU};

    fn draws(seed: u64, index: u64, stream: u32, n: usize) -> Vec<f32> {
        let mut out = vec![f32::NAN; n];
        normals(seed, index, stream, &mut out);
        out
    }

    /// Normal distribution function, by its series at zero (all terms positive: accurate to rounding).
    fn cdf(x: f64) -> f64 {
        let (mut term, mut sum, mut n) = (x, x, 1.0);
        while (term / sum).abs() > 1e-17 {
            n += 2.0;
            term *= x * x / n;
            sum += term;
        }
        if x == 0.0 { 0.5 } else { 0.5 + sum * (-0.5 * x * x).exp() / TAU.sqrt() }
    }

    #[test]
    fn philox_gives_the_published_vectors() {
        // kat_vectors of Random123, philox4x32 with 10 rounds
        let cases = [
            ([0; 4], [0; 2], [0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8]),
            ([u32::MAX; 4], [u32::MAX; 2], [0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd]),
            (
                [0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344],
                [0xa4093822, 0x299f31d0],
                [0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1],
            ),
        ];
        for (counter, key, want) in cases {
            assert_eq!(philox4x32_10(counter, key), want);
        }
    }

    #[test]
    fn normals_are_box_muller_of_the_documented_words() {
        let (seed, index, stream) = (0x0123_4567_89ab_cdef, 0xfedc_ba98_7654_3210, 5);
        let got = draws(seed, index, stream, 40_000);
        for (four, chunk) in got.chunks(4).enumerate() {
            let w = philox4x32_10([0x7654_3210, 0xfedc_ba98, four as u32, stream], [0x89ab_cdef, 0x0123_4567]);
            for (pair, v) in chunk.chunks(2).enumerate() {
                let (a, b) = (f64::from(w[2 * pair]), f64::from(w[2 * pair + 1]));
                let r = (-2.0 * ((a + 0.5) / 4294967296.0).ln()).sqrt();
                let (sin, cos) = (TAU * b / 4294967296.0).sin_cos();
                assert!((f64::from(v[0]) - r * cos).abs() < 1e-6, "{} {}", v[0], r * cos);
                assert!((f64::from(v[1]) - r * sin).abs() < 1e-6, "{} {}", v[1], r * sin);
            }
        }
    }

    #[test]
    fn every_pair_of_words_gives_finite_normals() {
        let edges: Vec<u32> = [0, 1 << 29, 1 << 30, 3 << 29, 1 << 31, 5 << 29, 3 << 30, 7 << 29]
            .iter()
            .flat_map(|&e: &u32| [-2i32, -1, 0, 1, 2, 127, 128, 129].map(|d| e.wrapping_add(d as u32)))
            .collect();
        let mut largest = 0f32;
        for &a in &edges {
            for &b in &edges {
                let (x, y) = box_muller(a, b);
                assert!(x.is_finite() && y.is_finite(), "{a:#x} {b:#x}: {x} {y}");
                largest = largest.max(x.abs()).max(y.abs());
            }
        }
        assert!((6.76..6.77).contains(&largest), "a word of zero gives the farthest value: {largest}");
        assert!(box_muller(u32::MAX, 0).0 > 1.5e-5, "the nearest to zero");
    }

    #[test]
    fn logarithm_and_angle_are_accurate_over_their_whole_range() {
        for i in 0..200_000u32 {
            let word = i.wrapping_mul(0x9E37_79B9) >> (i % 32);
            for word in [word, !word] {
                let want = ((f64::from(word) + 0.5) / 4294967296.0).ln();
                let got = f64::from(ln_uniform(word));
                assert!((got - want).abs() <= 2e-7 * want.abs(), "{word:#x}: {got}, expected {want}");
            }
            let (cos, sin) = cos_sin(i.wrapping_mul(0x9E37_79B9));
            let angle = PI * f64::from(i.wrapping_mul(0x9E37_79B9)) / 2147483648.0;
            assert!(
                (f64::from(cos) - angle.cos()).abs() < 1.2e-7 && (f64::from(sin) - angle.sin()).abs() < 1.2e-7,
                "{angle}"
            );
        }
    }

    #[test]
    fn moments_are_those_of_the_normal_distribution() {
        let v: Vec<f64> = draws(42, 7, 0, 1 << 20).into_iter().map(f64::from).collect();
        let n = v.len() as f64;
        // (power, mean of the power, variance of the power)
        for (power, mean, variance) in [(1, 0.0, 1.0), (2, 1.0, 2.0), (3, 0.0, 15.0), (4, 3.0, 96.0)] {
            let got = v.iter().map(|x| x.powi(power)).sum::<f64>() / n;
            assert!((got - mean).abs() < 4.0 * f64::sqrt(variance / n), "moment {power}: {got}, expected {mean}");
        }
    }

    #[test]
    fn the_distribution_passes_kolmogorov_smirnov() {
        for (seed, index, stream) in [(0, 0, 0), (1, 0, 0), (u64::MAX, 1 << 40, 3)] {
            let mut v = draws(seed, index, stream, 200_000);
            v.sort_by(f32::total_cmp);
            let n = v.len() as f64;
            let distance = v.iter().enumerate().fold(0f64, |d, (i, &x)| {
                let p = cdf(f64::from(x));
                d.max((p - i as f64 / n).abs()).max(((i + 1) as f64 / n - p).abs())
            });
            assert!(distance * n.sqrt() < 1.63, "seed {seed}: {}", distance * n.sqrt()); // 1 % of fair samples exceed it
        }
    }

    #[test]
    fn tails_are_as_heavy_as_they_should_be() {
        let v = draws(3, 0, 0, 4 << 20);
        for limit in [2.0, 3.0, 4.0, 4.5] {
            let p = cdf(-limit);
            let expected = v.len() as f64 * p;
            for sign in [-1.0, 1.0] {
                let got = v.iter().filter(|&&x| sign * f64::from(x) > limit).count() as f64;
                assert!(
                    (got - expected).abs() < 4.0 * expected.sqrt(),
                    "beyond {sign} {limit}: {got}, expected {expected}"
                );
            }
        }
    }

    #[test]
    fn an_image_depends_on_its_own_index_only() {
        let all: Vec<Vec<f32>> = (0..4).map(|i| draws(9, (1 << 32) - 2 + i, 1, 1003)).collect();
        assert_eq!(draws(9, (1 << 32) - 1, 1, 1003), all[1]);
        assert_eq!(draws(9, (1 << 32) - 1, 1, 10), all[1][..10]);
        let others =
            [draws(9, 0, 1, 1003), draws(9 + (1 << 32), (1 << 32) - 2, 1, 1003), draws(9, (1 << 32) - 2, 2, 1003)];
        let sets: Vec<&Vec<f32>> = all.iter().chain(&others).collect();
        for (i, a) in sets.iter().enumerate() {
            for b in &sets[..i] {
                let product: f64 = a.iter().zip(*b).map(|(x, y)| f64::from(x * y)).sum();
                assert!(product.abs() < 4.0 * f64::sqrt(a.len() as f64), "correlated: {product}");
            }
        }
    }

    #[test]
    fn bits_stay_what_they_are() {
        let got: Vec<u32> = draws(42, 0, 0, 8).into_iter().map(f32::to_bits).collect();
        assert_eq!(got, PINNED);
        let mut plain = vec![0.0; 4099];
        fill(42, 0, 0, &mut plain);
        assert_eq!(draws(42, 0, 0, 4099), plain, "with and without FMA instructions");
    }

    /// Draws 0..8 of seed 42, image 0, stream 0.
    const PINNED: [u32; 8] =
        [0xbf785e5c, 0x3e46ace8, 0xbf9e28d2, 0x3ff6433c, 0x40082c16, 0x400a53f4, 0xbed108e0, 0xbfd472c9];
}
