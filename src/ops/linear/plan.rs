//! How a product is cut up on a GPU: the tile of y that a block computes, and the chunks that k is summed in.

use super::WorkspaceSize;
use crate::device::cuda::Cuda;
use crate::tensor::DType;

/// Rows and columns of y that one block computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tile {
    /// Rows.
    pub rows: usize,
    /// Columns.
    pub cols: usize,
    /// Threads of a block in f16 and bf16.
    threads: u32,
}

/// The tiles there are kernels for in f16 and bf16, small ones first; f32 has the first only.
pub const TILES: [Tile; 3] = [
    Tile { rows: 64, cols: 64, threads: 128 },
    Tile { rows: 64, cols: 128, threads: 128 },
    Tile { rows: 128, cols: 128, threads: 256 },
];

impl Tile {
    /// The name in kernel names and in the table: `64x128`.
    pub fn name(&self) -> String {
        format!("{}x{}", self.rows, self.cols)
    }

    /// Threads of a block.
    pub(super) fn threads(&self, dtype: DType) -> u32 {
        if dtype == DType::F32 { 256 } else { self.threads }
    }

    /// Dynamic shared memory of a block (`Tile::SHARED` in `linear.cu`): four stages of 64 bytes a row of both operands,
    /// and 12 bytes a row of y.
    pub(super) fn shared_bytes(&self) -> u32 {
        (4 * 64 * (self.rows + self.cols) + 12 * self.rows) as u32
    }

    fn blocks(&self, m: usize, n: usize) -> usize {
        m.div_ceil(self.rows) * n.div_ceil(self.cols)
    }
}

/// How [`super::linear`] runs on a GPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// What a block computes.
    pub tile: Tile,
    /// Chunks that k is summed in: the last bits depend on it, and on nothing else here.
    pub splits: usize,
    /// k of a chunk, but for the last.
    pub k_per_split: usize,
    /// Whether each chunk has blocks of its own.
    pub spread: bool,
}

impl Plan {
    /// k in `splits` chunks or a few less: chunks are multiples of 64.
    pub fn new(tile: Tile, k: usize, splits: usize, spread: bool) -> Self {
        let k_per_split = k.div_ceil(splits.max(1)).next_multiple_of(64);
        let splits = k.div_ceil(k_per_split);
        Self { tile, splits, k_per_split, spread: spread && splits > 1 }
    }

    /// What a product with `m` rows and `n` columns needs.
    pub fn workspace(&self, m: usize, n: usize) -> WorkspaceSize {
        match self.spread {
            true => WorkspaceSize { sums: self.splits * m * n, counters: self.tile.blocks(m, n) },
            false => WorkspaceSize::default(),
        }
    }
}

/// The plan for x [images, rows, k] and a weight [n, k]: chunks of k from the table of tuned shapes or, for a shape outside
/// it, such that one image fills a large GPU. They are the same whatever the batch, so that the order of every sum is too;
/// the tile follows the number of rows.
pub fn plan(cuda: &Cuda, dtype: DType, images: usize, rows: usize, n: usize, k: usize) -> Plan {
    let m = images * rows;
    let tuned = (dtype != DType::F32).then(|| tuned(&cuda.arch(), rows, n, k)).flatten();
    let splits = tuned.map_or_else(|| splits(rows, n, k), |(_, splits)| splits);
    let tile = match tuned {
        Some((tile, _)) if images == 1 => tile,
        // The larger tiles copy whole 16-byte blocks.
        _ if dtype == DType::F32 || !k.is_multiple_of(8) => TILES[0],
        // The largest that still gives every multiprocessor two blocks.
        _ => *TILES.iter().rev().find(|t| t.blocks(m, n) >= 2 * cuda.multiprocessors()).unwrap_or(&TILES[0]),
    };
    Plan::new(tile, k, splits, tile.blocks(m, n) < cuda.multiprocessors())
}

fn splits(rows: usize, n: usize, k: usize) -> usize {
    const BLOCKS: usize = 128;
    const MIN_K: usize = 256;
    (BLOCKS / TILES[0].blocks(rows, n)).clamp(1, (k / MIN_K).max(1))
}

/// Tile and splits of one image's product in the committed table: lines of architecture, rows, n, k, tile, splits.
fn tuned(arch: &str, rows: usize, n: usize, k: usize) -> Option<(Tile, usize)> {
    const TABLE: &str = include_str!("../../../kernels/tiles.tsv");
    let key = format!("{arch}\t{rows}\t{n}\t{k}\t");
    let line = TABLE.lines().find_map(|line| line.strip_prefix(&key))?;
    let mut fields = line.split('\t');
    let (tile, splits) = (fields.next()?, fields.next()?);
    Some((*TILES.iter().find(|t| t.name() == tile)?, splits.parse().ok()?))
}
