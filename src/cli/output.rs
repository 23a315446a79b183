//! Files of samples: the array, its recipe and its preview. That all three can be written is known before the first
//! image is drawn; each appears whole or not at all.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use arclet::error::{Error, Result};
use arclet::io::{
    AtomicFile, GridPng, NpyWriter, TensorBytes, require_h5, sha256_file, write_atomic, write_grid_png, write_h5,
    write_safetensors,
};

use serde::Serialize;

use super::options::Shard;
use super::recipe::Recipe;
use super::report;

/// Stem of the files in an output folder.
const STEM: &str = "samples";
/// Name of the array in a safetensors file, as in HDF5.
pub const TENSOR: &str = "images";
/// Metadata key of a safetensors file, and attribute of HDF5, that hold the recipe.
const RECIPE: &str = "recipe";
/// Most images in a preview.
const PREVIEW: usize = 100;
/// Colour map of the preview.
pub const COLOR_MAP: &str = "inferno";

/// Kind of array file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    Npy,
    Safetensors,
    Hdf5,
}

/// Where the files of a run go.
#[derive(Clone, Debug, Serialize)]
pub struct Target {
    /// The array.
    pub data: PathBuf,
    /// The recipe.
    pub recipe: PathBuf,
    /// The preview.
    pub preview: PathBuf,
    #[serde(skip)]
    format: Format,
}

impl Target {
    /// What `--out` means: a file if it ends like one, else a folder. A shard gets its number into the name.
    ///
    /// # Errors
    /// [`Error::Usage`] for a kind of file that cannot be written.
    pub fn new(out: &Path, shard: Option<Shard>) -> Result<Self> {
        let extension = out.extension().and_then(|e| e.to_str()).unwrap_or("").to_ascii_lowercase();
        let file = |format| (out.with_extension(""), extension.clone(), format);
        let (stem, extension, format) = match extension.as_str() {
            "npy" => file(Format::Npy),
            "safetensors" => file(Format::Safetensors),
            "h5" | "hdf5" => {
                require_h5()?;
                file(Format::Hdf5)
            }
            "json" | "png" | "npz" => {
                return Err(Error::usage(format!(
                    "--out {}: found .{extension}, expected a folder or a .npy, .safetensors or .h5 file",
                    out.display()
                )));
            }
            _ => (out.join(STEM), "npy".into(), Format::Npy),
        };
        let mut name = stem.into_os_string();
        if let Some(Shard { index, count }) = shard {
            name.push(format!("-{index}of{count}"));
        }
        let with = |extension: &str| {
            let mut name = name.clone();
            name.push(".");
            name.push(extension);
            PathBuf::from(name)
        };
        Ok(Self { data: with(&extension), recipe: with("json"), preview: with("png"), format })
    }
}

/// Writes samples as they come.
pub struct SampleWriter {
    target: Target,
    image: [usize; 3],
    array: Array,
    /// The first images, for the preview.
    shown: Vec<f32>,
    rows: usize,
    folders: NewFolders,
}

enum Array {
    Npy(NpyWriter),
    /// The whole array, for a format whose header comes first.
    Memory(Vec<f32>),
}

impl SampleWriter {
    /// Creates the folders and makes sure that every file can be written.
    ///
    /// # Errors
    /// [`Error::Output`].
    pub fn create(target: Target, rows: usize, image: [usize; 3]) -> Result<Self> {
        let [channels, height, width] = image;
        let folders = NewFolders::create(target.data.parent().unwrap_or(Path::new("")))?;
        for path in [&target.data, &target.recipe, &target.preview] {
            AtomicFile::create(path)?;
        }
        let array = match target.format {
            Format::Npy => Array::Npy(NpyWriter::create(&target.data, &[rows, channels, height, width])?),
            Format::Safetensors | Format::Hdf5 => Array::Memory(Vec::new()),
        };
        Ok(Self { target, image, array, shown: Vec::new(), rows: 0, folders })
    }

    /// Appends whole images.
    ///
    /// # Errors
    /// [`Error::Output`] if the disk is full; [`Error::Runtime`] for more images than were announced.
    pub fn push(&mut self, images: &[f32]) -> Result<()> {
        let image_len: usize = self.image.iter().product();
        let missing = (PREVIEW.saturating_sub(self.rows) * image_len).min(images.len());
        self.shown.extend_from_slice(&images[..missing]);
        self.rows += images.len() / image_len;
        match &mut self.array {
            Array::Npy(writer) => writer.push(images),
            Array::Memory(values) => {
                let bytes = images.len() * 4;
                let full = |_| Error::Runtime(format!("no memory for {bytes} bytes of samples; write .npy instead"));
                values.try_reserve(images.len()).map_err(full)?;
                values.extend_from_slice(images);
                Ok(())
            }
        }
    }

    /// Gives the files their names, with the images that were pushed. Number, shape and digest are filled into the
    /// recipe, which is returned as written. No images make no preview.
    ///
    /// # Errors
    /// [`Error::Output`].
    pub fn finish(self, mut recipe: Recipe) -> Result<Recipe> {
        let Self { target, image: [channels, height, width], array, shown, rows, folders } = self;
        recipe.n = rows as u64;
        recipe.shape = [rows, channels, height, width];
        let inside = report::to_json(&recipe)?;
        match array {
            Array::Npy(writer) => writer.finish_partial(rows)?,
            Array::Memory(images) if target.format == Format::Hdf5 => {
                write_h5(&target.data, &recipe.shape, &images, &[(RECIPE, &inside)])?;
            }
            Array::Memory(images) => {
                let tensor = TensorBytes::from_f32(TENSOR, &recipe.shape, &images);
                write_safetensors(&target.data, [tensor], &BTreeMap::from([(RECIPE.into(), inside)]))?;
            }
        }
        folders.keep();
        if rows > 0 {
            let (n, [low, high]) = (rows.min(PREVIEW), recipe.preview.range);
            let (images, range) = (&shown[..], (low, high));
            let grid = GridPng { images, n, channels, height, width, range, columns: None, zoom: None };
            write_grid_png(&target.preview, &grid)?;
        }
        recipe.data_sha256 = Some(sha256_file(&target.data)?);
        write_atomic(&target.recipe, (report::to_json(&recipe)? + "\n").as_bytes())?;
        Ok(recipe)
    }
}

/// Folders made for an output, removed again if it comes to nothing.
struct NewFolders(Vec<PathBuf>);

impl NewFolders {
    fn create(folder: &Path) -> Result<Self> {
        let missing = folder.ancestors().filter(|f| !f.as_os_str().is_empty()).take_while(|f| !f.exists());
        let made = Self(missing.map(Path::to_path_buf).collect());
        if !made.0.is_empty() {
            std::fs::create_dir_all(folder).map_err(|e| Error::output(folder, e))?;
        }
        Ok(made)
    }

    fn keep(mut self) {
        self.0.clear();
    }
}

impl Drop for NewFolders {
    fn drop(&mut self) {
        for folder in &self.0 {
            // Fails if something else was put there meanwhile, which then stays.
            let _ = std::fs::remove_dir(folder);
        }
    }
}
