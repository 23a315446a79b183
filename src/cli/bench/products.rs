//! The matrix products of one evaluation of a model: how much work they are, and the same products alone through
//! `gemm`, the yardstick of the CPU path.

use arclet::models::config::{Architecture, ModelConfig, NetworkConfig};
use arclet::models::resnet::ResBlock;
use arclet::models::smp::SmpConfig;
use arclet::models::specs;
use arclet::ops::linear::{matmul, matmul_t};
use gemm::Parallelism;
use rayon::prelude::*;

/// Channels between the flow ViT's input convolution and its patch embedding.
const ENCODER_CHANNELS: usize = 3;

/// One or more products of the same shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Product {
    /// x [m, k] w [n, k]^T.
    Linear {
        /// Rows.
        m: usize,
        /// Columns.
        n: usize,
        /// Inner dimension.
        k: usize,
    },
    /// Per head q k^T and then p v, over `tokens` tokens.
    Attention {
        /// Tokens.
        tokens: usize,
        /// Heads.
        heads: usize,
        /// Channels of a head.
        head_dim: usize,
    },
}

impl Product {
    /// Floating-point operations, two per multiply-add.
    pub fn flops(self) -> f64 {
        match self {
            Self::Linear { m, n, k } => 2.0 * m as f64 * n as f64 * k as f64,
            Self::Attention { tokens, heads, head_dim } => 4.0 * (tokens * tokens) as f64 * (heads * head_dim) as f64,
        }
    }
}

/// The products that one evaluation of one image runs, in order. PRECOND: a model that can be sampled.
pub fn products(config: &ModelConfig) -> Vec<Product> {
    match &config.network {
        NetworkConfig::Smp(smp) => convolutions(config, smp),
        _ => of_transformer(config),
    }
}

/// The convolutions of a U-Net as products: a row for each pixel, a sum over channels and kernel.
fn convolutions(config: &ModelConfig, smp: &SmpConfig) -> Vec<Product> {
    let (size, blocks) = (config.image_size, smp.decoder_blocks());
    let bottleneck = smp.encoder.block == ResBlock::Bottleneck;
    // Sides of the output of the convolution called `name`.
    let side = |name: &str| match name.split('.').collect::<Vec<_>>()[..] {
        ["encoder", "conv1", ..] => size >> 1,
        ["encoder", stage, block, conv, ..] => {
            let stage: usize = stage.trim_start_matches("layer").parse().unwrap_or(1);
            // The middle convolution of a bottleneck halves.
            let before = bottleneck && stage > 1 && block == "0" && conv == "conv1";
            size >> (stage + usize::from(!before))
        }
        ["decoder", "blocks", name, ..] => {
            blocks.iter().find(|b| b.name == name).map_or(size, |b| size >> (4 - b.level))
        }
        ["segmentation_head", ..] => size,
        _ => 1,
    };
    let matrices = specs(config).into_iter().filter(|s| s.shape.len() > 1);
    matrices
        .map(|s| Product::Linear { m: side(&s.name).pow(2), n: s.shape[0], k: s.shape[1..].iter().product() })
        .collect()
}

fn of_transformer(config: &ModelConfig) -> Vec<Product> {
    let (d, tokens) = (config.transformer().hidden_size, config.tokens());
    let pixels = config.transformer().patch_size * config.transformer().patch_size;
    let linear = |m, n, k| Product::Linear { m, n, k };
    let attention = Product::Attention {
        tokens,
        heads: config.transformer().num_heads,
        head_dim: d / config.transformer().num_heads,
    };
    let conditional = config.architecture() == Architecture::Dit;
    let mut all = vec![linear(tokens, d, pixels * config.in_channels)];
    if config.architecture() != Architecture::Vit {
        all.extend([linear(1, d, config.time.dim), linear(1, d, d)]);
    }
    for _ in 0..config.transformer().depth {
        if conditional {
            all.push(linear(1, 6 * d, d));
        }
        all.extend([linear(tokens, 3 * d, d), attention, linear(tokens, d, d)]);
        all.extend([
            linear(tokens, config.transformer().mlp_hidden, d),
            linear(tokens, d, config.transformer().mlp_hidden),
        ]);
    }
    let out = pixels * config.out_channels;
    match config.architecture() {
        Architecture::FlowVit => all.extend([linear(tokens, d, d), linear(tokens, out, d)]),
        Architecture::Dit => all.extend([linear(1, 2 * d, d), linear(tokens, out, d)]),
        _ => all.push(linear(1, config.transformer().head_size, d)),
    }
    all
}

/// Operations of one evaluation of one image as the architecture is written down: the flow ViT's input convolution
/// counts, though it is folded into the patch embedding and costs nothing here.
pub fn flops(config: &ModelConfig) -> f64 {
    let all: f64 = products(config).into_iter().map(Product::flops).sum();
    if config.architecture() != Architecture::FlowVit {
        return all;
    }
    let pixels = (config.image_size * config.image_size) as f64;
    let convolution = 2.0 * pixels * (config.in_channels * ENCODER_CHANNELS) as f64;
    let unfolded =
        2.0 * pixels * config.transformer().hidden_size as f64 * (ENCODER_CHANNELS - config.in_channels.min(3)) as f64;
    all + convolution + unfolded
}

/// Sizes [n, k] of the weights that every evaluation reads: those of products of whole images. What depends on time and
/// class alone is computed once for all evaluations.
pub fn weights(config: &ModelConfig) -> impl Iterator<Item = [usize; 2]> {
    products(config).into_iter().filter_map(|product| match product {
        Product::Linear { m, n, k } if m > 1 => Some([n, k]),
        _ => None,
    })
}

/// Operands of the products of one evaluation of `batch` images, filled with numbers of ordinary size.
pub struct Baseline {
    batch: usize,
    products: Vec<Product>,
    /// Weights of each linear product: as in the model, each its own memory.
    weights: Vec<Vec<f32>>,
    /// Inputs of any product of one image.
    x: Vec<f32>,
    /// Output of any product, for each image.
    y: Vec<f32>,
    /// Elements of `y` that belong to one image.
    y_len: usize,
}

impl Baseline {
    /// Operands for `config`.
    pub fn new(config: &ModelConfig, batch: usize) -> Self {
        let products = products(config);
        let mut state = 1u32;
        let mut fill = |len: usize| -> Vec<f32> {
            let mut next = || {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state >> 8) as f32 / (1 << 23) as f32 - 1.0
            };
            (0..len).map(|_| next()).collect()
        };
        let weights = products.iter().map(|p| match *p {
            Product::Linear { n, k, .. } => fill(n * k),
            Product::Attention { .. } => Vec::new(),
        });
        let weights = weights.collect();
        let x_len = |p: &Product| match *p {
            Product::Linear { m, k, .. } => m * k,
            Product::Attention { tokens, heads, head_dim } => heads * tokens * head_dim.max(tokens),
        };
        let y_len = |p: &Product| match *p {
            Product::Linear { m, n, .. } => m * n,
            Product::Attention { tokens, heads, head_dim } => heads * tokens * (tokens + head_dim),
        };
        let x = fill(products.iter().map(x_len).max().unwrap_or(0));
        let y_len = products.iter().map(y_len).max().unwrap_or(0);
        Self { batch, weights, x, y: vec![0.0; batch * y_len], y_len, products }
    }

    /// Runs all products once, on the threads of the current pool; images side by side if there are enough of them, as
    /// the model does.
    pub fn run(&mut self) {
        let Self { batch, products, weights, x, y, y_len } = self;
        for (product, w) in products.iter().zip(&*weights) {
            if *batch >= rayon::current_num_threads() {
                y.par_chunks_mut(*y_len).for_each(|y| one(*product, x, w, y, Parallelism::None));
            } else {
                y.chunks_mut(*y_len).for_each(|y| one(*product, x, w, y, Parallelism::Rayon(0)));
            }
        }
    }
}

/// One product of one image.
fn one(product: Product, x: &[f32], w: &[f32], y: &mut [f32], parallelism: Parallelism) {
    match product {
        Product::Linear { m, n, k } => {
            matmul_t(m, n, k, (y, n as isize), (x, k as isize), (w, k as isize), 1.0, parallelism);
        }
        Product::Attention { tokens, heads, head_dim } => {
            let (t, hd) = (tokens as isize, head_dim as isize);
            let head = |y: &mut [f32]| {
                let (scores, out) = y.split_at_mut(tokens * tokens);
                matmul_t(tokens, tokens, head_dim, (scores, t), (x, hd), (x, hd), 1.0, Parallelism::None);
                matmul(tokens, head_dim, tokens, (out, hd), (scores, t, 1), (x, hd, 1), 1.0, Parallelism::None);
            };
            let heads_of_y = &mut y[..heads * tokens * (tokens + head_dim)];
            match parallelism {
                Parallelism::None => heads_of_y.chunks_mut(tokens * (tokens + head_dim)).for_each(head),
                _ => heads_of_y.par_chunks_mut(tokens * (tokens + head_dim)).for_each(head),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use arclet::models::builtin;

    use super::*;

    #[test]
    fn operations_are_the_published_ones() {
        let config = builtin::find("vit-b16").unwrap().config().clone();
        assert!((flops(&config) / 1e9 - 35.25).abs() < 0.005, "{}", flops(&config));
        let config = builtin::find("unetpp-r34").unwrap().config().clone();
        assert_eq!(flops(&config), 27_992_916_224.0);
    }

    #[test]
    fn the_baseline_runs_every_product_at_any_batch() {
        let mut config = builtin::find("nanodit").unwrap().config().clone();
        (config.image_size, config.transformer_mut().depth) = (16, 1);
        for batch in [1, 64] {
            let mut baseline = Baseline::new(&config, batch);
            baseline.run();
            assert!(baseline.y.iter().all(|v| v.is_finite()) && baseline.y.iter().any(|&v| v != 0.0));
        }
    }
}
