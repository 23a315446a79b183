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

/// Those of `linear_hopper.cu`, small ones first.
pub const HOPPER_TILES: [Tile; 5] = [
    Tile { rows: 104, cols: 64, threads: 160, stages: 6, hopper: true },
    Tile { rows: 200, cols: 64, threads: 160, stages: 5, hopper: true },
    Tile { rows: 104, cols: 128, threads: 288, stages: 4, hopper: true },
    Tile { rows: 128, cols: 128, threads: 288, stages: 4, hopper: true },
    Tile { rows: 200, cols: 128, threads: 288, stages: 3, hopper: true },
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
            true => (stages * 128 * (rows + cols) + 4 * rows * cols + 12 * rows).next_multiple_of(8) + 16 * stages,
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
            true => WorkspaceSize { sums: self.splits * m * n, counters: self.tile.blocks(m, n), lines: 0 },
            false => WorkspaceSize::default(),
        }
    }
}

/// The plan for x [images, rows, k] and a weight [n, k]: kernel and chunks of k from the table of tuned shapes or, for a
/// shape outside it, what a rough model of one image's product prefers. They are the same whatever the batch, so that every
/// product and the order of every sum is too; the tile follows the number of rows.
pub fn plan(cuda: &Cuda, dtype: DType, images: usize, rows: usize, n: usize, k: usize) -> Plan {
    let (m, multiprocessors) = (images * rows, cuda.multiprocessors());
    let one = tuned(cuda, rows, n, k).filter(|t| candidates(cuda, dtype, rows, n, k).contains(t));
    let one = one.unwrap_or_else(|| predicted(cuda, dtype, rows, n, k));
    let large = match one.tile.hopper {
        true => &HOPPER_TILES[..],
        // The larger tiles copy whole 16-byte blocks.
        false if dtype == DType::F32 || !k.is_multiple_of(8) => &TILES[..1],
        false => &TILES[..],
    };
    // For several images the largest tile that still gives every multiprocessor a block, or two that share it.
    let fills = |t: &&Tile| t.blocks(m, n) >= multiprocessors * if t.hopper { 1 } else { 2 };
    let tile = large.iter().rev().find(fills).filter(|_| images > 1).copied().unwrap_or(one.tile);
    Plan { tile, spread: one.splits > 1 && tile.blocks(m, n) < multiprocessors, ..one }
}

/// The plan for one image's product that a rough model of the GPU prefers; of equals the one of the fewest chunks and the
/// smallest tile.
pub fn predicted(cuda: &Cuda, dtype: DType, rows: usize, n: usize, k: usize) -> Plan {
    let cost = |p: &Plan| p.cost(&cuda.arch(), cuda.multiprocessors(), rows, n, k);
    let plans = candidates(cuda, dtype, rows, n, k);
    plans.iter().copied().min_by(|a, b| cost(a).total_cmp(&cost(b))).unwrap_or(plans[0])
}

/// The plans for one image's product that are worth comparing, in f16 and bf16; those of `linear_hopper.cu` where they can
/// run and may ([`Cuda::set_hopper_tiles`]).
pub fn candidates(cuda: &Cuda, dtype: DType, rows: usize, n: usize, k: usize) -> Vec<Plan> {
    // TMA reads rows of k and is followed by stores of rows of n: both have to be whole 16-byte blocks.
    let whole = k.is_multiple_of(8);
    let tiles = match dtype {
        DType::F32 => &TILES[..1],
        _ if cuda.hopper_tiles() && whole && n.is_multiple_of(8) => &HOPPER_TILES[..],
        _ if whole => &TILES[..],
        _ => &TILES[..1],
    };
    let multiprocessors = cuda.multiprocessors();
    let mut plans: Vec<Plan> = Vec::new();
    for splits in (1..=MAX_CLUSTER).filter(|s| *s == 1 || k / s >= MIN_K) {
        for &tile in tiles {
            let plan = Plan::new(tile, k, splits, tile.blocks(rows, n) < multiprocessors);
            if !plans.contains(&plan) {
                plans.push(plan);
            }
        }
    }
    plans
}

/// The least k of a chunk.
const MIN_K: usize = 128;
/// Most blocks of a cluster, and so chunks of k, on every GPU that has clusters.
const MAX_CLUSTER: usize = 8;

impl Plan {
    /// About how many microseconds one image's product takes, to rank plans by where no measurement does: steps along k that
    /// wait for their data, up to as many blocks to a multiprocessor as can hide behind each other, and what it takes to
    /// bring chunks together. The numbers are assumptions, as in `docs/performance.md`.
    fn cost(&self, arch: &str, multiprocessors: usize, rows: usize, n: usize, k: usize) -> f64 {
        let per_block = if self.spread { self.k_per_split } else { k };
        let blocks = self.tile.blocks(rows, n) * if self.spread { self.splits } else { 1 };
        let turns = blocks.div_ceil(multiprocessors) as f64;
        let area = (self.tile.rows * self.tile.cols) as f64 / 4096.0;
        if self.tile.hopper {
            // A step of 64 along k: the operands through the share of the cache's bandwidth that a block has, or the product.
            let bytes = 128.0 * (self.tile.rows + self.tile.cols) as f64;
            let step = (bytes * blocks.min(multiprocessors) as f64 / 5.5e6).max(bytes / 1e5).max(area * 0.09);
            let joined = if self.spread { 0.8 + 0.05 * self.splits as f64 } else { 0.0 };
            return turns * per_block.div_ceil(64) as f64 * step + joined + 1.0;
        }
        // A step of 32 along k takes 0.2 us in one block of 64 x 64, and in `hidden` of them beside each other.
        let hidden = match arch {
            "sm_90" => 3.0,
            "sm_80" => 2.0,
            _ => 1.0,
        };
        let step = 0.2 * (turns * area / hidden).max(1.0 + 0.25 * (area - 1.0));
        // Sums of chunks go to the cache and back.
        let joined = if self.spread { 1.5 + (self.splits * rows * n * 8) as f64 / 2e6 } else { 0.0 };
        per_block.div_ceil(32) as f64 * step + joined
    }
}

/// The plan for one image's product in the committed table, which `arclet bench --tune` writes: lines of architecture,
/// multiprocessors, rows, n, k, tile, chunks of k, and where they come from.
fn tuned(cuda: &Cuda, rows: usize, n: usize, k: usize) -> Option<Plan> {
    const TABLE: &str = include_str!("../../../kernels/tiles.tsv");
    let key = format!("{}\t{}\t{rows}\t{n}\t{k}\t", cuda.arch(), cuda.multiprocessors());
    let line = TABLE.lines().find_map(|line| line.strip_prefix(&key))?;
    let mut fields = line.split('\t');
    let (tile, splits) = (fields.next()?, fields.next()?.parse().ok()?);
    let tile = *TILES.iter().chain(&HOPPER_TILES).find(|t| t.name() == tile)?;
    Some(Plan::new(tile, k, splits, tile.blocks(rows, n) < cuda.multiprocessors()))
}
