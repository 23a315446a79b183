//! Files of many images: arrays whose first axis counts images, in `.npy`, `.npz`, `.safetensors` or HDF5, with a
//! column of labels inside or beside.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::Value;

use crate::data::image::{self, Image, flat_side};
use crate::data::labels;
use crate::data::set::{MAX_IMAGES, SourceOptions};
use crate::error::{Error, Result};
use crate::io::json::parse_strict;
use crate::io::{AnyNpy, Checkpoint, H5Array, H5File, Npz, Rows, read_any_npy};

/// Names that the images may have, in order of preference, and the labels.
const IMAGES: [&str; 7] = ["X_jets", "images", "x", "X", "data", "image", "arr_0"];
const LABELS: [&str; 5] = ["y", "labels", "label", "targets", "Y"];
/// Classes of the public quark/gluon file.
const JET_CLASSES: [&str; 2] = ["quark", "gluon"];
/// Smallest side of a flat image: rows of a narrow 2-D array are no images.
const MIN_FLAT_SIDE: usize = 16;

/// An array of images with their labels.
pub struct Table {
    path: PathBuf,
    array: Array,
    layout: Layout,
    /// Channels, height, width as stored, before `channels` picks.
    stored: [usize; 3],
    /// Stored channel of each channel of an image.
    channels: Vec<usize>,
    /// Class of each image.
    pub labels: Vec<u32>,
    /// Names of the classes.
    pub classes: Vec<String>,
}

enum Array {
    Rows(Rows),
    H5(Box<H5Array>),
    /// A file of a single image.
    One(Image),
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Layout {
    /// Channels, rows, columns; or no channel axis.
    ChannelsFirst,
    /// Rows, columns, channels.
    ChannelsLast,
    /// A row of pixels, and whether a label follows them.
    Flat { label: bool },
}

impl Array {
    fn shape(&self) -> &[usize] {
        match self {
            Self::Rows(rows) => rows.shape(),
            Self::H5(array) => array.shape(),
            Self::One(_) => &[1],
        }
    }

    fn read(&self, rows: Range<usize>) -> Result<Vec<f32>> {
        match self {
            Self::Rows(array) => array.read(rows),
            Self::H5(array) => array.read(rows),
            Self::One(image) => Ok(image.pixels.clone()),
        }
    }
}

/// An open file and what is in it.
enum File {
    Npz(Npz),
    Tensors(Arc<Checkpoint>),
    H5(H5File),
}

impl File {
    fn names(&self) -> Result<Vec<String>> {
        Ok(match self {
            Self::Npz(file) => file.names().map(str::to_owned).collect(),
            Self::Tensors(file) => file.names().map(str::to_owned).collect(),
            Self::H5(file) => file.names()?,
        })
    }

    fn array(&self, name: &str) -> Result<Array> {
        Ok(match self {
            Self::Npz(file) => Array::Rows(file.rows(name)?),
            Self::Tensors(file) => Array::Rows(Rows::of_tensor(file.clone(), name)?),
            Self::H5(file) => Array::H5(Box::new(file.array(name)?)),
        })
    }
}

impl Table {
    /// Opens a file of images. `class`, where given, is the class of all of them. [`Error::Input`] for a file without
    /// images or labels by those names, shapes that are no images, or labels outside the classes.
    pub fn open(path: &Path, options: &SourceOptions, class: Option<&str>) -> Result<Self> {
        let extension = path.extension().and_then(|e| e.to_str()).unwrap_or("").to_ascii_lowercase();
        let file = match extension.as_str() {
            "npy" => return Self::open_npy(path, options, class),
            "npz" => File::Npz(Npz::open(path)?),
            "safetensors" => File::Tensors(Arc::new(Checkpoint::open(path)?)),
            "h5" | "hdf5" => File::H5(H5File::open(path)?),
            _ => return Err(Error::input(path, "expected a .npy, .npz, .h5 or .safetensors file, or a folder")),
        };
        let names = file.names()?;
        let images = match &options.images {
            Some(name) => name.clone(),
            None => images_name(path, &file, &names)?,
        };
        let labels = match &options.labels {
            Some(name) => Some(name.clone()),
            None => LABELS.iter().find(|n| names.iter().any(|m| m == *n)).map(|n| (*n).to_owned()),
        };
        let labels = labels.filter(|_| class.is_none()).map(|name| file.array(&name)).transpose()?;
        let classes = options.classes.clone().or(match &file {
            File::Tensors(file) => file.metadata().get("class_names").and_then(|t| class_names(&parse_strict(t).ok()?)),
            _ => None,
        });
        let classes = classes.or_else(|| (images == IMAGES[0]).then(|| JET_CLASSES.map(str::to_owned).to_vec()));
        Self::new(path, file.array(&images)?, labels, classes, options, class)
    }

    /// A `.npy` file, its labels in `STEM.labels.npy` and the names of its classes in `STEM.json` beside it.
    fn open_npy(path: &Path, options: &SourceOptions, class: Option<&str>) -> Result<Self> {
        let one = |image: Image| Array::One(image);
        let array = match Rows::open_npy(path) {
            Ok(rows) if is_table(rows.shape()) => Array::Rows(rows),
            Ok(_) => one(image::read_image(path)?),
            // Objects are no rows of numbers, but may be an image.
            Err(_) if matches!(read_any_npy(path)?, AnyNpy::Objects(_)) => one(image::read_image(path)?),
            Err(error) => return Err(error),
        };
        let beside = path.with_extension("labels.npy");
        let labels =
            if beside.is_file() && class.is_none() { Some(Array::Rows(Rows::open_npy(&beside)?)) } else { None };
        let json = path.with_extension("json");
        let names = match (&options.classes, std::fs::read_to_string(&json)) {
            (Some(names), _) => Some(names.clone()),
            (None, Ok(text)) => {
                class_names(&parse_strict(&text).map_err(|reason| Error::input(&json, format!("JSON: {reason}")))?)
            }
            (None, Err(_)) => None,
        };
        Self::new(path, array, labels, names, options, class)
    }

    fn new(
        path: &Path,
        array: Array,
        labels: Option<Array>,
        classes: Option<Vec<String>>,
        options: &SourceOptions,
        class: Option<&str>,
    ) -> Result<Self> {
        let refuse = |reason: String| Error::input(path, reason);
        let (layout, stored) = match &array {
            Array::One(image) => (Layout::ChannelsFirst, image.shape),
            _ => layout(array.shape(), options.channels_last).map_err(refuse)?,
        };
        let channels = options.channels.clone().unwrap_or_else(|| (0..stored[0]).collect());
        if channels.is_empty() || channels.iter().any(|&c| c >= stored[0]) {
            return Err(refuse(format!("channels {channels:?}: the images have channels 0 to {}", stored[0] - 1)));
        }
        let n = array.shape()[0];
        if n > MAX_IMAGES {
            return Err(refuse(format!("found {n} images, expected at most {MAX_IMAGES}")));
        }
        let values = match (&labels, layout) {
            (Some(column), _) => {
                let found = column.shape();
                if found[0] != n || found.iter().product::<usize>() != n {
                    return Err(refuse(format!(
                        "labels: found shape {found:?}, expected ({n},) as there are {n} images"
                    )));
                }
                Some(column.read(0..n)?)
            }
            (None, Layout::Flat { label: true }) if class.is_none() => {
                let last = |i: usize| Ok(array.read(i..i + 1)?.last().copied().unwrap_or(0.0));
                Some((0..n).map(last).collect::<Result<_>>()?)
            }
            _ => None,
        };
        let (labels, classes) = match (class, values) {
            (Some(class), _) => (vec![0; n], vec![class.to_owned()]),
            (None, Some(values)) => labels::from_numbers(path, &values, classes)?,
            (None, None) => {
                let stem = path.file_stem().map_or_else(|| "images".into(), |s| s.to_string_lossy().into_owned());
                (vec![0; n], vec![stem])
            }
        };
        Ok(Self { path: path.to_path_buf(), array, layout, stored, channels, labels, classes })
    }

    /// Number of images.
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    /// File that the images are in.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Image `row`, which must exist. [`Error::Input`] for a damaged part of the file.
    pub fn read(&self, row: usize) -> Result<Image> {
        let mut values = self.array.read(row..row + 1)?;
        let [c, h, w] = self.stored;
        let number = match (&self.array, self.layout) {
            (Array::One(image), _) => image.number,
            (_, Layout::Flat { label: true }) => values.pop().map(f64::from),
            _ => None,
        };
        let (plane, last) = (h * w, self.layout == Layout::ChannelsLast);
        let identity = !last && self.channels.len() == c && self.channels.iter().enumerate().all(|(i, &k)| i == k);
        let pixels = if identity {
            values
        } else {
            let of = |k: usize, i: usize| if last { values[i * c + k] } else { values[k * plane + i] };
            self.channels.iter().flat_map(|&k| (0..plane).map(move |i| (k, i))).map(|(k, i)| of(k, i)).collect()
        };
        Ok(Image { shape: [self.channels.len(), h, w], pixels, number })
    }
}

/// Whether a `.npy` array of that shape holds many images: otherwise it is one.
fn is_table(shape: &[usize]) -> bool {
    match *shape {
        [n, row] => flat_side(row).is_some_and(|(side, label)| side >= MIN_FLAT_SIDE && (label || n != row)),
        _ => shape.len() > 2,
    }
}

/// Layout and (channels, height, width) of the images of an array.
fn layout(shape: &[usize], channels_last: Option<bool>) -> Result<(Layout, [usize; 3]), String> {
    let found = match *shape {
        [_, row] => flat_side(row).map(|(side, label)| (Layout::Flat { label }, [1, side, side])),
        [_, h, w] => Some((Layout::ChannelsFirst, [1, h, w])),
        // Told by the extents where nobody says: channels are few.
        [_, a, b, c] if channels_last.unwrap_or(c <= 4 && a > 4) => Some((Layout::ChannelsLast, [c, a, b])),
        [_, c, h, w] => Some((Layout::ChannelsFirst, [c, h, w])),
        _ => None,
    };
    found.filter(|(_, image)| !image.contains(&0)).ok_or_else(|| {
        format!("images: found shape {shape:?}, expected (N, H, W), (N, C, H, W), (N, H, W, C) or flat squares")
    })
}

/// The array that holds the images: one of the usual names, or the only one that could.
fn images_name(path: &Path, file: &File, names: &[String]) -> Result<String> {
    if let Some(name) = IMAGES.iter().find(|n| names.iter().any(|m| m == *n)) {
        return Ok((*name).to_owned());
    }
    let mut fitting = Vec::new();
    for name in names {
        // What cannot be read as an array of numbers is not the images.
        if file.array(name).is_ok_and(|a| a.shape().len() > 2) {
            fitting.push(name.clone());
        }
    }
    match &fitting[..] {
        [one] => Ok(one.clone()),
        _ => Err(Error::input(
            path,
            format!("images: found none of {}; the file has {}", IMAGES.join(", "), names.join(", ")),
        )),
    }
}

/// The names in a JSON array of text, or in the field `class_names` of an object.
fn class_names(value: &Value) -> Option<Vec<String>> {
    let list = value.get("class_names").unwrap_or(value).as_array()?;
    list.iter().map(|v| v.as_str().map(str::to_owned)).collect()
}
