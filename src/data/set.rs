//! A data set: images with classes, from class folders or from a file of many images, read one at a time.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::data::folder::{self, Listing};
use crate::data::image::{self, Image};
use crate::data::parameters::{self, ParameterTable};
use crate::data::random::Draw;
use crate::data::table::Table;
use crate::data::transform::TransformConfig;
use crate::error::{Error, Result};
use crate::io::known;

/// Most images of a set: what a few bytes of a hostile file may claim must not cost gigabytes of labels.
pub(crate) const MAX_IMAGES: usize = 1 << 26;

/// What to take out of a folder or file.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SourceOptions {
    /// Part of a folder: `train`, `val`, ... By default `train` where there is one, else the folder itself.
    pub split: Option<String>,
    /// Name of the array of images in a file.
    pub images: Option<String>,
    /// Name of the array of labels in a file.
    pub labels: Option<String>,
    /// Names of the classes: of label numbers 0, 1, ..., or in the order that folders are to be numbered in.
    pub classes: Option<Vec<String>>,
    /// Stored channels to take, in this order.
    pub channels: Option<Vec<usize>>,
    /// Whether channels come last in a file of images; by default told by the extents.
    pub channels_last: Option<bool>,
}

/// Every key of [`SourceOptions`].
pub const SOURCE_KEYS: [&str; 6] = ["split", "images", "labels", "classes", "channels", "channels_last"];

impl SourceOptions {
    /// Options from a TOML table. The reason names an unknown key and the nearest known one, or the key whose value
    /// does not fit.
    pub fn from_table(table: &toml::Table) -> Result<Self, String> {
        known::from_table(table, &SOURCE_KEYS)
    }
}

/// Images with classes.
pub struct DataSet {
    path: PathBuf,
    classes: Vec<String>,
    labels: Vec<u32>,
    source: Source,
    transform: TransformConfig,
    channels: Option<Vec<usize>>,
    parameters: Option<ParameterTable>,
}

enum Source {
    /// One image a file.
    Files(Vec<PathBuf>),
    /// Many images a file, with the index of each file's first.
    Tables(Vec<(usize, Table)>),
    /// Images of one shape in memory, behind one another.
    Memory([usize; 3], Vec<f32>),
}

/// The splits of a folder; of a file, or a folder without any, none.
pub fn splits(path: impl AsRef<Path>) -> Result<Vec<String>> {
    let path = path.as_ref();
    if path.is_dir() { folder::splits(path) } else { Ok(Vec::new()) }
}

impl DataSet {
    /// Opens a folder or file and lists its images; none of them is read.
    ///
    /// # Errors
    /// [`Error::Input`] for a folder without images, a damaged file, or classes outside those asked for.
    pub fn open(path: impl AsRef<Path>, options: &SourceOptions) -> Result<Self> {
        let path = path.as_ref();
        if !path.exists() {
            return Err(Error::input(path, "no such file or folder"));
        }
        if !path.is_dir() {
            if let Some(split) = &options.split {
                return Err(Error::input(path, format!("found a file, expected a folder with the split {split:?}")));
            }
            let table = Table::open(path, options, None)?;
            let (classes, labels) = (table.classes.clone(), table.labels.clone());
            return Self::new(path, classes, labels, Source::Tables(vec![(0, table)]), None);
        }
        let found = folder::splits(path)?;
        let split = match &options.split {
            Some(split) if found.is_empty() || found.contains(split) => Some(split.as_str()),
            Some(split) => {
                return Err(Error::input(path, known::unknown("split", split, found.iter().map(String::as_str))));
            }
            None => found.iter().find(|s| *s == "train").or(found.first()).map(String::as_str),
        };
        let listing = folder::list(path, split)?;
        let (Listing::Images(items) | Listing::Tables(items)) = &listing;
        let classes = classes_of(path, items, options)?;
        let number = |class: &String| classes.iter().position(|c| c == class).unwrap_or(0) as u32;
        match listing {
            Listing::Images(items) => {
                let labels = items.iter().map(|(_, class)| number(class)).collect();
                let files = items.into_iter().map(|(path, _)| path).collect();
                Self::new(path, classes, labels, Source::Files(files), options.channels.clone())
            }
            Listing::Tables(items) => {
                let (mut tables, mut labels) = (Vec::new(), Vec::new());
                for (file, class) in &items {
                    let table = Table::open(file, options, Some(class))?;
                    let first = labels.len();
                    labels.resize(first + table.len(), number(class));
                    tables.push((first, table));
                }
                Self::new(path, classes, labels, Source::Tables(tables), None)
            }
        }
    }

    fn new(
        path: &Path,
        classes: Vec<String>,
        labels: Vec<u32>,
        source: Source,
        channels: Option<Vec<usize>>,
    ) -> Result<Self> {
        if labels.is_empty() {
            return Err(Error::input(path, "found no images"));
        }
        if labels.len() > MAX_IMAGES {
            return Err(Error::input(path, format!("found {} images, expected at most {MAX_IMAGES}", labels.len())));
        }
        let (path, transform) = (path.to_path_buf(), TransformConfig::default());
        Ok(Self { path, classes, labels, source, transform, channels, parameters: None })
    }

    /// The same images, seen through `transform`. [`Error::Usage`] for settings that contradict themselves.
    pub fn transformed(mut self, transform: TransformConfig) -> Result<Self> {
        transform.validate().map_err(Error::Usage)?;
        self.transform = transform;
        Ok(self)
    }

    /// The same images, with the columns called `names` of the `params.csv` beside them; without any names as they are.
    ///
    /// # Errors
    /// [`Error::Input`]: no table, a column or a row that it lacks, a field that is no finite number.
    pub fn with_parameters(mut self, names: &[String]) -> Result<Self> {
        self.parameters = if names.is_empty() { None } else { Some(parameters::read(&self, names)?) };
        Ok(self)
    }

    /// The same classes, labels and parameters with other images, of `shape` (channels, height, width), which go through no
    /// transform. PRECOND: as many as there are.
    pub fn with_images(&self, shape: [usize; 3], pixels: Vec<f32>) -> Self {
        Self {
            path: self.path.clone(),
            classes: self.classes.clone(),
            labels: self.labels.clone(),
            source: Source::Memory(shape, pixels),
            transform: TransformConfig::default(),
            channels: None,
            parameters: self.parameters.clone(),
        }
    }

    /// The parameters that were asked for.
    pub fn parameters(&self) -> Option<&ParameterTable> {
        self.parameters.as_ref()
    }

    /// Folder or file as it was given.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Number of images.
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// Whether there are none; never the case.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    /// Names of the classes, by index.
    pub fn classes(&self) -> &[String] {
        &self.classes
    }

    /// Class of each image.
    pub fn labels(&self) -> &[u32] {
        &self.labels
    }

    /// What images go through when they are taken.
    pub fn transform(&self) -> &TransformConfig {
        &self.transform
    }

    /// File of image `index`, and its row where the file holds many.
    pub fn place(&self, index: usize) -> (&Path, Option<usize>) {
        match &self.source {
            Source::Files(files) => (&files[index], None),
            Source::Tables(tables) => {
                let (first, table) = table_of(tables, index);
                (table.path(), Some(index - first))
            }
            Source::Memory(..) => (&self.path, Some(index)),
        }
    }

    /// Image `index`, which must exist, as stored. [`Error::Input`] that names the file and the row for a damaged one
    /// and for pixels that are not finite.
    pub fn read(&self, index: usize) -> Result<Image> {
        match &self.source {
            Source::Files(files) => {
                let image = image::read_image(&files[index])?;
                match &self.channels {
                    None => Ok(image),
                    Some(channels) => pick(image, channels).map_err(|reason| Error::input(&files[index], reason)),
                }
            }
            Source::Tables(tables) => {
                let (first, table) = table_of(tables, index);
                let image = table.read(index - first)?;
                image::refuse_non_finite(&image.pixels, image.shape)
                    .map_err(|reason| Error::input(table.path(), format!("row {}: {reason}", index - first)))?;
                Ok(image)
            }
            Source::Memory(shape, pixels) => {
                let len: usize = shape.iter().product();
                Ok(Image { shape: *shape, pixels: pixels[index * len..][..len].to_vec(), number: None })
            }
        }
    }

    /// Image `index` after the transform; the random parts of it only with a `draw`. Errors of [`DataSet::read`], and
    /// [`Error::Input`] for an image that the transform cannot take.
    pub fn take(&self, index: usize, draw: Option<Draw>) -> Result<Image> {
        let image = self.read(index)?;
        self.transform.apply(image, draw).map_err(|reason| {
            let (path, row) = self.place(index);
            let row = row.map_or(String::new(), |r| format!("row {r}: "));
            Error::input(path, format!("{row}{reason}"))
        })
    }

    /// Channels, height and width of the first image after the transform: what all of them must have in a batch.
    pub fn shape(&self) -> Result<[usize; 3]> {
        Ok(self.take(0, None)?.shape)
    }
}

fn table_of(tables: &[(usize, Table)], index: usize) -> &(usize, Table) {
    &tables[tables.partition_point(|(first, _)| *first <= index) - 1]
}

/// The chosen channels of an image.
fn pick(image: Image, channels: &[usize]) -> Result<Image, String> {
    let [c, h, w] = image.shape;
    if channels.is_empty() || channels.iter().any(|&k| k >= c) {
        return Err(format!("channels {channels:?}: the image has channels 0 to {}", c - 1));
    }
    let pixels = channels.iter().flat_map(|&k| &image.pixels[k * h * w..][..h * w]).copied().collect();
    Ok(Image { shape: [channels.len(), h, w], pixels, ..image })
}

/// Sorted names of the classes, or those asked for, which must contain all that is there.
fn classes_of(path: &Path, items: &[(PathBuf, String)], options: &SourceOptions) -> Result<Vec<String>> {
    let Some(wanted) = &options.classes else {
        let mut names: Vec<String> = items.iter().map(|(_, class)| class.clone()).collect();
        names.sort();
        names.dedup();
        return Ok(names);
    };
    match items.iter().find(|(_, class)| !wanted.contains(class)) {
        Some((_, class)) => {
            let known = wanted.iter().map(String::as_str);
            Err(Error::input(
                path,
                format!("{}; the classes are {}", known::unknown("class", class, known.clone()), wanted.join(", ")),
            ))
        }
        None => Ok(wanted.clone()),
    }
}
