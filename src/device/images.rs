//! Compiled kernels as a value: what this binary carries, and which image a GPU takes.

use std::fmt;
use std::io::Read as _;

use flate2::read::ZlibDecoder;

use crate::error::{Error, Result};

/// What an image runs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ImageTarget {
    /// PTX for this compute capability, written as `major * 10 + minor`: the driver compiles it for any GPU from there on.
    Ptx(u32),
    /// Machine code for one architecture.
    Cubin {
        /// Major compute capability.
        major: u32,
        /// Minor compute capability; code without `feature_a` also runs on higher minors of the same major.
        minor: u32,
        /// Uses architecture-specific instructions (`sm_90a`): runs on exactly this capability.
        feature_a: bool,
    },
    /// No code at all: a list of kernel names that the emulated driver of the tests checks, for every module and architecture.
    Manifest,
}

impl ImageTarget {
    /// Machine code for Hopper with its own instructions.
    pub(super) const HOPPER: Self = Self::Cubin { major: 9, minor: 0, feature_a: true };
}

impl fmt::Display for ImageTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ptx(capability) => write!(f, "PTX compute_{capability}"),
            Self::Cubin { major, minor, feature_a } => {
                write!(f, "sm_{major}{minor}{}", if *feature_a { "a" } else { "" })
            }
            Self::Manifest => f.write_str("emulated"),
        }
    }
}

/// One compiled kernel file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelImage {
    /// Name of the file in `kernels/` without `.cu`; empty for a manifest, which stands for all of them.
    pub module: &'static str,
    /// What it runs on.
    pub target: ImageTarget,
    content: Content,
}

/// Where the bytes of an image are.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Content {
    /// In this binary, zlib-compressed by the build: all images take 1.5 MB instead of 6.
    Packed(&'static [u8]),
    /// Given at run time.
    Plain(Vec<u8>),
}

impl KernelImage {
    /// What `cuModuleLoadData` is given: an ELF image, or text that ends with NUL. Unpacked or copied at
    /// every call.
    ///
    /// # Errors
    /// A device error when the binary is damaged.
    pub fn bytes(&self) -> Result<Vec<u8>> {
        match &self.content {
            Content::Plain(bytes) => Ok(bytes.clone()),
            Content::Packed(packed) => {
                let mut bytes = Vec::new();
                ZlibDecoder::new(*packed).read_to_end(&mut bytes).map_err(|e| {
                    Error::device(format!(
                        "the kernels of `{}` ({}) in this binary are damaged: {e}",
                        self.module, self.target
                    ))
                })?;
                Ok(bytes)
            }
        }
    }

    /// Bytes that the image takes in this binary or in memory.
    pub fn stored_size(&self) -> usize {
        match &self.content {
            Content::Plain(bytes) => bytes.len(),
            Content::Packed(packed) => packed.len(),
        }
    }
}

/// The compute capability that machine code of lower minors is not promised to run on.
const JETSON_ORIN: (u32, u32) = (8, 7);

/// The kernels that a `Cuda` device may load.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KernelImages {
    images: Vec<KernelImage>,
    nvcc: Option<&'static str>,
}

impl KernelImages {
    /// First line of a manifest.
    pub const MANIFEST_MARKER: &'static str = "ARCLET-EMU-MANIFEST\n";

    /// The images that the build embedded in this binary; none when it found no nvcc.
    pub fn embedded() -> Self {
        let image = |(module, target, packed): &Embedded| KernelImage {
            module,
            target: *target,
            content: Content::Packed(packed),
        };
        Self { images: generated::IMAGES.iter().map(image).collect(), nvcc: generated::NVCC }
    }

    /// A manifest for the emulated driver: text that starts with [`Self::MANIFEST_MARKER`]. One image serves all modules and
    /// architectures.
    pub fn manifest(text: impl Into<Vec<u8>>) -> Self {
        let mut bytes = text.into();
        if bytes.last() != Some(&0) {
            bytes.push(0);
        }
        let image = KernelImage { module: "", target: ImageTarget::Manifest, content: Content::Plain(bytes) };
        Self { images: vec![image], nvcc: None }
    }

    /// The image of `module` for a GPU of this compute capability (major, minor): its own machine code, else that of the
    /// nearest lower minor, else PTX. Capability 8.7 (Jetson Orin) runs no machine code of 8.0 to 8.6: NVIDIA promises that
    /// code of a lower minor runs for desktop GPUs only.
    ///
    /// # Errors
    /// A device error that names what this binary has, when nothing fits.
    pub fn select(&self, module: &str, (major, minor): (u32, u32)) -> Result<&KernelImage> {
        let rank = |target: ImageTarget| match target {
            ImageTarget::Manifest => Some((3, 0)),
            ImageTarget::Cubin { major: j, minor: n, .. } if (j, n) == (major, minor) => Some((2, 0)),
            ImageTarget::Cubin { major: j, minor: n, feature_a: false } if j == major && n < minor => {
                ((major, minor) != JETSON_ORIN).then_some((1, n))
            }
            ImageTarget::Ptx(capability) if capability <= major * 10 + minor => Some((0, capability)),
            _ => None,
        };
        let of_module = |i: &&KernelImage| i.module == module || i.target == ImageTarget::Manifest;
        let fitting = self.images.iter().filter(of_module).filter_map(|i| Some((rank(i.target)?, i)));
        fitting.max_by_key(|(rank, _)| *rank).map(|(_, image)| image).ok_or_else(|| {
            let targets: Vec<String> = self.images.iter().filter(of_module).map(|i| i.target.to_string()).collect();
            Error::device(match (self.is_empty(), targets.is_empty()) {
                (true, _) => format!("no kernels for the GPU: {}", self.describe()),
                (_, true) => format!("this binary has no kernels of module `{module}`, only {}", self.describe()),
                _ => format!(
                    "no kernels of module `{module}` for compute capability {major}.{minor}: this binary has {}, and 8.0 is the \
                     oldest that arclet supports",
                    targets.join(", ")
                ),
            })
        })
    }

    /// Whether there is nothing to load.
    pub fn is_empty(&self) -> bool {
        self.images.is_empty()
    }

    /// All images, sorted by module, then target.
    pub fn images(&self) -> &[KernelImage] {
        &self.images
    }

    /// Version of the nvcc that compiled the embedded images, for instance `13.0.88`.
    pub fn nvcc(&self) -> Option<&'static str> {
        self.nvcc
    }

    /// One line for people: modules, targets with their size, and the compiler; for an empty set, how to get some.
    pub fn describe(&self) -> String {
        if self.is_empty() {
            return "this binary has none, as the build found no nvcc; `tools/setup-cuda && cargo build --release` adds them".into();
        }
        let mut modules: Vec<&str> = self.images.iter().map(|i| i.module).filter(|m| !m.is_empty()).collect();
        modules.dedup();
        let mut targets: Vec<ImageTarget> = self.images.iter().map(|i| i.target).collect();
        targets.sort();
        targets.dedup();
        let size = |target: &ImageTarget| -> usize {
            self.images.iter().filter(|i| i.target == *target).map(KernelImage::stored_size).sum()
        };
        let targets: Vec<String> = targets.iter().map(|t| format!("{t} ({} kB)", size(t).div_ceil(1000))).collect();
        match self.nvcc {
            Some(nvcc) => format!("{} by nvcc {nvcc}: {}", modules.join(", "), targets.join(", ")),
            None => format!("a manifest of kernel names, {}", targets.join(", ")),
        }
    }
}

/// Module, target and zlib-compressed bytes of one image in this binary.
type Embedded = (&'static str, ImageTarget, &'static [u8]);

/// Written by `build.rs`.
mod generated {
    include!(concat!(env!("OUT_DIR"), "/images.rs"));
}

#[cfg(test)]
mod tests {
    use super::*;

    const SM_80: ImageTarget = ImageTarget::Cubin { major: 8, minor: 0, feature_a: false };
    const SM_86: ImageTarget = ImageTarget::Cubin { major: 8, minor: 6, feature_a: false };
    const SM_89: ImageTarget = ImageTarget::Cubin { major: 8, minor: 9, feature_a: false };
    const SM_90A: ImageTarget = ImageTarget::Cubin { major: 9, minor: 0, feature_a: true };
    const PTX: ImageTarget = ImageTarget::Ptx(80);

    fn images(targets: &[ImageTarget]) -> KernelImages {
        let image = |t: &ImageTarget| KernelImage { module: "linear", target: *t, content: Content::Plain(vec![0]) };
        KernelImages { images: targets.iter().map(image).collect(), nvcc: Some("13.0.88") }
    }

    fn chosen(images: &KernelImages, capability: (u32, u32)) -> ImageTarget {
        images.select("linear", capability).unwrap().target
    }

    #[test]
    fn every_gpu_gets_the_image_nearest_to_it() {
        let all = images(&[PTX, SM_80, SM_86, SM_89, SM_90A]);
        assert_eq!(chosen(&all, (8, 0)), SM_80);
        assert_eq!(chosen(&all, (8, 6)), SM_86);
        assert_eq!(chosen(&all, (8, 7)), PTX);
        assert_eq!(chosen(&all, (8, 9)), SM_89);
        assert_eq!(chosen(&all, (9, 0)), SM_90A);
        assert_eq!(chosen(&all, (10, 0)), PTX);
        assert_eq!(chosen(&all, (12, 1)), PTX);
    }

    #[test]
    fn machine_code_never_runs_on_a_lower_minor_or_another_major() {
        assert!(images(&[SM_86]).select("linear", (8, 0)).is_err());
        assert!(images(&[SM_89]).select("linear", (9, 0)).is_err());
        assert_eq!(chosen(&images(&[PTX, SM_89]), (8, 6)), PTX);
    }

    #[test]
    fn architecture_specific_code_runs_on_its_own_capability_only() {
        assert_eq!(chosen(&images(&[PTX, SM_90A]), (9, 1)), PTX);
        assert!(images(&[SM_90A]).select("linear", (9, 1)).is_err());
    }

    #[test]
    fn an_older_gpu_is_told_what_the_binary_has() {
        let error = images(&[PTX, SM_80, SM_90A]).select("linear", (7, 5)).unwrap_err();
        assert_eq!(error.exit_code(), 4);
        let message = error.to_string();
        for part in ["`linear`", "7.5", "PTX compute_80", "sm_80", "sm_90a"] {
            assert!(message.contains(part), "{part} not in: {message}");
        }
    }

    #[test]
    fn an_unknown_module_and_an_empty_set_are_told_apart() {
        let message = images(&[PTX]).select("attention", (8, 0)).unwrap_err().to_string();
        assert!(message.contains("`attention`") && message.contains("linear by nvcc 13.0.88"), "{message}");
        let message = KernelImages::default().select("linear", (8, 0)).unwrap_err().to_string();
        assert!(message.contains("tools/setup-cuda"), "{message}");
    }

    #[test]
    fn a_manifest_serves_every_module_and_ends_with_nul() {
        let text = format!("{}linear_fwd_f32\n", KernelImages::MANIFEST_MARKER);
        let manifest = KernelImages::manifest(text.as_bytes());
        let image = manifest.select("attention", (9, 0)).unwrap();
        assert_eq!(image.target, ImageTarget::Manifest);
        let bytes = image.bytes().unwrap();
        assert_eq!(&bytes[..text.len()], text.as_bytes());
        assert_eq!(bytes[text.len()..], [0]);
        assert_eq!(KernelImages::manifest(bytes), manifest);
        assert!(manifest.describe().contains("manifest"));
    }

    #[test]
    fn embedded_images_are_what_the_driver_expects() {
        for image in KernelImages::embedded().images() {
            let (name, bytes) = (image.module, image.bytes().unwrap());
            match image.target {
                ImageTarget::Ptx(_) => {
                    assert!(bytes.ends_with(b"\0") && bytes.windows(8).any(|w| w == b".version"), "{name}");
                }
                ImageTarget::Cubin { .. } => assert!(bytes.starts_with(b"\x7fELF"), "{name}"),
                ImageTarget::Manifest => panic!("{name}: a manifest is not for binaries"),
            }
        }
    }

    #[test]
    fn a_damaged_binary_is_an_error_and_no_panic() {
        let content = Content::Packed(&[0x78, 0x9c, 0xff, 0xff]);
        let error = KernelImage { module: "linear", target: SM_80, content }.bytes().unwrap_err();
        assert_eq!(error.exit_code(), 4);
        assert!(error.to_string().contains("`linear` (sm_80)"), "{error}");
    }
}
