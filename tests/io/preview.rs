//! PNG previews.

use std::fs::{self, File};
use std::io::BufReader;
use std::path::Path;

use arclet::io::colormap::inferno;
use arclet::io::{GridLayout, GridPng, write_grid_png};

use crate::listing;

/// RGB pixels and width of a PNG file.
fn decode(path: &Path) -> (Vec<[u8; 3]>, usize) {
    let mut reader = png::Decoder::new(BufReader::new(File::open(path).unwrap())).read_info().unwrap();
    let mut bytes = vec![0; reader.output_buffer_size().unwrap()];
    let info = reader.next_frame(&mut bytes).unwrap();
    assert_eq!((info.color_type, info.bit_depth), (png::ColorType::Rgb, png::BitDepth::Eight));
    (bytes.as_chunks().0.to_vec(), info.width as usize)
}

fn grid(images: &[f32], n: usize, channels: usize, height: usize, width: usize) -> GridPng<'_> {
    GridPng { images, n, channels, height, width, range: (-1.0, 1.0), columns: None, zoom: Some(1) }
}

#[test]
fn the_colour_map_is_inferno_and_its_brightness_rises() {
    // First, middle and last rows of the published table.
    assert_eq!(inferno(0.0), [0, 0, 4]);
    assert_eq!(inferno(1.0), [252, 255, 164]);
    let [r, g, b] = inferno(128.0 / 255.0);
    assert!(r.abs_diff(188) <= 2 && g.abs_diff(55) <= 2 && b.abs_diff(84) <= 2, "{r} {g} {b}");
    assert_eq!(inferno(f32::NAN), inferno(0.0));
    assert_eq!(inferno(f32::NEG_INFINITY), inferno(0.0));
    assert_eq!(inferno(7.0), inferno(1.0));
    let luminance = |[r, g, b]: [u8; 3]| 0.2126 * f32::from(r) + 0.7152 * f32::from(g) + 0.0722 * f32::from(b);
    let steps: Vec<f32> = (0..=64).map(|i| luminance(inferno(i as f32 / 64.0))).collect();
    assert!(steps.windows(2).all(|pair| pair[0] < pair[1]), "{steps:?}");
}

#[test]
fn images_stand_in_a_grid_with_gaps() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.png");
    // Three images of 1x2; 3 columns of 2 by default would be 2 by 2 tiles.
    let images = [-1.0, 1.0, 0.0, -5.0, 5.0, f32::NAN];
    let layout = write_grid_png(&path, &grid(&images, 3, 1, 1, 2)).unwrap();
    assert_eq!(layout, GridLayout { shown: 3, columns: 2, rows: 2, zoom: 1 });
    let (pixels, width) = decode(&path);
    assert_eq!((width, pixels.len() / width), (2 + 2 * (2 + 2), 2 + 2 * (1 + 2)));
    let at = |x: usize, y: usize| pixels[y * width + x];
    assert_eq!((at(2, 2), at(3, 2)), (inferno(0.0), inferno(1.0)));
    assert_eq!((at(6, 2), at(7, 2)), (inferno(0.5), inferno(0.0)));
    assert_eq!((at(2, 5), at(3, 5)), (inferno(1.0), inferno(0.0)));
    for (x, y) in [(0, 0), (1, 2), (4, 2), (5, 2), (2, 3), (6, 5), (9, 6)] {
        assert_eq!(at(x, y), [255; 3], "({x}, {y}) is a gap or empty");
    }
}

#[test]
fn small_images_are_enlarged() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.png");
    let images = vec![0.25; 9 * 64 * 64];
    let layout = write_grid_png(&path, &GridPng { zoom: None, ..grid(&images, 9, 1, 64, 64) }).unwrap();
    assert_eq!(layout, GridLayout { shown: 9, columns: 3, rows: 3, zoom: 3 });
    let (pixels, width) = decode(&path);
    assert_eq!((width, pixels.len() / width), (2 + 3 * 194, 2 + 3 * 194));
    let zoomed = write_grid_png(&path, &GridPng { zoom: Some(2), ..grid(&[-1.0, 1.0], 1, 1, 1, 2) }).unwrap();
    assert_eq!(zoomed.zoom, 2);
    let (pixels, width) = decode(&path);
    let row = |y: usize| &pixels[y * width + 2..y * width + 6];
    assert_eq!(row(2), [inferno(0.0), inferno(0.0), inferno(1.0), inferno(1.0)]);
    assert_eq!(row(2), row(3));
}

#[test]
fn three_channels_are_red_green_blue_and_two_stand_side_by_side() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.png");
    write_grid_png(&path, &grid(&[1.0, -1.0, 0.0], 1, 3, 1, 1)).unwrap();
    let (pixels, width) = decode(&path);
    assert_eq!(pixels[2 * width + 2], [255, 0, 128]);
    let layout = write_grid_png(&path, &grid(&[-1.0, 1.0, 1.0, -1.0], 2, 2, 1, 1)).unwrap();
    assert_eq!((layout.columns, layout.rows, layout.shown), (4, 1, 2));
    let (pixels, width) = decode(&path);
    let tiles: Vec<_> = (0..4).map(|i| pixels[2 * width + 2 + 3 * i]).collect();
    assert_eq!(tiles, [0.0, 1.0, 1.0, 0.0].map(inferno));
}

#[test]
fn a_huge_set_is_shown_in_part() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.png");
    let images = vec![0.0; 2000 * 128 * 128];
    let layout = write_grid_png(&path, &GridPng { zoom: None, ..grid(&images, 2000, 1, 128, 128) }).unwrap();
    assert_eq!(layout.zoom, 1);
    assert!((500..2000).contains(&layout.shown), "{layout:?}");
    let (pixels, _) = decode(&path);
    assert!(pixels.len() <= 16 << 20);
}

#[test]
fn equal_input_gives_equal_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let images: Vec<f32> = (0..4 * 32 * 32).map(|i| (i as f32 * 0.01).sin()).collect();
    let paths = [folder.path().join("a.png"), folder.path().join("b.png")];
    for path in &paths {
        write_grid_png(path, &grid(&images, 4, 1, 32, 32)).unwrap();
    }
    assert_eq!(fs::read(&paths[0]).unwrap(), fs::read(&paths[1]).unwrap());
}

#[test]
fn contradictions_are_errors_and_leave_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.png");
    let good = grid(&[0.0; 4], 1, 1, 2, 2);
    for bad in [
        GridPng { n: 2, ..good.clone() },
        GridPng { n: 0, images: &[], ..good.clone() },
        GridPng { height: usize::MAX, ..good.clone() },
        GridPng { range: (1.0, 1.0), ..good.clone() },
        GridPng { range: (f32::NAN, 1.0), ..good.clone() },
    ] {
        assert_eq!(write_grid_png(&path, &bad).unwrap_err().exit_code(), 1, "{bad:?}");
    }
    assert_eq!(write_grid_png(folder.path().join("none/a.png"), &good).unwrap_err().exit_code(), 5);
    assert!(listing(folder.path()).is_empty());
}
