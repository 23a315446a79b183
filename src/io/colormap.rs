//! The perceptually uniform colour map of one-channel previews.

/// Anchors of `inferno` at 0, 1/32, .. 1, from the 256-entry table of matplotlib by Nathaniel J. Smith and Stefan van
/// der Walt, which its authors released under CC0. Straight lines between the anchors stay within 2/255 of that table.
#[rustfmt::skip]
const INFERNO: [[u8; 3]; 33] = [
    [0, 0, 4], [4, 3, 18], [11, 7, 36], [21, 11, 55], [33, 12, 74], [46, 10, 90],
    [60, 9, 101], [74, 12, 107], [87, 16, 109], [99, 20, 110], [112, 25, 110], [125, 30, 109],
    [137, 34, 106], [150, 39, 102], [163, 43, 97], [175, 49, 92], [187, 55, 85], [198, 62, 77],
    [209, 70, 68], [219, 79, 59], [227, 89, 50], [235, 101, 40], [241, 113, 30], [246, 127, 20],
    [249, 141, 10], [251, 156, 6], [252, 171, 15], [251, 186, 31], [249, 202, 50], [245, 217, 73],
    [242, 232, 101], [243, 245, 134], [252, 255, 164],
];

/// Colour (R, G, B) of a value between 0 (black) and 1 (pale yellow). Values outside are clamped; NaN counts as 0.
pub fn inferno(value: f32) -> [u8; 3] {
    let last = INFERNO.len() - 1;
    let value = if value.is_nan() { 0.0 } else { value.clamp(0.0, 1.0) };
    let position = value * last as f32;
    let lower = (position as usize).min(last - 1);
    let fraction = position - lower as f32;
    let mix = |a: u8, b: u8| (f32::from(a) + (f32::from(b) - f32::from(a)) * fraction).round() as u8;
    std::array::from_fn(|channel| mix(INFERNO[lower][channel], INFERNO[lower + 1][channel]))
}
