//! Sizes of a transformer of patches: what ViT, DiT and the flow-matching ViT share.

use serde_json::{Map, Value};

use super::fields::Fields;
use crate::nn::block::BlockConfig;
use crate::ops::linear::Activation;

/// Most tokens of an image.
const MAX_TOKENS: usize = 1 << 16;

/// Sizes of a transformer.
#[derive(Clone, Debug, PartialEq)]
pub struct TransformerConfig {
    /// Height and width of a patch.
    pub patch_size: usize,
    /// D.
    pub hidden_size: usize,
    /// Number of blocks.
    pub depth: usize,
    /// NH.
    pub num_heads: usize,
    /// Width of the feed-forward layers.
    pub mlp_hidden: usize,
    /// Added to the variance in norms.
    pub norm_eps: f64,
    /// GELU by its tanh approximation instead of the error function.
    pub gelu_tanh: bool,
    /// Outputs of the classifier head (plain ViT only).
    pub head_size: usize,
}

impl TransformerConfig {
    /// Sizes of its blocks; `modulated` by conditions or with norms of their own.
    pub fn block(&self, modulated: bool) -> BlockConfig {
        BlockConfig {
            dim: self.hidden_size,
            heads: self.num_heads,
            hidden: self.mlp_hidden,
            act: if self.gelu_tanh { Activation::GeluTanh } else { Activation::Gelu },
            eps: self.norm_eps,
            modulated,
        }
    }

    /// Its fields as `config.json` holds them.
    pub(super) fn describe(&self, map: &mut Map<String, Value>) {
        map.insert("patch_size".into(), self.patch_size.into());
        map.insert("hidden_size".into(), self.hidden_size.into());
        map.insert("depth".into(), self.depth.into());
        map.insert("num_heads".into(), self.num_heads.into());
        map.insert("mlp_ratio".into(), (self.mlp_hidden as f64 / self.hidden_size as f64).into());
        map.insert("norm_eps".into(), self.norm_eps.into());
        map.insert("gelu".into(), if self.gelu_tanh { "tanh" } else { "erf" }.into());
    }

    /// Whether images of `size` pixels a side can be computed with.
    ///
    /// # Errors
    /// One line: what was found, what was expected.
    pub(super) fn check(&self, size: usize) -> Result<(), String> {
        let patch = self.patch_size;
        if size == 0 || patch == 0 || !size.is_multiple_of(patch) {
            return Err(format!("image_size is {size}, a multiple of the patch size {patch} expected"));
        }
        if size / patch > MAX_TOKENS.isqrt() {
            let most = MAX_TOKENS.isqrt() * patch;
            return Err(format!("image_size is {size}, at most {most} expected for patches of {patch}"));
        }
        // Heads of a multiple of 8 channels make the hidden size one too, as the fixed positions of DiT need.
        let (d, heads) = (self.hidden_size, self.num_heads);
        if heads == 0 || d % heads != 0 {
            return Err(format!("num_heads is {heads}, a divisor of the hidden size {d} expected"));
        }
        if (d / heads) % 8 != 0 || !(8..=128).contains(&(d / heads)) {
            return Err(format!("heads of {} channels ({d} / {heads}), a multiple of 8 up to 128 expected", d / heads));
        }
        Ok(())
    }

    /// Takes from a configuration what shapes cannot tell, and compares what they can.
    ///
    /// # Errors
    /// One line: the field, what was found, what was expected.
    pub(super) fn overlay(&mut self, fields: &Fields) -> Result<(), String> {
        fields.compare(&["patch_size"], self.patch_size)?;
        fields.compare(&["hidden_size", "embed_dim"], self.hidden_size)?;
        fields.compare(&["depth"], self.depth)?;
        if let Some((_, heads)) = fields.integer(&["num_heads"])? {
            self.num_heads = heads;
        }
        if let Some((name, ratio)) = fields.number(&["mlp_ratio"])? {
            // The width is the product rounded down, give or take the last bit of a ratio like 5/3.
            let over = self.hidden_size as f64 * ratio - self.mlp_hidden as f64;
            if !(-1e-6..1.0).contains(&over) {
                let found = self.mlp_hidden as f64 / self.hidden_size as f64;
                return Err(format!("{name} is {ratio}, but the weights' feed-forward layers have ratio {found}"));
            }
        }
        fields.epsilon(&["norm_eps", "ln_eps"], &mut self.norm_eps)?;
        self.overlay_gelu(fields)
    }

    fn overlay_gelu(&mut self, fields: &Fields) -> Result<(), String> {
        let gelu = fields.text("gelu")?;
        let tanh = match gelu {
            None => None,
            Some((_, "erf" | "none")) => Some(false),
            Some((_, "tanh")) => Some(true),
            Some((name, other)) => return Err(format!("{name} is {other:?}, \"erf\" or \"tanh\" expected")),
        };
        let flag = fields.flag("tanh_gelu")?;
        if let (Some((name, gelu)), Some((other, flag))) = (gelu, flag.filter(|(_, flag)| Some(*flag) != tanh)) {
            return Err(format!("{name} is {gelu:?}, but {other} is {flag}"));
        }
        self.gelu_tanh = tanh.or(flag.map(|(_, flag)| flag)).unwrap_or(self.gelu_tanh);
        Ok(())
    }
}
