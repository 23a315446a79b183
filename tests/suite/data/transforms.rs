//! Transforms against torchvision's and numpy's, and their settings.

use arclet::data::random::Draw;
use arclet::data::transform::{Interpolation, KEYS, Normalize, Size, resize_bilinear, rotate};
use arclet::data::{Image, TransformConfig};

use super::fixture;
use crate::common::{Golden, relative_error};

fn golden() -> Golden {
    Golden::at(&fixture("transforms.safetensors"))
}

fn shape(golden: &Golden, name: &str) -> [usize; 3] {
    golden.shape(name).try_into().expect("three axes")
}

fn config(toml: &str) -> TransformConfig {
    TransformConfig::from_table(&toml.parse().unwrap()).unwrap()
}

fn image(shape: [usize; 3], pixels: &[f32]) -> Image {
    Image { shape, pixels: pixels.to_vec(), number: None }
}

const NEVER: Draw = Draw { rotation: 0.5, horizontal: 0.999, vertical: 0.999 };

#[test]
fn resizing_is_torchvisions() {
    let golden = golden();
    let (pixels, from) = (golden.f32("image"), shape(&golden, "image"));
    for to in [[11, 16], [41, 53], [23, 9], [7, 37], [1, 1]] {
        let want = golden.f32(&format!("resize_{}x{}", to[0], to[1]));
        let error = relative_error(&resize_bilinear(&pixels, from, to), &want);
        assert!(error <= 1e-6, "{to:?}: {error:e}");
    }
    let [c, h, w] = from;
    let tall: Vec<f32> = pixels.chunks(h * w).flat_map(|p| (0..h * w).map(|i| p[i % h * w + i / h])).collect();
    for side in [13, 30] {
        for (prefix, from, pixels) in [("resize_", from, &pixels), ("resize_tall_", [c, w, h], &tall)] {
            let name = format!("{prefix}{side}");
            let got = config(&format!("resize = {side}")).apply(image(from, pixels), None).unwrap();
            assert_eq!(got.shape, shape(&golden, &name), "{name}");
            let error = relative_error(&got.pixels, &golden.f32(&name));
            assert!(error <= 1e-6, "{name}: {error:e}");
        }
    }
    assert_eq!(resize_bilinear(&pixels, from, [h, w]), pixels);
}

#[test]
fn cropping_and_flipping_are_torchvisions() {
    let golden = golden();
    let (pixels, from) = (golden.f32("image"), shape(&golden, "image"));
    for side in [10, 16, 17, 20, 23] {
        let got = config(&format!("crop = {side}")).apply(image(from, &pixels), None).unwrap();
        assert_eq!((got.shape, got.pixels), ([2, side, side], golden.f32(&format!("crop_{side}"))), "{side}");
    }
    let error = config("crop = 24").apply(image(from, &pixels), None).unwrap_err();
    assert!(error.contains("found 23 x 37 pixels, expected at least 24 x 24"), "{error}");
    let always = |toml: &str| config(toml).apply(image(from, &pixels), Some(NEVER)).unwrap().pixels;
    assert_eq!(always("horizontal_flip = 1.0"), golden.f32("flip_horizontal"));
    assert_eq!(always("vertical_flip = 1.0"), golden.f32("flip_vertical"));
    assert_eq!(always("horizontal_flip = 0.5\nvertical_flip = 0.5"), pixels);
}

#[test]
fn rotation_is_torchvisions() {
    let golden = golden();
    let (pixels, from) = (golden.f32("image"), shape(&golden, "image"));
    for angle in [7.3, -9.1, 33.3, 135.7] {
        let nearest = rotate(&pixels, from, angle, Interpolation::Nearest);
        assert_eq!(nearest, golden.f32(&format!("rotate_nearest_{angle}")), "{angle}");
        let bilinear = rotate(&pixels, from, angle, Interpolation::Bilinear);
        let error = relative_error(&bilinear, &golden.f32(&format!("rotate_bilinear_{angle}")));
        assert!(error <= 1e-6, "{angle}: {error:e}");
    }
    // Drawn angles: the middle of the range is none, the ends are the limit.
    let turned = |rotation| {
        let draw = Draw { rotation, ..NEVER };
        config("rotate = 33.3\ninterpolation = \"nearest\"").apply(image(from, &pixels), Some(draw)).unwrap().pixels
    };
    assert_eq!((turned(0.5), turned(1.0)), (pixels.clone(), golden.f32("rotate_nearest_33.3")));
    assert_eq!(config("rotate = 33.3").apply(image(from, &pixels), None).unwrap().pixels, pixels);
}

#[test]
fn levels_are_numpys() {
    let golden = golden();
    let (spread, from) = (golden.f32("spread"), shape(&golden, "spread"));
    let run = |toml: &str| config(toml).apply(image(from, &spread), None).unwrap().pixels;
    assert!(relative_error(&run("clip_percentile = [2.5, 99.0]"), &golden.f32("clipped")) <= 1e-6);
    assert!(relative_error(&run("log1p = true"), &golden.f32("log1p")) <= 1e-6);
    let small = |toml: &str, pixels: &[f32]| config(toml).apply(image([2, 1, 2], pixels), None).map(|i| i.pixels);
    assert_eq!(small("normalize = \"min_max\"", &[1.0, 2.0, 3.0, 5.0]).unwrap(), [0.0, 0.25, 0.5, 1.0]);
    assert_eq!(small("normalize = \"min_max_channel\"", &[1.0, 2.0, 3.0, 5.0]).unwrap(), [0.0, 1.0, 0.0, 1.0]);
    assert_eq!(small("normalize = \"min_max\"", &[7.0; 4]).unwrap(), [0.0; 4]);
    assert_eq!(small("normalize = \"min_max\"", &[f32::MIN, 0.0, 0.0, f32::MAX]).unwrap(), [0.0, 0.5, 0.5, 1.0]);
    assert_eq!(small("normalize = { range = [1, 5] }", &[1.0, 2.0, 3.0, 9.0]).unwrap(), [0.0, 0.25, 0.5, 2.0]);
    assert_eq!(small("output_range = [-1, 1]", &[0.0, 0.25, 0.5, 1.0]).unwrap(), [-1.0, -0.5, 0.0, 1.0]);
    assert!(small("log1p = true", &[0.0, -1.0, 0.0, 0.0]).unwrap_err().contains("found the value -1"));
    assert!(small("repeat_channels = 3", &[0.0; 4]).unwrap_err().contains("found 2 channels"));
}

/// What the published lensing notebooks do to an image, end to end.
#[test]
fn steps_have_one_order() {
    let toml = "output_range = [-1, 1]\nrepeat_channels = 3\ncrop = 6\nresize = [8, 8]\nnormalize = \"min_max\"\n";
    let pixels: Vec<f32> = (0..144).map(|i| (i * 37 % 101) as f32).collect();
    let got = config(toml).apply(image([1, 12, 12], &pixels), None).unwrap();
    assert_eq!(got.shape, [3, 6, 6]);
    let scaled: Vec<f32> = pixels.iter().map(|v| v / 100.0).collect();
    let resized = resize_bilinear(&scaled, [1, 12, 12], [8, 8]);
    let cropped: Vec<f32> = (0..36).map(|i| resized[(1 + i / 6) * 8 + 1 + i % 6] * 2.0 - 1.0).collect();
    assert!(relative_error(&got.pixels, &cropped.repeat(3)) <= 1e-6);
}

#[test]
fn settings_are_read_and_misspellings_named() {
    let full = TransformConfig {
        clip_percentile: Some([0.0, 99.9]),
        log1p: true,
        normalize: Some(Normalize::MinMax),
        resize: Some(Size::Shorter(256)),
        crop: Some(224),
        rotate: Some(10.0),
        interpolation: Some(Interpolation::Bilinear),
        horizontal_flip: Some(0.5),
        vertical_flip: Some(0.25),
        repeat_channels: Some(3),
        output_range: Some([-1.0, 1.0]),
    };
    let table = toml::Table::try_from(&full).unwrap();
    let mut keys = KEYS.to_vec();
    keys.sort_unstable();
    assert_eq!(table.keys().map(String::as_str).collect::<Vec<_>>(), keys, "every key is known");
    assert_eq!(TransformConfig::from_table(&table).unwrap(), full);
    assert_eq!(config(""), TransformConfig::default());
    assert!(full.is_random() && !config("rotate = 0.0\ncrop = 3").is_random());
    for (toml, reason) in [
        ("resise = 3", "unknown key \"resise\", did you mean \"resize\"?"),
        ("flip_horizontal_please = 1", "unknown key \"flip_horizontal_please\", expected one of clip_percentile"),
        ("crop = \"big\"", "key \"crop\""),
        ("normalize = \"max\"", "key \"normalize\""),
        ("crop = 0", "key \"crop\": found 0"),
        ("resize = [5, 10000]", "key \"resize\": found 10000"),
        ("clip_percentile = [99, 1]", "key \"clip_percentile\": found [99, 1]"),
        ("rotate = -5.0", "key \"rotate\": found -5"),
        ("rotate = nan", "key \"rotate\": found NaN"),
        ("vertical_flip = 1.5", "key \"vertical_flip\": found 1.5"),
        ("repeat_channels = 99", "key \"repeat_channels\": found 99"),
        ("output_range = [1, -1]", "key \"output_range\": found [1, -1]"),
        ("normalize = { range = [1, 1] }", "key \"normalize\": found the range [1, 1]"),
    ] {
        let error = TransformConfig::from_table(&toml.parse().unwrap()).unwrap_err();
        assert!(error.contains(reason), "{toml}: {error}");
    }
    let long = config("resize = 8192").apply(image([1, 1, 2], &[0.0; 2]), None).unwrap_err();
    assert!(long.contains("would become 8192 x 16384"), "{long}");
}
