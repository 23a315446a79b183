//! A training step of the flow ViT and of NanoDiT out of operations and blocks: loss and every gradient against
//! PyTorch in f64 (`tests/data/goldens/c_training`).

use std::cell::RefCell;
use std::collections::BTreeMap;

use arclet::device::Device;
use arclet::nn::block::BlockConfig;
use arclet::nn::training::{BlockParams, BlockSaved, BlockScratch, Modulation};
use arclet::ops::Columns;
use arclet::ops::activation::{activate, activate_backward};
use arclet::ops::backward::embed::{label_add, label_add_backward};
use arclet::ops::backward::layernorm::{AffineBackward, layernorm_backward, scratch_len};
use arclet::ops::backward::linear::linear_backward;
use arclet::ops::backward::patch::unpatchify_backward;
use arclet::ops::backward::sums::{add_images, sum_tokens};
use arclet::ops::embed::Sinusoid;
use arclet::ops::layernorm::{Affine, layernorm};
use arclet::ops::linear::{Activation, Operands, Workspace, linear, workspace_size};
use arclet::ops::loss::{mse, mse_backward};
use arclet::ops::patch::{patchify, unpatchify};
use arclet::tensor::{DType, Tensor};

use crate::common::{Golden, cpu, relative_error};
use crate::engines::cuda;

const HEADS: usize = 2;
const EPS: f64 = 1e-6;

/// Weights and gradients of a model by PyTorch's names.
struct Model {
    device: Device,
    dtype: DType,
    weights: BTreeMap<String, Tensor>,
    grads: RefCell<BTreeMap<String, Tensor>>,
}

/// A block on its way: what it read, and what its backward reads and leaves.
struct Step {
    x: Tensor,
    params: BlockParams,
    grads: BlockParams,
    saved: BlockSaved,
}

impl Model {
    fn new(folder: &str, device: Device, dtype: DType) -> Self {
        let golden = Golden::open(&format!("{folder}/weights.safetensors"));
        let weights = golden.names().into_iter().map(|name| {
            let shape = golden.shape(&name);
            let rows = shape[0];
            let values = golden.f32(&name);
            // Convolutions whose stride is their size are products.
            let shape = if shape.len() == 4 { vec![rows, values.len() / rows] } else { shape };
            (name, Tensor::from_f32(&device, dtype, &shape, &values).unwrap())
        });
        let weights = weights.collect();
        Self { weights, device, dtype, grads: RefCell::default() }
    }

    fn zeros(&self, shape: &[usize]) -> Tensor {
        Tensor::zeros(&self.device, self.dtype, shape).unwrap()
    }

    fn like(&self, t: &Tensor) -> Tensor {
        self.zeros(t.shape())
    }

    fn tensor(&self, shape: &[usize], values: &[f64]) -> Tensor {
        Tensor::from_f64(&self.device, self.dtype, shape, values).unwrap()
    }

    fn copy(&self, t: &Tensor) -> Tensor {
        self.tensor(t.shape(), &self.host(t))
    }

    fn host(&self, t: &Tensor) -> Vec<f64> {
        t.to_f64(&self.device).unwrap()
    }

    fn weight(&self, name: &str) -> &Tensor {
        self.weights.get(name).unwrap_or_else(|| panic!("no {name}"))
    }

    /// The gradient of `name`, taken out so that two can be written at once; [`Self::put`] brings it back.
    fn grad(&self, name: &str) -> Tensor {
        let taken = self.grads.borrow_mut().remove(name);
        taken.unwrap_or_else(|| self.like(self.weight(name)))
    }

    fn put(&self, name: &str, grad: Tensor) {
        self.grads.borrow_mut().insert(name.into(), grad);
    }

    fn linear(&self, name: &str, x: &Tensor) -> Tensor {
        self.product(x, self.weight(&format!("{name}.weight")), self.weight(&format!("{name}.bias")))
    }

    fn product(&self, x: &Tensor, weight: &Tensor, bias: &Tensor) -> Tensor {
        let (n, k) = (weight.dim(0), weight.last_dim());
        let mut shape = x.shape().to_vec();
        *shape.last_mut().unwrap() = n;
        let mut y = self.zeros(&shape);
        let size = workspace_size(&self.device, self.dtype, x.dim(0), x.len() / k / x.dim(0), n, k);
        let mut space = Workspace::new(&self.device, self.dtype, size).unwrap();
        let operands = Operands { bias: Some(Columns::Shared(bias)), ..Operands::new(x, weight) };
        linear(&self.device, operands, &mut y, None, &mut space).unwrap();
        y
    }

    /// dx, and the layer's gradients.
    fn linear_backward(&self, name: &str, x: &Tensor, dy: &Tensor) -> Tensor {
        let [weight, bias] = ["weight", "bias"].map(|part| format!("{name}.{part}"));
        let (mut dw, mut db, mut dx) = (self.grad(&weight), self.grad(&bias), self.like(x));
        let mut scratch = self.zeros(&[dy.len()]);
        let w = self.weight(&weight);
        linear_backward(&self.device, x, w, dy, Some(&mut dx), &mut dw, Some(&mut db), &mut scratch).unwrap();
        self.put(&weight, dw);
        self.put(&bias, db);
        dx
    }

    fn activate(&self, a: &Tensor, act: Activation, gate: Option<&Tensor>, residual: Option<&Tensor>) -> Tensor {
        let mut y = self.like(a);
        activate(&self.device, a, act, gate, residual, &mut y).unwrap();
        y
    }

    /// da and, where there is a gate, its gradient.
    fn activate_backward(
        &self,
        a: &Tensor,
        act: Activation,
        gate: Option<&Tensor>,
        dy: &Tensor,
    ) -> (Tensor, Option<Tensor>) {
        let (mut da, mut dgate) = (self.like(a), gate.map(|g| self.like(g)));
        activate_backward(&self.device, a, act, gate, dy, &mut da, dgate.as_mut()).unwrap();
        (da, dgate)
    }

    fn norm(&self, x: &Tensor, [shift, scale]: [&Tensor; 2]) -> Tensor {
        let mut y = self.like(x);
        let (shift, scale) = (Columns::PerImage(shift), Columns::PerImage(scale));
        layernorm(&self.device, x, Affine::Modulated { shift, scale, select: None }, EPS, &mut y).unwrap();
        y
    }

    /// dx, and the gradients of shift and scale.
    fn norm_backward(&self, x: &Tensor, scale: &Tensor, dy: &Tensor) -> (Tensor, [Tensor; 2]) {
        let [mut dx, mut dshift, mut dscale] = [self.like(x), self.like(scale), self.like(scale)];
        let mut scratch = self.zeros(&[scratch_len(x.dim(0), x.dim(1), x.dim(2))]);
        let affine = AffineBackward::Modulated { scale, dshift: &mut dshift, dscale: &mut dscale };
        layernorm_backward(&self.device, x, affine, EPS, dy, None, &mut dx, &mut scratch).unwrap();
        (dx, [dshift, dscale])
    }

    fn config(&self, modulated: bool) -> BlockConfig {
        BlockConfig { dim: 64, heads: HEADS, hidden: 256, act: Activation::Gelu, eps: EPS, modulated }
    }

    fn block(&self, name: &str, x: Tensor, parts: Option<&Modulation>) -> (Tensor, Step) {
        let (config, device) = (self.config(parts.is_some()), &self.device);
        let [mut params, grads] = [0; 2].map(|_| BlockParams::zeros(&config, device, self.dtype).unwrap());
        for (layer, pair) in params.layers_mut() {
            pair.weight = self.copy(self.weight(&format!("{name}.{layer}.weight")));
            pair.bias = self.copy(self.weight(&format!("{name}.{layer}.bias")));
        }
        let mut saved = BlockSaved::new(&config, device, self.dtype, x.dim(0), x.dim(1)).unwrap();
        let size = params.workspace_size(device, x.dim(0), x.dim(1));
        let mut space = Workspace::new(device, self.dtype, size).unwrap();
        device.run(|| params.forward(&config, device, &x, parts, &mut saved, &mut space)).unwrap();
        (self.copy(&saved.y), Step { x, params, grads, saved })
    }

    /// dx, and `d_parts` where the block is modulated.
    fn block_backward(
        &self,
        name: &str,
        step: &mut Step,
        modulated: Option<(&Modulation, &mut Modulation)>,
        dy: &Tensor,
    ) -> Tensor {
        let (config, device) = (self.config(modulated.is_some()), &self.device);
        let Step { x, params, grads, saved } = step;
        let mut scratch = BlockScratch::new(&config, device, self.dtype, x.dim(0), x.dim(1)).unwrap();
        let mut dx = self.like(x);
        let work = || params.backward(&config, device, x, modulated, saved, dy, &mut dx, grads, &mut scratch);
        device.run(work).unwrap();
        for (layer, pair) in grads.layers() {
            self.put(&format!("{name}.{layer}.weight"), self.copy(&pair.weight));
            self.put(&format!("{name}.{layer}.bias"), self.copy(&pair.bias));
        }
        dx
    }

    /// A vector per image through two layers with SiLU between: what the second reads, and the result.
    fn time(&self, name: &str, sinusoid: Sinusoid, times: &[f32]) -> [Tensor; 4] {
        let rows: Vec<f64> = times.iter().flat_map(|&t| sinusoid.embed(t.into())).collect();
        let x = self.tensor(&[times.len(), sinusoid.dim], &rows);
        let a = self.linear(&format!("{name}.0"), &x);
        let h = self.activate(&a, Activation::Silu, None, None);
        let y = self.linear(&format!("{name}.2"), &h);
        [x, a, h, y]
    }

    fn time_backward(&self, name: &str, [x, a, h, _]: &[Tensor; 4], dy: &Tensor) {
        let dh = self.linear_backward(&format!("{name}.2"), h, dy);
        let (da, _) = self.activate_backward(a, Activation::Silu, None, &dh);
        self.linear_backward(&format!("{name}.0"), x, &da);
    }

    /// Loss, and the gradient of the tokens [B, T, p p] that were predicted.
    fn loss(&self, out: &Tensor, patch: usize, target: &Tensor) -> (f64, Tensor) {
        let [mut v, mut dv] = [self.like(target), self.like(target)];
        unpatchify(&self.device, out, patch, &mut v).unwrap();
        let (mut per_image, mut loss) = (self.zeros(&[v.dim(0)]), self.zeros(&[1]));
        mse(&self.device, &v, target, &mut per_image, &mut loss).unwrap();
        mse_backward(&self.device, &v, target, &self.tensor(&[1], &[1.0]), &mut dv).unwrap();
        let mut dout = self.like(out);
        unpatchify_backward(&self.device, &dv, patch, &mut dout).unwrap();
        (self.host(&loss)[0], dout)
    }

    /// x_t = (1 - t) data + t noise, and the velocity noise - data.
    fn batch(&self, golden: &Golden) -> [Tensor; 2] {
        let (data, noise, times) = (golden.f32("in.data"), golden.f32("in.noise"), golden.f32("in.t"));
        let (shape, per_image) = (golden.shape("in.data"), data.len() / times.len());
        let pairs = || data.iter().zip(&noise).map(|(&d, &n)| (f64::from(d), f64::from(n))).enumerate();
        let at = |i: usize| f64::from(times[i / per_image]);
        let x: Vec<f64> = pairs().map(|(i, (d, n))| (1.0 - at(i)) * d + at(i) * n).collect();
        let velocity: Vec<f64> = pairs().map(|(_, (d, n))| n - d).collect();
        [self.tensor(&shape, &x), self.tensor(&shape, &velocity)]
    }

    fn compare(&self, golden: &Golden, loss: f64, bound: f64) {
        let want = f64::from(golden.f32("loss.0")[0]);
        assert!((loss - want).abs() <= bound * want, "loss {loss}, {want} expected");
        for name in golden.names().iter().filter_map(|n| n.strip_prefix("grad.")) {
            let grads = self.grads.borrow();
            let got = grads.get(name).unwrap_or_else(|| panic!("no gradient of {name}"));
            let error = relative_error(&got.to_f32(&self.device).unwrap(), &golden.f32(&format!("grad.{name}")));
            assert!(error <= bound, "gradient of {name} in {}: relative error {error:.2e}", self.dtype);
        }
    }
}

fn flow_vit(device: Device, dtype: DType, bound: f64) {
    let (golden, m) = (Golden::open("c_training/flow_vit.safetensors"), Model::new("a1_flow_vit", device, dtype));
    let [x, target] = m.batch(&golden);
    let (batch, patch, d) = (x.dim(0), 8, 64);
    let name = |n: &str| format!("unet.{n}");
    let vit = |n: &str| format!("unet.pretrained_vit.{n}");

    // The 1x1 convolution in front of the patch embedding, folded into it: W'[n, i] = sum_e W[n, e, i] c[e].
    let [conv, conv_bias] = ["weight", "bias"].map(|p| m.host(m.weight(&name(&format!("input_conv.{p}")))));
    let [proj, proj_bias] = ["weight", "bias"].map(|p| m.host(m.weight(&vit(&format!("patch_embed.proj.{p}")))));
    let pp = patch * patch;
    let (mut folded, mut folded_bias) = (vec![0.0; d * pp], proj_bias);
    for (i, w) in proj.iter().enumerate() {
        let (n, e) = (i / (3 * pp), i / pp % 3);
        folded[n * pp + i % pp] += w * conv[e];
        folded_bias[n] += w * conv_bias[e];
    }
    let (folded, folded_bias) = (m.tensor(&[d, pp], &folded), m.tensor(&[d], &folded_bias));

    let mut patches = m.zeros(&[batch, 16, pp]);
    patchify(&m.device, &x, patch, &mut patches).unwrap();
    let embedded = m.product(&patches, &folded, &folded_bias);
    let positions = m.host(m.weight(&vit("pos_embed")));
    let rows: Vec<f64> = m.host(&embedded).iter().enumerate().map(|(i, v)| v + positions[d + i % (16 * d)]).collect();
    let mut h = m.tensor(embedded.shape(), &rows);
    let mut saved = Vec::new();
    for i in 0..2 {
        let (y, s) = m.block(&vit(&format!("blocks.{i}")), h, None);
        saved.push(s);
        h = y;
    }
    let sinusoid = Sinusoid { dim: 256, cos_first: false, max_period: 1e4, half_shift: 1.0, scale: 1000.0 };
    let time = m.time(&name("time_embed.time_mlp"), sinusoid, &golden.f32("in.t"));
    let added = m.host(&time[3]);
    let rows: Vec<f64> = m.host(&h).iter().enumerate().map(|(i, v)| v + added[i / (16 * d) * d + i % d]).collect();
    let timed = m.tensor(h.shape(), &rows);
    let a = m.linear(&name("output_proj.0"), &timed);
    let s = m.activate(&a, Activation::Silu, None, None);
    let out = m.linear(&name("output_proj.2"), &s);
    let (loss, dout) = m.loss(&out, patch, &target);

    let ds = m.linear_backward(&name("output_proj.2"), &s, &dout);
    let (da, _) = m.activate_backward(&a, Activation::Silu, None, &ds);
    let mut dh = m.linear_backward(&name("output_proj.0"), &timed, &da);
    let mut dtime = m.like(&time[3]);
    sum_tokens(&m.device, &dh, &mut dtime).unwrap();
    m.time_backward(&name("time_embed.time_mlp"), &time, &dtime);
    for (i, step) in saved.iter_mut().enumerate().rev() {
        dh = m.block_backward(&vit(&format!("blocks.{i}")), step, None, &dh);
    }
    let mut dpositions = m.zeros(&[16, d]);
    add_images(&m.device, &dh, &mut dpositions).unwrap();
    // Row 0 belongs to the class token, which this model does without.
    m.put(&vit("pos_embed"), m.tensor(&[17, d], &[vec![0.0; d], m.host(&dpositions)].concat()));
    let [mut dw, mut db, mut scratch] = [m.like(&folded), m.like(&folded_bias), m.zeros(&[batch * d])];
    linear_backward(&m.device, &patches, &folded, &dh, None, &mut dw, Some(&mut db), &mut scratch).unwrap();
    let (dw, db) = (m.host(&dw), m.host(&db));
    let (mut dproj, mut dconv, mut dconv_bias) = (vec![0.0; proj.len()], [0.0; 3], [0.0; 3]);
    for (i, w) in proj.iter().enumerate() {
        let (n, e) = (i / (3 * pp), i / pp % 3);
        dproj[i] = dw[n * pp + i % pp] * conv[e] + db[n] * conv_bias[e];
        dconv[e] += dw[n * pp + i % pp] * w;
        dconv_bias[e] += db[n] * w;
    }
    m.put(&vit("patch_embed.proj.weight"), m.tensor(&[proj.len()], &dproj));
    m.put(&vit("patch_embed.proj.bias"), m.tensor(&[d], &db));
    m.put(&name("input_conv.weight"), m.tensor(&[3], &dconv));
    m.put(&name("input_conv.bias"), m.tensor(&[3], &dconv_bias));
    m.compare(&golden, loss, bound);
}

#[test]
fn a_training_step_of_the_flow_vit_is_pytorchs() {
    flow_vit(cpu(), DType::F64, 1e-6);
    flow_vit(cpu(), DType::F32, 1e-4);
    flow_vit(cuda(), DType::F32, 1e-4);
}

/// A layer of N D rows on c as N parts [B, D]; those that make scales, second of every three, with the 1 added.
fn parts(m: &Model, layer: &str, c: &Tensor) -> Vec<Tensor> {
    let (all, d) = (m.linear(layer, c), c.last_dim());
    let (n, values) = (all.last_dim() / d, m.host(&all));
    let part = |p: usize| {
        let one = if p % 3 == 1 { 1.0 } else { 0.0 };
        let rows: Vec<f64> = values.chunks(n * d).flat_map(|row| row[p * d..][..d].iter().map(|v| v + one)).collect();
        m.tensor(c.shape(), &rows)
    };
    (0..n).map(part).collect()
}

/// The gradient of c from those of [`parts`].
fn parts_backward(m: &Model, layer: &str, c: &Tensor, grads: &[Tensor]) -> Tensor {
    let d = c.last_dim();
    let grads: Vec<Vec<f64>> = grads.iter().map(|g| m.host(g)).collect();
    let rows: Vec<f64> = (0..c.dim(0)).flat_map(|b| grads.iter().flat_map(move |g| g[b * d..][..d].to_vec())).collect();
    m.linear_backward(layer, c, &m.tensor(&[c.dim(0), grads.len() * d], &rows))
}

fn nanodit(device: Device, dtype: DType, bound: f64) {
    let (golden, m) = (Golden::open("c_training/nanodit.safetensors"), Model::new("a3_nanodit", device, dtype));
    let [x, target] = m.batch(&golden);
    let (batch, patch, d, tokens) = (x.dim(0), 2, 64, 64);
    let labels: Vec<u32> = golden.i64("in.y").iter().map(|&y| y as u32).collect();
    let labels = Tensor::from_u32(&m.device, &[batch], &labels).unwrap();

    let sinusoid = Sinusoid { dim: 256, cos_first: true, max_period: 1e4, half_shift: 0.0, scale: 1000.0 };
    let time = m.time("t_embedder.mlp", sinusoid, &golden.f32("in.t"));
    let mut sum = m.like(&time[3]);
    label_add(&m.device, &time[3], m.weight("y_embedder.embedding_table.weight"), &labels, &mut sum).unwrap();
    let c = m.activate(&sum, Activation::Silu, None, None);
    let mut patches = m.zeros(&[batch, tokens, patch * patch]);
    patchify(&m.device, &x, patch, &mut patches).unwrap();
    let positions = m.host(m.weight("pos_embed"));
    let embedded = m.host(&m.linear("x_embedder.proj", &patches));
    let rows: Vec<f64> = embedded.iter().enumerate().map(|(i, v)| v + positions[i % (tokens * d)]).collect();
    let mut h = m.tensor(&[batch, tokens, d], &rows);
    let mut saved = Vec::new();
    for i in 0..2 {
        let adaln = parts(&m, &format!("blocks.{i}.adaLN_modulation.1"), &c);
        let adaln: Modulation = adaln.try_into().unwrap_or_else(|_| panic!("six parts"));
        let (y, s) = m.block(&format!("blocks.{i}"), h, Some(&adaln));
        saved.push((s, adaln));
        h = y;
    }
    let last = parts(&m, "final_layer.adaLN_modulation.1", &c);
    let normed = m.norm(&h, [&last[0], &last[1]]);
    let out = m.linear("final_layer.linear", &normed);
    let (loss, dout) = m.loss(&out, patch, &target);

    let dnormed = m.linear_backward("final_layer.linear", &normed, &dout);
    let (mut dh, grads) = m.norm_backward(&h, &last[1], &dnormed);
    let mut dc = m.host(&parts_backward(&m, "final_layer.adaLN_modulation.1", &c, &grads));
    for (i, (step, adaln)) in saved.iter_mut().enumerate().rev() {
        let mut grads: Modulation = [0; 6].map(|_| m.like(&c));
        dh = m.block_backward(&format!("blocks.{i}"), step, Some((&*adaln, &mut grads)), &dh);
        let more = m.host(&parts_backward(&m, &format!("blocks.{i}.adaLN_modulation.1"), &c, &grads));
        dc.iter_mut().zip(more).for_each(|(dc, more)| *dc += more);
    }
    m.linear_backward("x_embedder.proj", &patches, &dh);
    let (dsum, _) = m.activate_backward(&sum, Activation::Silu, None, &m.tensor(c.shape(), &dc));
    let mut dtable = m.grad("y_embedder.embedding_table.weight");
    label_add_backward(&m.device, &labels, &dsum, &mut dtable).unwrap();
    m.put("y_embedder.embedding_table.weight", dtable);
    m.time_backward("t_embedder.mlp", &time, &dsum);
    m.compare(&golden, loss, bound);
}

#[test]
fn a_training_step_of_nanodit_is_pytorchs() {
    nanodit(cpu(), DType::F64, 1e-6);
    nanodit(cpu(), DType::F32, 1e-4);
    nanodit(cuda(), DType::F32, 1e-4);
}
