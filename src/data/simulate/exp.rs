//! The exponential function in f64, from additions and multiplications alone: compilers turn a loop of it into vector
//! instructions, and it gives the same bits everywhere.

/// 1.5 * 2^52: a number of ordinary size added to it is rounded to a whole one, which stands in its lowest bits.
const SHIFT: f64 = 6_755_399_441_055_744.0;
/// ln 2 in two parts; the first has 21 trailing zeros, so its products with exponents are exact (fdlibm).
const LN2: [f64; 2] = [6.931_471_803_691_238e-1, 1.908_214_929_270_587_7e-10];

/// e^x within 4e-16 of itself for -700 <= x <= 700; below, e^-700 (1e-304), above, e^700.
#[inline(always)]
pub(super) fn exp(x: f64) -> f64 {
    let x = if x > -700.0 { x } else { -700.0 };
    let x = if x < 700.0 { x } else { 700.0 };
    // x = k ln 2 + r with |r| <= ln 2 / 2.
    let shifted = x * std::f64::consts::LOG2_E + SHIFT;
    let k = shifted - SHIFT;
    let r = x - k * LN2[0] - k * LN2[1];
    // Taylor's series: the first term left out is below 1e-17.
    let mut series = 1.0 / 6_227_020_800.0;
    for coefficient in [
        1.0 / 479_001_600.0,
        1.0 / 39_916_800.0,
        1.0 / 3_628_800.0,
        1.0 / 362_880.0,
        1.0 / 40_320.0,
        1.0 / 5_040.0,
        1.0 / 720.0,
        1.0 / 120.0,
        1.0 / 24.0,
        1.0 / 6.0,
        0.5,
        1.0,
        1.0,
    ] {
        series = series * r + coefficient;
    }
    series * f64::from_bits(shifted.to_bits().wrapping_add(1023) << 52)
}

#[cfg(test)]
mod tests {
    use super::exp;

    #[test]
    fn it_is_the_exponential_function() {
        for i in -70_000..=70_000 {
            let x = f64::from(i) * 0.009_999_7;
            let want = libm::exp(x);
            assert!((exp(x) / want - 1.0).abs() < 4.5e-16, "{x}: {:e}, expected {want:e}", exp(x));
        }
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(-1e9), exp(-700.0));
        assert!(exp(-700.0) < 1e-303 && exp(1e9) == exp(700.0));
    }
}
