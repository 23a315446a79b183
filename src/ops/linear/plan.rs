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
    /// k-tiles in shared memory.
    stages: usize,
    /// Of `linear_hopper.cu`, not `linear.cu`.
    hopper: bool,
}

/// The tiles that `linear.cu` has for f16 and bf16, small ones first; f32 has the first only.
pub const TILES: [Tile; 3] = [
    Tile { rows: 64, cols: 64, threads: 128, stages: 4, hopper: false },
    Tile { rows: 64, cols: 128, threads: 128, stages: 4, hopper: false },
    Tile { rows: 128, cols: 128, threads: 256, stages: 4, hopper: false },
];

/// Those of `linear_hopper.cu`: two for few rows, and one for many.
pub const HOPPER_TILES: [Tile; 3] = [
    Tile { rows: 104, cols: 64, threads: 160, stages: 6, hopper: true },
    Tile { rows: 200, cols: 64, threads: 160, stages: 5, hopper: true },
    Tile { rows: 128, cols: 128, threads: 288, stages: 4, hopper: true },
];

impl Tile {
    /// The name in the table: `64x128`, or `hopper_200x64`.
    pub fn name(&self) -> String {
        format!("{}{}x{}", if self.hopper { "hopper_" } else { "" }, self.rows, self.cols)
    }

    /// Whether it is one of [`HOPPER_TILES`].
    pub fn is_hopper(&self) -> bool {
        self.hopper
    }

    /// The kernel's file and name.
    pub(super) fn kernel(&self, dtype: DType) -> (&'static str, String) {
        let module = if self.hopper { "linear_hopper" } else { "linear" };
        (module, format!("{module}_fwd_{dtype}_{}x{}", self.rows, self.cols))
    }

    /// Threads of a block.
    pub(super) fn threads(&self, dtype: DType) -> u32 {
        if dtype == DType::F32 { 256 } else { self.threads }
    }

    /// Dynamic shared memory of a block (`Tile::SHARED` in the kernel's file): a ring of k-tiles, 64 bytes a row of both
    /// operands or 128 on Hopper, and 12 bytes a row of y. Hopper: also the sums, and two barriers a stage.
    pub(super) fn shared_bytes(&self) -> u32 {
        let Self { rows, cols, stages, .. } = *self;
        let bytes = match self.hopper {
            false => stages * 64 * (rows + cols) + 12 * rows,
            true => {
                (stages * 128 * (rows + cols) + 4 * rows * (cols + 4) + 12 * rows).next_multiple_of(8) + 16 * stages
            }
        };
        bytes as u32
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
        match self.spread && !self.tile.hopper {
            true => WorkspaceSize { sums: self.splits * m * n, counters: self.tile.blocks(m, n) },
            false => WorkspaceSize::default(),
        }
    }
}

/// The plan for x [images, rows, k] and a weight [n, k]: kernel and chunks of k from the table of tuned shapes or, for a
/// shape outside it, such that one image fills a large GPU. They are the same whatever the batch, so that every product and
/// the order of every sum is too; the tile follows the number of rows.
pub fn plan(cuda: &Cuda, dtype: DType, images: usize, rows: usize, n: usize, k: usize) -> Plan {
    let m = images * rows;
    // Both have to be whole 16-byte blocks for TMA, which reads rows of k and is followed by stores of rows of n.
    let hopper = cuda.hopper() && dtype != DType::F32 && n.is_multiple_of(8) && k.is_multiple_of(8);
    let tuned = (dtype != DType::F32).then(|| tuned(&cuda.arch(), rows, n, k)).flatten();
    let tuned = tuned.filter(|(tile, _)| hopper || !tile.hopper);
    let multiprocessors = cuda.multiprocessors();
    if tuned.map_or(hopper, |(tile, _)| tile.hopper) {
        let [small, large, many] = HOPPER_TILES;
        let padded = |t: Tile| rows.next_multiple_of(t.rows);
        let one = tuned.map_or(if padded(small) < padded(large) { small } else { large }, |(tile, _)| tile);
        let splits = tuned.map_or_else(|| splits(one, rows, n, k, MIN_HOPPER_K), |(_, splits)| splits);
        let tile = if images > 1 && many.blocks(m, n) >= multiprocessors { many } else { one };
        return Plan::new(tile, k, splits.min(MAX_CLUSTER), tile.blocks(m, n) < multiprocessors);
    }
    let splits = tuned.map_or_else(|| splits(TILES[0], rows, n, k, MIN_K), |(_, splits)| splits);
    let tile = match tuned {
        Some((tile, _)) if images == 1 => tile,
        // The larger tiles copy whole 16-byte blocks.
        _ if dtype == DType::F32 || !k.is_multiple_of(8) => TILES[0],
        // The largest that still gives every multiprocessor two blocks.
        _ => *TILES.iter().rev().find(|t| t.blocks(m, n) >= 2 * multiprocessors).unwrap_or(&TILES[0]),
    };
    Plan::new(tile, k, splits, tile.blocks(m, n) < multiprocessors)
}

/// Blocks that fill a large GPU.
const BLOCKS: usize = 128;
/// The least k of a chunk.
const MIN_K: usize = 256;
/// The same where the chunks meet in a cluster and not in memory.
const MIN_HOPPER_K: usize = 128;
/// Most blocks of a cluster, and so chunks of k, on every GPU that has clusters.
const MAX_CLUSTER: usize = 8;

fn splits(tile: Tile, rows: usize, n: usize, k: usize, min_k: usize) -> usize {
    (BLOCKS / tile.blocks(rows, n)).clamp(1, (k / min_k).max(1))
}

/// Tile and splits of one image's product in the committed table: lines of architecture, rows, n, k, tile, splits.
fn tuned(arch: &str, rows: usize, n: usize, k: usize) -> Option<(Tile, usize)> {
    const TABLE: &str = include_str!("../../../kernels/tiles.tsv");
    let key = format!("{arch}\t{rows}\t{n}\t{k}\t");
    let line = TABLE.lines().find_map(|line| line.strip_prefix(&key))?;
    let mut fields = line.split('\t');
    let (tile, splits) = (fields.next()?, fields.next()?);
    Some((*TILES.iter().chain(&HOPPER_TILES).find(|t| t.name() == tile)?, splits.parse().ok()?))
}
