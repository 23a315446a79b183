//! f32 functions without branches or table look-ups, so that loops over them become vector instructions.

// ln 2 in two parts: the first has few enough bits for n * LN2_HI to be exact.
const LN2_HI: f32 = 0.693_359_4;
const LN2_LO: f32 = -2.121_944_4e-4;
/// Adding 1.5 * 2^23 rounds to the nearest integer and leaves it in the low mantissa bits.
pub const ROUND: f32 = 12_582_912.0;

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

/// Coefficients of [`exp2_for_bf16`], those of lower powers first.
pub const EXP2_FOR_BF16: [f32; 4] = [9.999_28e-1, 6.932_61e-1, 2.426_111_3e-1, 5.517_167e-2];
/// Where [`exp2_for_bf16`] stops to fall.
pub const EXP2_FOR_BF16_LEAST: f32 = -125.0;

/// 2^x of -125 <= x <= 0, and 2^-125 below, to a relative error of 7.5e-5, a fiftieth of that of a bf16: for what is rounded
/// to one. The minimax polynomial of degree 3 on [-1/2, 1/2].
#[inline(always)]
pub fn exp2_for_bf16(x: f32) -> f32 {
    let x = if x < EXP2_FOR_BF16_LEAST { EXP2_FOR_BF16_LEAST } else { x };
    let shifted = x + ROUND;
    let f = x - (shifted - ROUND);
    let [c0, c1, c2, c3] = EXP2_FOR_BF16;
    let p = c3.mul_add(f, c2).mul_add(f, c1).mul_add(f, c0);
    f32::from_bits(p.to_bits().wrapping_add(shifted.to_bits() << 23))
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

/// Phi(x), the normal distribution's, with which x Phi(x) is known to 5e-5, and to 3e-4 of itself where it is above 0.1: for what
/// is rounded to bf16. A polynomial of degree 8 in x^2, minimax in x Phi(x) on [-4.5, 4.5] under the condition that it ends
/// at 0 and 1.
#[inline(always)]
pub fn phi_for_bf16(x: f32) -> f32 {
    const BOUND: f32 = 4.5;
    let x = x.clamp(-BOUND, BOUND);
    let s = (x * x).mul_add(2.0 / (BOUND * BOUND), -1.0);
    let mut p = 3.172_907e-3f32;
    p = p.mul_add(s, -9.126_804e-3);
    p = p.mul_add(s, 1.239_275e-2);
    p = p.mul_add(s, -1.697_400_8e-2);
    p = p.mul_add(s, 2.758_987_6e-2);
    p = p.mul_add(s, -4.048_691e-2);
    p = p.mul_add(s, 5.481_763_6e-2);
    p = p.mul_add(s, -7.717_66e-2);
    p = p.mul_add(s, 1.569_022_7e-1);
    x.mul_add(p, 0.5)
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
    fn functions_for_bf16_are_far_below_its_rounding() {
        assert!(worst((-125.0, 0.0), super::exp2_for_bf16, f64::exp2, true) < 8e-5);
        let least = super::exp2_for_bf16(-125.0);
        assert!(least > 0.0 && [-126.0, -1e9, f32::NEG_INFINITY].iter().all(|&x| super::exp2_for_bf16(x) == least));
        assert!(super::exp2_for_bf16(f32::NAN).is_nan());
        let gelu = |x: f64| 0.5 * x * (1.0 + libm::erf(x * std::f64::consts::FRAC_1_SQRT_2));
        let coarse = |x: f32| x * super::phi_for_bf16(x);
        assert!(worst((-6.0, 6.0), coarse, gelu, false) < 6e-5);
        assert!(worst((0.2, 20.0), coarse, gelu, true) < 3.1e-4);
        assert!((super::phi_for_bf16(30.0) - 1.0).abs() < 1e-6 && super::phi_for_bf16(-30.0).abs() < 1e-6);
        assert!(super::phi_for_bf16(f32::NAN).is_nan());
    }

    #[test]
    fn tanh_and_erf_are_accurate() {
        assert!(worst((-10.0, 10.0), super::tanh, f64::tanh, false) < 2e-7);
        assert!(worst((-6.0, 6.0), super::erf, libm::erf, false) < 2.5e-7);
        assert_eq!(super::tanh(0.0), 0.0);
        assert!(super::erf(f32::NAN).is_nan() && super::tanh(f32::NAN).is_nan());
    }
}
