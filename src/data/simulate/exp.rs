//! The exponential function in f64, from additions and multiplications alone: compilers turn a loop of it into vector
//! instructions, and it gives the same bits everywhere.

/// 1.5 * 2^52: a number of ordinary size added to it is rounded to a whole one, which stands in its lowest bits.
const SHIFT: f64 = 6_755_399_441_055_744.0;
/// ln 2 in two parts; the first has 21 trailing zeros, so its products with exponents are exact (fdlibm).
const LN2: [f64; 2] = [6.931_471_803_691_238e-1, 1.908_214_929_270_587_7e-10];

/// e^x within 3e-16 of itself for -700 <= x <= 700; below, e^-700 (1e-304), above, e^700.
#[inline(always)]
pub(super) fn exp(x: f64) -> f64 {
    let x = if x > -700.0 { x } else { -700.0 };
    let x = if x < 700.0 { x } else { 700.0 };
    // x = k ln 2 + r with |r| <= ln 2 / 2.
    let shifted = x * std::f64::consts::LOG2_E + SHIFT;
    let k = shifted - SHIFT;
    let r = x - k * LN2[0] - k * LN2[1];
    // Taylor's series up to r^13 / 13!; the first term left out is below 1e-17. In pairs, which need not wait for another,
    // and the large terms last.
    let (r2, c) = (r * r, INVERSE_FACTORIALS);
    let r4 = r2 * r2;
    let pair = |k: usize| c[k] + c[k + 1] * r;
    let four = |k: usize| pair(k) + pair(k + 2) * r2;
    let series = four(2) + (four(6) + four(10) * r4) * r4;
    (1.0 + (r + r2 * series)) * f64::from_bits(shifted.to_bits().wrapping_add(1023) << 52)
}

/// 1 / k! up to k = 13.
const INVERSE_FACTORIALS: [f64; 14] = {
    let mut table = [1.0; 14];
    let (mut k, mut factorial) = (1, 1.0);
    while k < table.len() {
        factorial *= k as f64;
        table[k] = 1.0 / factorial;
        k += 1;
    }
    table
};

#[cfg(test)]
mod tests {
    use super::exp;

    #[test]
    fn it_is_the_exponential_function() {
        for i in -70_000..=70_000 {
            let x = f64::from(i) * 0.009_999_7;
            let want = libm::exp(x);
            assert!((exp(x) / want - 1.0).abs() < 3e-16, "{x}: {:e}, expected {want:e}", exp(x));
        }
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(-1e9), exp(-700.0));
        assert!(exp(-700.0) < 1e-303 && exp(1e9) == exp(700.0));
    }
}
