//! f32 functions without branches or table look-ups, so that loops over them become vector instructions.

// ln 2 in two parts: the first has few enough bits for n * LN2_HI to be exact.
const LN2_HI: f32 = 0.693_359_4;
const LN2_LO: f32 = -2.121_944_4e-4;
/// Adding 1.5 * 2^23 rounds to the nearest integer and leaves it in the low mantissa bits.
const ROUND: f32 = 12_582_912.0;

/// e^r of |r| <= ln 2 / 2.
#[inline(always)]
fn exp_of_remainder(r: f32) -> f32 {
    let mut p = 1.987_569_1e-4f32;
    p = p.mul_add(r, 1.398_2e-3);
    p = p.mul_add(r, 8.333_452e-3);
    p = p.mul_add(r, 4.166_579_6e-2);
    p = p.mul_add(r, 1.666_666_5e-1);
    p = p.mul_add(r, 0.5);
    p.mul_add(r * r, r) + 1.0
}

/// e^x by Cody-Waite reduction and a degree-6 polynomial (Cephes `expf` coefficients); within 2 ulp, 0 below -87.3,
/// infinity above 88.7.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    let clamped = x.clamp(-88.0, 88.8);
    let shifted = clamped.mul_add(std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let y = exp_of_remainder(n.mul_add(-LN2_LO, n.mul_add(-LN2_HI, clamped)));
    // 2^n in two factors, so that n = 128 does not overflow before y < 1 brings it back.
    let n = shifted.to_bits() as i32 - ROUND.to_bits() as i32;
    let half = n >> 1;
    let scale = |k: i32| f32::from_bits(((k + 127) << 23) as u32);
    let y = y * scale(half) * scale(n - half);
    let y = if x < -87.336_54 { 0.0 } else { y };
    let y = if x > 88.722_84 { f32::INFINITY } else { y };
    if x.is_nan() { x } else { y }
}

/// e^x of x <= 0, by the reduction and polynomial of [`exp`]: 0 below -87.3.
#[inline(always)]
pub fn exp_of_nonpositive(x: f32) -> f32 {
    let shifted = x.mul_add(std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let y = exp_of_remainder(n.mul_add(-LN2_LO, n.mul_add(-LN2_HI, x)));
    let scale = shifted.to_bits().wrapping_sub(ROUND.to_bits()).wrapping_add(127) << 23;
    if x < -87.336_54 { 0.0 } else { y * f32::from_bits(scale) }
}

/// Hyperbolic tangent: an odd polynomial near 0 (Cephes `tanhf` coefficients), 1 - 2 / (e^2x + 1) elsewhere.
#[inline(always)]
pub fn tanh(x: f32) -> f32 {
    let a = x.abs();
    let s = x * x;
    let mut p = -5.704_988_7e-3f32;
    p = p.mul_add(s, 2.063_909e-2);
    p = p.mul_add(s, -5.373_97e-2);
    p = p.mul_add(s, 1.333_144_2e-1);
    p = p.mul_add(s, -3.333_328e-1);
    let near = (p * s).mul_add(x, x);
    let far = (1.0 - 2.0 / (exp(2.0 * a) + 1.0)).copysign(x);
    if a < 0.625 { near } else { far }
}

/// Error function: x times the polynomial of degree 14 in x^2 that interpolates erf(x) / x at the Chebyshev nodes of [-3.75, 3.75],
/// and erf(3.75) = 1 - 1.1e-7 beyond; absolute error below 2.5e-7. A quotient of polynomials has fewer terms, but a division
/// takes longer than all of these.
#[inline(always)]
pub fn erf(x: f32) -> f32 {
    const BOUND: f32 = 3.75;
    let x = x.clamp(-BOUND, BOUND);
    // From -1 to 1, where the powers are no larger than their sum.
    let s = (x * x).mul_add(2.0 / (BOUND * BOUND), -1.0);
    let mut p = 9.393_414_4e-4f32;
    p = p.mul_add(s, -2.264_228_9e-3);
    p = p.mul_add(s, 1.676_008_5e-3);
    p = p.mul_add(s, -2.870_396_5e-3);
    p = p.mul_add(s, 9.416_801e-3);
    p = p.mul_add(s, -1.689_503_7e-2);
    p = p.mul_add(s, 2.474_224_6e-2);
    p = p.mul_add(s, -3.722_126_8e-2);
    p = p.mul_add(s, 5.369_383_5e-2);
    p = p.mul_add(s, -7.163_875_6e-2);
    p = p.mul_add(s, 9.072_829e-2);
    p = p.mul_add(s, -1.119_364e-1);
    p = p.mul_add(s, 1.392_694_4e-1);
    p = p.mul_add(s, -1.880_301_5e-1);
    p = p.mul_add(s, 3.770_569_3e-1);
    x * p
}

#[cfg(test)]
mod tests {
    /// Largest |got - want| / (want_scale) over a fine grid.
    fn worst(range: (f32, f32), got: impl Fn(f32) -> f32, want: impl Fn(f64) -> f64, relative: bool) -> f64 {
        (0..=400_000)
            .map(|i| range.0 + (range.1 - range.0) * (i as f32 / 400_000.0))
            .map(|x| {
                let w = want(x as f64);
                (got(x) as f64 - w).abs() / if relative { w.abs() } else { 1.0 }
            })
            .fold(0.0, f64::max)
    }

    #[test]
    fn exp_is_within_two_ulp() {
        assert!(worst((-87.0, 88.7), super::exp, f64::exp, true) < 2.0 * f32::EPSILON as f64);
        assert_eq!(super::exp(0.0), 1.0);
        assert_eq!(super::exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(super::exp(f32::INFINITY), f32::INFINITY);
        assert!(super::exp(f32::NAN).is_nan());
        for x in (0..=400_000).map(|i| -90.0 * (i as f32 / 400_000.0)).chain([-0.0, f32::NEG_INFINITY, f32::MIN]) {
            assert_eq!(super::exp_of_nonpositive(x), super::exp(x), "{x}");
        }
        assert!(super::exp_of_nonpositive(f32::NAN).is_nan());
    }

    #[test]
    fn tanh_and_erf_are_accurate() {
        assert!(worst((-10.0, 10.0), super::tanh, f64::tanh, false) < 2e-7);
        assert!(worst((-6.0, 6.0), super::erf, libm::erf, false) < 2.5e-7);
        assert_eq!(super::tanh(0.0), 0.0);
        assert!(super::erf(f32::NAN).is_nan() && super::tanh(f32::NAN).is_nan());
    }
}
