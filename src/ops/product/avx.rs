//! Products by AVX2 and AVX-512 in f32, and by AVX512-BF16 in pairs of bf16. The accumulators of a tile stay in registers,
//! for which loops over them go by index: an iterator takes their address, and they are stored at every step.
#![allow(clippy::needless_range_loop)]

use std::arch::x86_64::*;

use crate::device::packed::{Element, LANES, Line};
use crate::math::{EXP2_FOR_BF16, EXP2_FOR_BF16_LEAST, ROUND};

/// out [rows, P 16] = a b, rows `stride` apart; see [`super::Kernel::multiply`].
///
/// # Safety
/// The processor has AVX-512 F, BW, DQ and VL, for [`Element::Bf16Pair`] AVX512-BF16 too. `a` holds whole rows, `b` `panels`
/// panels of as many lines, `rows` is 1 to 8, `panels` 1 to 3, and
/// `out` holds that many rows.
pub(super) unsafe fn multiply_avx512(
    element: Element,
    a: &[Line],
    rows: usize,
    b: &[Line],
    panels: usize,
    out: &mut [f32],
    stride: usize,
) {
    let lines = a.len() / rows;
    let (a, b, out) = (a.as_ptr().cast::<u32>(), b.as_ptr().cast::<f32>(), out.as_mut_ptr());
    macro_rules! tile {
        ($name:ident, $($rows:literal)*) => {
            match (rows, panels) {
                $(
                    // SAFETY: the caller's promises.
                    ($rows, 1) => unsafe { $name::<$rows, 1>(a, lines, b, out, stride) },
                    // SAFETY: the caller's promises.
                    ($rows, 2) => unsafe { $name::<$rows, 2>(a, lines, b, out, stride) },
                    // SAFETY: the caller's promises.
                    ($rows, 3) => unsafe { $name::<$rows, 3>(a, lines, b, out, stride) },
                )*
                _ => unreachable!("tiles of up to 8 rows and 3 panels"),
            }
        };
    }
    match element {
        Element::F32 => tile!(f32_avx512, 1 2 3 4 5 6 7 8),
        Element::Bf16Pair => tile!(bf16_avx512, 1 2 3 4 5 6 7 8),
    }
}

/// out [rows, 16] = a b in f32, rows `stride` apart; see [`super::Kernel::multiply`].
///
/// # Safety
/// The processor has AVX2 and FMA. `a` holds whole rows, `b` one panel of as many lines, `rows` is 1 to 6,
/// and `out` holds that many rows.
pub(super) unsafe fn multiply_avx2(a: &[Line], rows: usize, b: &[Line], out: &mut [f32], stride: usize) {
    let lines = a.len() / rows;
    let (a, b, out) = (a.as_ptr().cast::<f32>(), b.as_ptr().cast::<f32>(), out.as_mut_ptr());
    // SAFETY: the caller's promises.
    unsafe {
        match rows {
            1 => f32_avx2::<1>(a, lines, b, out, stride),
            2 => f32_avx2::<2>(a, lines, b, out, stride),
            3 => f32_avx2::<3>(a, lines, b, out, stride),
            4 => f32_avx2::<4>(a, lines, b, out, stride),
            5 => f32_avx2::<5>(a, lines, b, out, stride),
            6 => f32_avx2::<6>(a, lines, b, out, stride),
            _ => unreachable!("tiles of up to 6 rows"),
        }
    }
}

/// Defines the loop over k of one AVX-512 instruction: acc [R, P] += word of a row, broadcast, times P lines of columns.
macro_rules! avx512_loop {
    ($name:ident, $features:literal, |$acc:ident, $word:ident, $columns:ident| $step:expr) => {
        /// out [R, P 16] of a [lines, R, 16] and b [P, lines 16, 16].
        #[target_feature(enable = $features)]
        unsafe fn $name<const R: usize, const P: usize>(
            mut a: *const u32,
            lines: usize,
            mut b: *const f32,
            out: *mut f32,
            stride: usize,
        ) {
            let panel = lines * LANES * LANES;
            let mut acc = [[_mm512_setzero_ps(); P]; R];
            for _ in 0..lines {
                for step in 0..LANES {
                    // SAFETY: step `step` of this line of each of P panels and R rows, as the caller promises.
                    unsafe {
                        let mut columns = [_mm512_setzero_ps(); P];
                        for p in 0..P {
                            columns[p] = _mm512_load_ps(b.add(p * panel));
                            _mm_prefetch::<_MM_HINT_T0>(b.wrapping_add(p * panel + 24 * LANES).cast());
                        }
                        for row in 0..R {
                            let $word = _mm512_set1_epi32(*a.add(row * LANES + step) as i32);
                            for p in 0..P {
                                let ($acc, $columns) = (acc[row][p], columns[p]);
                                acc[row][p] = $step;
                            }
                        }
                        b = b.add(LANES);
                    }
                }
                // SAFETY: at most one past the last line.
                a = unsafe { a.add(R * LANES) };
            }
            for row in 0..R {
                for p in 0..P {
                    // SAFETY: R rows of P 16 numbers, as the caller promises.
                    unsafe { _mm512_storeu_ps(out.add(row * stride + p * LANES), acc[row][p]) };
                }
            }
        }
    };
}

avx512_loop!(f32_avx512, "avx512f,avx512bw,avx512dq,avx512vl", |acc, word, columns| _mm512_fmadd_ps(
    _mm512_castsi512_ps(word),
    columns,
    acc
));
avx512_loop!(bf16_avx512, "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16", |acc, word, columns| _mm512_dpbf16_ps(
    acc,
    std::mem::transmute::<__m512i, __m512bh>(word),
    std::mem::transmute::<__m512, __m512bh>(columns)
));

/// out [R, 16] of a [lines, R, 16] and b [lines 16, 16].
#[target_feature(enable = "avx2,fma")]
unsafe fn f32_avx2<const R: usize>(mut a: *const f32, lines: usize, mut b: *const f32, out: *mut f32, stride: usize) {
    let mut acc = [[_mm256_setzero_ps(); 2]; R];
    for _ in 0..lines {
        for step in 0..LANES {
            // SAFETY: step `step` of this line of the panel and of R rows, as the caller promises.
            unsafe {
                let columns = [_mm256_load_ps(b), _mm256_load_ps(b.add(8))];
                for row in 0..R {
                    let x = _mm256_broadcast_ss(&*a.add(row * LANES + step));
                    acc[row][0] = _mm256_fmadd_ps(x, columns[0], acc[row][0]);
                    acc[row][1] = _mm256_fmadd_ps(x, columns[1], acc[row][1]);
                }
                b = b.add(LANES);
            }
        }
        // SAFETY: at most one past the last line.
        a = unsafe { a.add(R * LANES) };
    }
    for row in 0..R {
        for half in 0..2 {
            // SAFETY: R rows of 16 numbers, as the caller promises.
            unsafe { _mm256_storeu_ps(out.add(row * stride + half * 8), acc[row][half]) };
        }
    }
}

/// Writes a row of f32 as pairs of bf16, line l of it to line `l rows + row` of `tile`; zeros up to the end of the last
/// line. Rounds to nearest even; subnormal numbers become zero.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
pub(super) fn pack_bf16(x: &[f32], tile: &mut [Line], rows: usize, row: usize) {
    let (whole, rest) = x.as_chunks::<{ 2 * LANES }>();
    let mut lines = tile[row..].iter_mut().step_by(rows);
    let mut put = |x: &[f32; 2 * LANES]| {
        let Some(line) = lines.next() else { return };
        let [lower, upper] = load(x);
        put_pairs(line, lower, upper);
    };
    whole.iter().for_each(&mut put);
    if !rest.is_empty() {
        let mut last = [0.0; 2 * LANES];
        last[..rest.len()].copy_from_slice(rest);
        put(&last);
    }
}

/// Packs `width` numbers of each of the rows x [R, stride] into a tile of R rows, as [`pack_bf16`] does one.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
pub(super) fn pack_bf16_tile(x: &[f32], stride: usize, width: usize, tile: &mut [Line]) {
    let rows = x.len() / stride;
    for (row, x) in x.chunks_exact(stride).enumerate() {
        pack_bf16(&x[..width], tile, rows, row);
    }
}

/// See [`super::pack_exponentials`]: in one pass over the numbers behind that for the maximum, with [`exp2_for_bf16`].
///
/// # Panics
/// If a row is shorter than `width`, or the tile than its rows.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
pub(super) fn pack_exponentials(
    x: &[f32],
    stride: usize,
    width: usize,
    scale: f32,
    tile: &mut [Line],
    sums: &mut [f32],
) {
    let rows = x.len() / stride;
    let scale = _mm512_set1_ps(scale);
    for (row, (x, sum)) in x.chunks_exact(stride).zip(sums).enumerate() {
        let (whole, rest) = x[..width].as_chunks::<{ 2 * LANES }>();
        // Numbers behind the last are as small as can be, and their exponentials are dropped.
        let mut last = [f32::NEG_INFINITY; 2 * LANES];
        last[..rest.len()].copy_from_slice(rest);
        let mut tops = load(&last);
        for x in whole {
            let [lower, upper] = load(x);
            tops = [_mm512_max_ps(lower, tops[0]), _mm512_max_ps(upper, tops[1])];
        }
        let top = _mm512_mul_ps(scale, _mm512_set1_ps(_mm512_reduce_max_ps(_mm512_max_ps(tops[0], tops[1]))));
        let mut total = [_mm512_setzero_ps(); 2];
        let mut lines = tile[row..].iter_mut().step_by(rows);
        for (x, line) in whole.iter().zip(&mut lines) {
            let [lower, upper] = load(x);
            let [lower, upper] = [exp2(_mm512_fmsub_ps(scale, lower, top)), exp2(_mm512_fmsub_ps(scale, upper, top))];
            total = [_mm512_add_ps(total[0], lower), _mm512_add_ps(total[1], upper)];
            put_pairs(line, lower, upper);
        }
        if let Some(line) = lines.next() {
            let there = (1u64 << rest.len()) - 1;
            let [lower, upper] = load(&last);
            let lower = _mm512_maskz_mov_ps(there as __mmask16, exp2(_mm512_fmsub_ps(scale, lower, top)));
            let upper = _mm512_maskz_mov_ps((there >> LANES) as __mmask16, exp2(_mm512_fmsub_ps(scale, upper, top)));
            total = [_mm512_add_ps(total[0], lower), _mm512_add_ps(total[1], upper)];
            put_pairs(line, lower, upper);
        }
        *sum = _mm512_reduce_add_ps(_mm512_add_ps(total[0], total[1]));
    }
}

/// 32 numbers as two vectors.
#[target_feature(enable = "avx512f")]
#[inline]
fn load(x: &[f32; 2 * LANES]) -> [__m512; 2] {
    // SAFETY: 32 numbers are read.
    unsafe { [_mm512_loadu_ps(x.as_ptr()), _mm512_loadu_ps(x[LANES..].as_ptr())] }
}

/// A line of the numbers of two vectors, rounded.
#[target_feature(enable = "avx512f,avx512bf16")]
#[inline]
fn put_pairs(line: &mut Line, lower: __m512, upper: __m512) {
    // SAFETY: a line is written.
    unsafe {
        let pairs = std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(upper, lower));
        _mm512_store_si512(line.0.as_mut_ptr().cast(), pairs);
    }
}

/// [`exp2_for_bf16`] of 16 numbers: written out, because not every loop over them becomes this.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
#[inline]
fn exp2(x: __m512) -> __m512 {
    let of = |v: f32| _mm512_set1_ps(v);
    let [c0, c1, c2, c3] = EXP2_FOR_BF16;
    // The least first: a NaN comes through.
    let x = _mm512_max_ps(of(EXP2_FOR_BF16_LEAST), x);
    let shifted = _mm512_add_ps(x, of(ROUND));
    let f = _mm512_sub_ps(x, _mm512_sub_ps(shifted, of(ROUND)));
    let p = _mm512_fmadd_ps(_mm512_fmadd_ps(_mm512_fmadd_ps(of(c3), f, of(c2)), f, of(c1)), f, of(c0));
    let power = _mm512_slli_epi32::<23>(_mm512_castps_si512(shifted));
    _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(p), power))
}

/// Packs 16 columns of a matrix, whose row k is the 16 numbers from `k stride` on, as the pairs of a panel: both rows of a pair in a
/// line, word by word. Rounds as [`pack_bf16`].
///
/// # Panics
/// If there are fewer than `k` rows, or fewer lines than pairs of them.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
pub(super) fn pack_pairs(x: &[f32], stride: usize, k: usize, lines: &mut [Line]) {
    // The lower row's number and the upper row's, by turns.
    let turns: [u16; 2 * LANES] = std::array::from_fn(|i| (i / 2 + i % 2 * LANES) as u16);
    // SAFETY: 32 numbers of 16 bits are a vector.
    let turns = unsafe { std::mem::transmute::<[u16; 2 * LANES], __m512i>(turns) };
    let row = |k: usize| -> &[f32; LANES] { x[k * stride..].first_chunk().expect("16 numbers of a row") };
    let put = |line: &mut Line, lower: &[f32; LANES], upper: &[f32; LANES]| {
        // SAFETY: 16 numbers are read from each row and a line is written.
        unsafe {
            let pairs = _mm512_cvtne2ps_pbh(_mm512_loadu_ps(upper.as_ptr()), _mm512_loadu_ps(lower.as_ptr()));
            let pairs = _mm512_permutexvar_epi16(turns, std::mem::transmute::<__m512bh, __m512i>(pairs));
            _mm512_store_si512(line.0.as_mut_ptr().cast(), pairs);
        }
    };
    for (pair, line) in lines[..k / 2].iter_mut().enumerate() {
        put(line, row(2 * pair), row(2 * pair + 1));
    }
    if k % 2 == 1 {
        put(&mut lines[k / 2], row(k - 1), &[0.0; LANES]);
    }
}

/// Word s of row r becomes word r of step s.
#[target_feature(enable = "avx512f")]
pub(super) fn turn(rows: &[Line; LANES], steps: &mut [Line; LANES]) {
    // SAFETY: an array of 16 words is a vector of them.
    let v: [__m512i; LANES] = std::array::from_fn(|r| unsafe { std::mem::transmute(rows[r].0) });
    // Pairs of words, then of pairs, within quarters; then the quarters.
    let pairs: [__m512i; LANES] = std::array::from_fn(|i| {
        let (a, b) = (v[i / 2 * 2], v[i / 2 * 2 + 1]);
        if i % 2 == 0 { _mm512_unpacklo_epi32(a, b) } else { _mm512_unpackhi_epi32(a, b) }
    });
    let fours: [__m512i; LANES] = std::array::from_fn(|i| {
        let (a, b) = (pairs[i / 4 * 4 + i % 4 / 2], pairs[i / 4 * 4 + i % 4 / 2 + 2]);
        if i % 2 == 0 { _mm512_unpacklo_epi64(a, b) } else { _mm512_unpackhi_epi64(a, b) }
    });
    // fours[4 g + s], quarter q: word `4 q + s` of rows 4 g to 4 g + 3.
    for s in 0..4 {
        let [a, b, c, d] = [fours[s], fours[4 + s], fours[8 + s], fours[12 + s]];
        let (even, odd) = (_mm512_shuffle_i32x4::<0x88>(a, b), _mm512_shuffle_i32x4::<0xdd>(a, b));
        let (even_2, odd_2) = (_mm512_shuffle_i32x4::<0x88>(c, d), _mm512_shuffle_i32x4::<0xdd>(c, d));
        let quarters = [
            _mm512_shuffle_i32x4::<0x88>(even, even_2),
            _mm512_shuffle_i32x4::<0x88>(odd, odd_2),
            _mm512_shuffle_i32x4::<0xdd>(even, even_2),
            _mm512_shuffle_i32x4::<0xdd>(odd, odd_2),
        ];
        for (q, words) in quarters.into_iter().enumerate() {
            // SAFETY: as above.
            steps[4 * q + s].0 = unsafe { std::mem::transmute::<__m512i, [u32; LANES]>(words) };
        }
    }
}

/// See [`super::panels`]: pairs of the numbers of two rows, the first 16 and the last 16 of 32 columns.
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) fn pair(lower: &Line, upper: &Line, to: (&mut Line, &mut Line)) {
    // The lower row's number and the upper row's, by turns.
    let turns =
        |first: usize| -> [u16; 2 * LANES] { std::array::from_fn(|i| (first + i / 2 + i % 2 * 2 * LANES) as u16) };
    // SAFETY: 16 words, and 32 numbers of 16 bits, are a vector.
    unsafe {
        let [a, b] = [lower.0, upper.0].map(|row| std::mem::transmute::<[u32; LANES], __m512i>(row));
        let [left, right] =
            [turns(0), turns(LANES)].map(|turns| std::mem::transmute::<[u16; 2 * LANES], __m512i>(turns));
        to.0.0 = std::mem::transmute::<__m512i, [u32; LANES]>(_mm512_permutex2var_epi16(a, left, b));
        to.1.0 = std::mem::transmute::<__m512i, [u32; LANES]>(_mm512_permutex2var_epi16(a, right, b));
    }
}
