//! Every operation against a plain f64 loop written here, on every device, in every type, schedule and mode.

mod attention_unfused;
pub mod conv;
mod diffusion;
mod excite;

use arclet::device::Device;
use arclet::device::probe::phase_times;
use arclet::error::Result;
use arclet::ops::attention::{Heads, attention};
use arclet::ops::embed::{label_embedding, prepend_token, take_token};
use arclet::ops::layernorm::{Affine, layernorm};
use arclet::ops::linear::{
    Activation, ForNorm, HOPPER_TILES, Norm, Operands, Plan, Residual, STATS_CHUNK, TILES, Tile, Workspace, linear,
    linear_by, workspace_size,
};
use arclet::ops::noise::normal;
use arclet::ops::patch::{patchify, unpatchify};
use arclet::ops::solver::*;
use arclet::ops::{Columns, Select};
use arclet::rng;
use arclet::tensor::{DType, Tensor};

use crate::common::{cpu, relative_error};
use crate::engines::{check, cuda, every_mode};

/// Numbers in [-scale, scale) that f16 and bf16 have to round.
fn values(n: usize, seed: u64, scale: f64) -> Vec<f32> {
    let mut s = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = || {
        s ^= s << 13;
        s ^= s >> 7;
        s ^= s << 17;
        ((s >> 11) as f64 / (1u64 << 53) as f64 * 2.0 - 1.0) * scale
    };
    (0..n).map(|_| next() as f32).collect()
}

fn tensor(device: &Device, dtype: DType, shape: &[usize], values: &[f32]) -> Tensor {
    Tensor::from_f32(device, dtype, shape, values).unwrap()
}

fn wide(dtype: DType) -> DType {
    if dtype == DType::F64 { DType::F64 } else { DType::F32 }
}

fn f64s(v: &[f32]) -> Vec<f64> {
    v.iter().map(|&x| x as f64).collect()
}

fn gelu(x: f64) -> f64 {
    0.5 * x * (1.0 + libm::erf(x / 2f64.sqrt()))
}

fn gelu_tanh(x: f64) -> f64 {
    0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3))).tanh())
}

fn silu(x: f64) -> f64 {
    x / (1.0 + (-x).exp())
}

fn workspace(device: &Device, dtype: DType, [images, rows, n, k]: [usize; 4]) -> Workspace {
    Workspace::new(device, dtype, workspace_size(device, dtype, images, rows, n, k)).unwrap()
}

struct LinearCase {
    images: usize,
    rows: usize,
    n: usize,
    k: usize,
    bias: bool,
    act: Activation,
    residual: &'static str,
}

fn linear_case(c: LinearCase) {
    let LinearCase { images, rows, n, k, bias, act, residual } = c;
    let m = images * rows;
    let what = format!("linear {images}x{rows}x{n}x{k} {act:?} {residual}");
    let (x, w) = (values(m * k, 1, 1.0), values(n * k, 2, (3.0 / k as f64).sqrt()));
    let (b, y0) = (values(n, 3, 0.5), values(m * n, 4, 1.0));
    let (positions, gate) = (values(rows * n, 5, 1.0), values(images * n, 6, 1.0));
    let mut want = vec![0.0; m * n];
    for row in 0..m {
        for col in 0..n {
            let dot: f64 = (0..k).map(|i| x[row * k + i] as f64 * w[col * k + i] as f64).sum();
            let v = dot + if bias { b[col] as f64 } else { 0.0 };
            let v = match act {
                Activation::None => v,
                Activation::Gelu => gelu(v),
                Activation::GeluTanh => gelu_tanh(v),
                Activation::Silu => silu(v),
                Activation::Relu => v.max(0.0),
            };
            let before = y0[row * n + col] as f64;
            want[row * n + col] = match residual {
                "none" => v,
                "in place" => before + v,
                "rows" => positions[row % rows * n + col] as f64 + v,
                "gated" => before + gate[row / rows * n + col] as f64 * v,
                other => panic!("{other}"),
            };
        }
    }
    check(&what, &want, |device, dtype| {
        let t = |shape: &[usize], v: &[f32]| tensor(device, dtype, shape, v);
        let w = Tensor::matrix(device, dtype, [n, k], &w).unwrap();
        let (x, b) = (t(&[images, rows, k], &x), t(&[n], &b));
        let (positions, gate) = (t(&[rows, n], &positions), t(&[images, n], &gate));
        let mut y = t(&[images, rows, n], &y0);
        let mut workspace = workspace(device, dtype, [images, rows, n, k]);
        let residual = match residual {
            "none" => Residual::None,
            "in place" => Residual::InPlace,
            "rows" => Residual::Rows(&positions),
            _ => Residual::Gated(Columns::PerImage(&gate)),
        };
        let bias = bias.then_some(Columns::Shared(&b));
        let operands = Operands { bias, act, residual, ..Operands::new(&x, &w) };
        device.run(|| linear(device, operands, &mut y, None, &mut workspace)).unwrap();
        y.to_f32(device).unwrap()
    });
}

#[test]
fn linear_epilogues() {
    use Activation::{Gelu, GeluTanh, None as Plain, Relu, Silu};
    for (act, residual) in [
        (Plain, "none"),
        (Relu, "none"),
        (Gelu, "none"),
        (GeluTanh, "none"),
        (Silu, "none"),
        (Plain, "in place"),
        (Gelu, "in place"),
        (Plain, "rows"),
        (Plain, "gated"),
        (Silu, "gated"),
    ] {
        linear_case(LinearCase { images: 2, rows: 20, n: 72, k: 136, bias: true, act, residual });
    }
}

#[test]
fn linear_shapes() {
    // Tiles of 64 with remainders, single rows and columns, K below, at and above the 16-byte and tile steps, odd sizes.
    for (images, rows, n, k) in [
        (1, 1, 1, 1),
        (1, 1, 70, 33),
        (3, 1, 64, 64),
        (1, 17, 1, 40),
        (2, 16, 4, 4),
        (1, 65, 130, 96),
        (1, 130, 65, 200),
        (3, 7, 19, 23),
        (2, 64, 64, 32),
        (1, 16, 512, 4),
    ] {
        linear_case(LinearCase { images, rows, n, k, bias: n % 2 == 1, act: Activation::None, residual: "none" });
    }
}

#[test]
fn linear_splits_k() {
    // Few tiles and a long K: several blocks share a sum, which a second kernel joins in order.
    for (images, rows, residual) in [(1, 3, "none"), (2, 20, "gated"), (1, 20, "in place"), (2, 17, "rows")] {
        linear_case(LinearCase { images, rows, n: 40, k: 1096, bias: true, act: Activation::Silu, residual });
    }
}

/// A layer norm folded into the product behind it, from the statistics of x to those of y, with and without numbers per
/// condition: against the norm, the product and the residual one after the other.
fn normed_linear_case(images: usize, rows: usize, d: usize, n: usize, conditions: Option<usize>) {
    let (m, eps) = (images * rows, 1e-5);
    let what = format!("layer norm and linear {images}x{rows}x{d} to {n}, conditions {conditions:?}");
    // x = before + first layer, as residual streams have it: a large mean beside a small spread.
    let before: Vec<f32> = values(m * d, 1, 1.0).iter().map(|v| v + 2.0).collect();
    let (h, w1) = (values(m * 8, 2, 1.0), values(d * 8, 3, 0.3));
    let w2 = values(n * d, 4, (3.0 / d as f64).sqrt());
    // Two evaluations of `table` conditions; the second is at hand.
    let table = conditions.unwrap_or(1);
    let picked: Vec<u32> = (0..images).map(|b| (b * 2 % table) as u32).collect();
    let vectors =
        |seed, len: usize, at: f32| -> Vec<f32> { values(2 * table * len, seed, 0.5).iter().map(|v| v + at).collect() };
    let (scale, bias, gate) = (vectors(5, d, 1.0), vectors(6, n, 0.0), vectors(7, d, 1.0));
    let row_of = |b: usize| if conditions.is_some() { table + picked[b] as usize } else { 0 };
    let (mut want, mut want_x) = (vec![0.0; m * n], vec![0.0; m * d]);
    for row in 0..m {
        let c = row_of(row / rows);
        let dot = |col: usize| (0..8).map(|i| h[row * 8 + i] as f64 * w1[col * 8 + i] as f64).sum::<f64>();
        let x: Vec<f64> = (0..d).map(|i| before[row * d + i] as f64 + gate[c * d + i] as f64 * dot(i)).collect();
        let mean = x.iter().sum::<f64>() / d as f64;
        let var = x.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / d as f64;
        let normed = |i: usize| (x[i] - mean) / (var + eps).sqrt() * scale[c * d + i] as f64;
        for col in 0..n {
            let dot: f64 = (0..d).map(|i| normed(i) * w2[col * d + i] as f64).sum();
            want[row * n + col] = gelu(dot + bias[c * n + col] as f64);
        }
        want_x[row * d..][..d].copy_from_slice(&x);
    }
    // The sums over k of scale . weight, in f64 as a model that folds a learned norm has them.
    let sums: Vec<f32> = (0..2 * table * n)
        .map(|i| (0..d).map(|e| scale[i / n * d + e] as f64 * w2[i % n * d + e] as f64).sum::<f64>() as f32)
        .collect();
    let run = |device: &Device, dtype: DType, give_x: bool| {
        let t = |shape: &[usize], v: &[f32]| tensor(device, dtype, shape, v);
        let (h, w1, w2) = (t(&[images, rows, 8], &h), t(&[d, 8], &w1), t(&[n, d], &w2));
        let (scale, bias) = (t(&[2 * table, d], &scale), t(&[2 * table, n], &bias));
        let (gate, sums) = (t(&[2 * table, d], &gate), t(&[2 * table, n], &sums));
        let (counter, picked) = (
            Tensor::from_u32(device, &[1], &[u32::from(conditions.is_some())]).unwrap(),
            Tensor::from_u32(device, &[images], &picked).unwrap(),
        );
        // Without conditions all images take the first row of each table.
        let select = Some(Select { counter: &counter, rows: &picked, conditions: table });
        let mut x = t(&[images, rows, d], &before);
        let mut z = Tensor::zeros(device, dtype, &[images, rows, d]).unwrap();
        let mut stats = Tensor::zeros(device, wide(dtype), &[images, rows, d.div_ceil(STATS_CHUNK), 2]).unwrap();
        let mut y = Tensor::zeros(device, dtype, &[images, rows, n]).unwrap();
        let residual = Residual::Gated(Columns::PerImage(&gate));
        let first = Operands { residual, select, ..Operands::new(&h, &w1) };
        let next = ForNorm { stats: &mut stats, scaled: Some((Columns::PerImage(&scale), &mut z)) };
        let mut space = workspace(device, dtype, [images, rows, d, 8]);
        device.run(|| linear(device, first, &mut x, Some(next), &mut space)).unwrap();
        let norm = Some(Norm { stats: &stats, sums: Columns::PerImage(&sums), eps });
        let bias = Some(Columns::PerImage(&bias));
        let second = Operands { norm, bias, act: Activation::Gelu, select, ..Operands::new(&z, &w2) };
        let mut space = workspace(device, dtype, [images, rows, n, d]);
        device.run(|| linear(device, second, &mut y, None, &mut space)).unwrap();
        if give_x { x.to_f32(device).unwrap() } else { y.to_f32(device).unwrap() }
    };
    check(&what, &want, |device, dtype| run(device, dtype, false));
    check(&format!("{what}: x"), &want_x, |device, dtype| run(device, dtype, true));
}

#[test]
fn linear_with_a_norm_in_front() {
    for (images, rows, d, n, conditions) in
        [(2, 20, 64, 72, None), (3, 5, 200, 40, Some(2)), (2, 33, 768, 130, Some(3)), (1, 70, 65, 31, Some(1))]
    {
        normed_linear_case(images, rows, d, n, conditions);
    }
}

/// Every tile there is, with chunks of k spread over blocks and in one block: the bits are those of the smallest tile, and
/// close to the f64 sums.
#[test]
fn linear_tiles_and_plans_agree_in_every_bit() {
    for dtype in [DType::F32, DType::F16, DType::BF16] {
        let tiles = if dtype == DType::F32 { &TILES[..1] } else { &TILES };
        same_bits(dtype, tiles, 3, 67, 200, 416, &[1, 3]);
    }
}

/// The same of the kernel for Hopper: several tiles each way; one row; and a ring that goes round in a chunk, then the
/// largest cluster.
#[test]
fn hopper_tiles_and_plans_agree_in_every_bit() {
    let Device::Cuda(gpu) = cuda() else { unreachable!("the GPU's device") };
    if !gpu.hopper() {
        return;
    }
    for dtype in [DType::F16, DType::BF16] {
        same_bits(dtype, &HOPPER_TILES, 3, 67, 136, 200, &[1, 3]);
        same_bits(dtype, &HOPPER_TILES, 1, 1, 8, 8, &[1]);
        same_bits(dtype, &HOPPER_TILES, 1, 9, 72, 64 * 14 + 8, &[2, 8]);
    }
}

fn same_bits(dtype: DType, tiles: &[Tile], images: usize, rows: usize, n: usize, k: usize, splits: &[usize]) {
    let (device, m) = (&cuda(), images * rows);
    let (x, w, y0) = (values(m * k, 1, 1.0), values(n * k, 2, 0.1), values(m * n, 3, 1.0));
    let want = doubled_product(&x, &w, &y0, k);
    for &splits in splits {
        let mut first: Option<Vec<f32>> = None;
        for (&tile, spread) in tiles.iter().flat_map(|t| [(t, false), (t, true)]) {
            let plan = Plan::new(tile, k, splits, spread);
            let what = format!("linear {dtype} [{m}, {k}] to {n} by {plan:?}");
            let got = every_mode(&what, || {
                let t = |shape: &[usize], v: &[f32]| tensor(device, dtype, shape, v);
                let (x, w, mut y) = (t(&[images, rows, k], &x), t(&[n, k], &w), t(&[images, rows, n], &y0));
                let shape = [images, rows, n.div_ceil(STATS_CHUNK), 2];
                let mut stats = Tensor::zeros(device, DType::F32, &shape).unwrap();
                let mut space = Workspace::new(device, dtype, plan.workspace(m, n)).unwrap();
                let operands = Operands { residual: Residual::InPlace, ..Operands::new(&x, &w) };
                // Twice, so that the second launch finds the counters as the first one left them.
                for _ in 0..2 {
                    let next = ForNorm { stats: &mut stats, scaled: None };
                    linear_by(device, plan, operands, &mut y, Some(next), &mut space).unwrap();
                }
                [y.to_f32(device).unwrap(), stats.to_f32(device).unwrap()].concat()
            });
            let error = relative_error(&got[..m * n], &want);
            assert!(error < if dtype == DType::BF16 { 2e-2 } else { 3e-3 }, "{what}: relative error {error:.2e}");
            match &first {
                Some(first) => assert!(first == &got, "{what}: other bits than in the smallest tile"),
                None => first = Some(got),
            }
        }
    }
}

/// A chain in which every kernel reads what the one in front writes - x, statistics of rows, residual - gives the same bits
/// whether each launch starts early and waits by itself, or is held back; eager and in a graph.
#[test]
fn dependent_launches_change_no_bit() {
    let device = cuda();
    let Device::Cuda(gpu) = &device else { unreachable!("the GPU's device") };
    assert_eq!(gpu.dependent_launch(), gpu.hopper(), "on from the beginning, where it can be");
    let (images, rows, d) = (2, 40, 136);
    let (x0, w) = (values(images * rows * d, 1, 1.0), values(d * d, 2, 0.1));
    for dtype in [DType::F16, DType::F32] {
        let t = |shape: &[usize], v: &[f32]| tensor(&device, dtype, shape, v);
        let (w, sums, shape) = (t(&[d, d], &w), t(&[d], &values(d, 3, 1.0)), [images, rows, d]);
        let run = |dependent: bool, graph: bool| {
            let (mut x, mut h, mut y) = (t(&shape, &x0), t(&shape, &x0), t(&shape, &x0));
            let stats_shape = [images, rows, d.div_ceil(STATS_CHUNK), 2];
            let mut stats = Tensor::zeros(&device, DType::F32, &stats_shape).unwrap();
            let mut space = workspace(&device, dtype, [images, rows, d, d]);
            let mut work = || {
                for _ in 0..2 {
                    linear(&device, Operands::new(&x, &w), &mut h, None, &mut space)?;
                    let residual = Residual::InPlace;
                    let next = ForNorm { stats: &mut stats, scaled: None };
                    linear(&device, Operands { residual, ..Operands::new(&h, &w) }, &mut y, Some(next), &mut space)?;
                    let norm = Some(Norm { stats: &stats, sums: Columns::Shared(&sums), eps: 1e-6 });
                    linear(&device, Operands { norm, residual, ..Operands::new(&y, &w) }, &mut x, None, &mut space)?;
                }
                Ok(())
            };
            gpu.set_dependent_launch(dependent);
            work().unwrap();
            if graph {
                device.capture(&mut work).unwrap().expect("a GPU records").launch().unwrap();
            } else {
                work().unwrap();
            }
            gpu.set_dependent_launch(true);
            [x.to_f32(&device).unwrap(), y.to_f32(&device).unwrap()].concat()
        };
        for graph in [false, true] {
            let plain = every_mode("plain launches", || run(false, graph));
            assert!(plain.iter().all(|v| v.is_finite()));
            let dependent = every_mode("dependent launches", || run(true, graph));
            assert!(plain == dependent, "{dtype}, in a graph: {graph}");
        }
    }
}

#[test]
fn phases_are_timed_both_ways_where_the_gpu_can() {
    let Device::Cuda(gpu) = cuda() else { unreachable!("the GPU's device") };
    for &mode in arclet_emu::modes() {
        let times = arclet_emu::with_mode(mode, || phase_times(&gpu, 3, 1)).unwrap();
        assert!(times.plain > 0.0 && times.dependent.is_some() == gpu.hopper());
        assert!(times.dependent.is_none_or(|t| t > 0.0));
    }
    assert_eq!(gpu.dependent_launch(), gpu.hopper(), "left as it was");
}

/// y + 2 x w^T in f64.
fn doubled_product(x: &[f32], w: &[f32], y: &[f32], k: usize) -> Vec<f32> {
    let dot = |x: &[f32], w: &[f32]| x.iter().zip(w).map(|(&x, &w)| f64::from(x) * f64::from(w)).sum::<f64>();
    let sums = x.chunks(k).flat_map(|x| w.chunks(k).map(move |w| 2.0 * dot(x, w)));
    sums.zip(y).map(|(sum, &y)| (sum + f64::from(y)) as f32).collect()
}

#[test]
fn linear_rows_do_not_depend_on_the_batch() {
    let (rows, n, k) = (33, 72, 1096);
    let (x, w) = (values(12 * rows * k, 1, 1.0), values(n * k, 2, 0.05));
    for device in [cpu(), cuda()] {
        for dtype in [DType::F32, DType::F16] {
            let run = |images: usize| {
                let x = tensor(&device, dtype, &[images, rows, k], &x[..images * rows * k]);
                let w = tensor(&device, dtype, &[n, k], &w);
                let mut y = Tensor::zeros(&device, dtype, &[images, rows, n]).unwrap();
                let mut space = workspace(&device, dtype, [images, rows, n, k]);
                device.run(|| linear(&device, Operands::new(&x, &w), &mut y, None, &mut space)).unwrap();
                y.to_f32(&device).unwrap()
            };
            let alone = run(1);
            for images in [5, 12] {
                assert_eq!(alone, run(images)[..rows * n], "{} {dtype} of {images}", device.name());
            }
        }
    }
}

/// softmax(q k^T / sqrt(HD)) v for (q, k, v) of that many heads, one way or another.
type Attend = fn(&Device, [Heads; 3], usize, &mut Tensor) -> Result<()>;

fn attention_case(images: usize, heads: usize, head_dim: usize, q_len: usize, kv_len: usize, spread: f64) {
    let fused: Attend = |device, [q, k, v], heads, out| attention(device, q, k, v, heads, out);
    attention_by(fused, [images, heads, head_dim, q_len, kv_len], spread);
}

fn attention_by(attend: Attend, [images, heads, head_dim, q_len, kv_len]: [usize; 5], spread: f64) {
    let d = heads * head_dim;
    let packed = q_len == kv_len;
    let what = format!("attention {images}x{heads}x{head_dim} {q_len} over {kv_len}");
    let (q, k, v) = (
        values(images * q_len * d, 1, spread),
        values(images * kv_len * d, 2, spread),
        values(images * kv_len * d, 3, 1.0),
    );
    let mut want = vec![0.0; images * q_len * d];
    for b in 0..images {
        for h in 0..heads {
            let at = |x: &[f32], len: usize, t: usize, c: usize| x[(b * len + t) * d + h * head_dim + c] as f64;
            for i in 0..q_len {
                let score = |j| (0..head_dim).map(|c| at(&q, q_len, i, c) * at(&k, kv_len, j, c)).sum::<f64>();
                let scores: Vec<f64> = (0..kv_len).map(|j| score(j) / (head_dim as f64).sqrt()).collect();
                let top = scores.iter().cloned().fold(f64::MIN, f64::max);
                let e: Vec<f64> = scores.iter().map(|s| (s - top).exp()).collect();
                let sum: f64 = e.iter().sum();
                for c in 0..head_dim {
                    let o: f64 = (0..kv_len).map(|j| e[j] / sum * at(&v, kv_len, j, c)).sum();
                    want[(b * q_len + i) * d + h * head_dim + c] = o;
                }
            }
        }
    }
    check(&what, &want, |device, dtype| {
        // Rows of all three, as a packed projection has them, or q apart and k and v side by side.
        let join = |parts: &[&[f32]]| -> Vec<f32> {
            let rows = parts[0].len() / d;
            (0..rows).flat_map(|r| parts.iter().flat_map(move |p| p[r * d..][..d].iter().copied())).collect()
        };
        let mut out = Tensor::zeros(device, dtype, &[images, q_len, d]).unwrap();
        let (first, second);
        let part = |tensor, offset| Heads { tensor, offset };
        let (q, k, v) = if packed {
            first = tensor(device, dtype, &[images, q_len, 3 * d], &join(&[&q, &k, &v]));
            (part(&first, 0), part(&first, d), part(&first, 2 * d))
        } else {
            first = tensor(device, dtype, &[images, q_len, d], &q);
            second = tensor(device, dtype, &[images, kv_len, 2 * d], &join(&[&k, &v]));
            (part(&first, 0), part(&second, 0), part(&second, d))
        };
        device.run(|| attend(device, [q, k, v], heads, &mut out)).unwrap();
        out.to_f32(device).unwrap()
    });
}

#[test]
fn attention_self() {
    for (images, heads, head_dim, len) in [
        (2, 2, 32, 17),
        (1, 1, 64, 196),
        (1, 2, 40, 65),
        (1, 1, 72, 33),
        (1, 1, 128, 70),
        (2, 1, 48, 1),
        (1, 1, 96, 64),
    ] {
        attention_case(images, heads, head_dim, len, len, 1.5);
    }
}

#[test]
fn attention_cross() {
    for (q_len, kv_len) in [(5, 77), (70, 1), (1, 130), (64, 200)] {
        attention_case(2, 2, 32, q_len, kv_len, 1.5);
    }
}

#[test]
fn attention_with_peaked_scores() {
    // Scores from about -40 to 40: the running maximum has to take over several times. Larger ones lose digits in f32
    // before the exponential.
    attention_case(1, 1, 64, 50, 200, 6.0);
    attention_case(1, 1, 112, 20, 200, 5.0);
    attention_case(1, 1, 80, 20, 200, 6.0);
}

#[test]
fn layernorm_affine_and_modulated() {
    for (images, tokens, dim) in [(2, 5, 64), (1, 3, 768), (3, 1, 33), (1, 2, 1), (2, 3, 200), (1, 1, 1152)] {
        let rows = images * tokens;
        // A large mean beside a small spread, as residual streams have it.
        let x: Vec<f32> = values(rows * dim, 1, 2.0).iter().map(|v| v + 3.0).collect();
        let (weight, bias) = (values(dim, 2, 1.0), values(dim, 3, 1.0));
        let (shift, scale) = (values(images * dim, 4, 1.0), values(images * dim, 5, 1.0));
        let normed = |i: usize| {
            let row = &x[i / dim * dim..][..dim];
            let mean = row.iter().map(|&v| v as f64).sum::<f64>() / dim as f64;
            let var = row.iter().map(|&v| (v as f64 - mean).powi(2)).sum::<f64>() / dim as f64;
            (x[i] as f64 - mean) / (var + 1e-6).sqrt()
        };
        let learned: Vec<f64> =
            (0..rows * dim).map(|i| normed(i) * weight[i % dim] as f64 + bias[i % dim] as f64).collect();
        let plain: Vec<f64> = (0..rows * dim).map(normed).collect();
        let at = |i: usize| i / dim / tokens * dim + i % dim;
        let modulated: Vec<f64> =
            (0..rows * dim).map(|i| normed(i) * scale[at(i)] as f64 + shift[at(i)] as f64).collect();
        // A row of one number is its own mean, whatever its rounding: nothing but the bias is left.
        for (kind, want) in [("plain", &plain), ("learned", &learned), ("modulated", &modulated)] {
            if dim == 1 && kind == "plain" {
                continue;
            }
            check(&format!("layernorm {kind} {images}x{tokens}x{dim}"), want, |device, dtype| {
                let t = |shape: &[usize], v: &[f32]| tensor(device, dtype, shape, v);
                let (x, weight, bias) = (t(&[images, tokens, dim], &x), t(&[dim], &weight), t(&[dim], &bias));
                let (shift, scale) = (t(&[images, dim], &shift), t(&[images, dim], &scale));
                let (shift, scale) = (Columns::PerImage(&shift), Columns::PerImage(&scale));
                let affine = match kind {
                    "plain" => Affine::None,
                    "learned" => Affine::Learned(&weight, &bias),
                    _ => Affine::Modulated { shift, scale, select: None },
                };
                let mut y = Tensor::zeros(device, dtype, x.shape()).unwrap();
                device.run(|| layernorm(device, &x, affine, 1e-6, &mut y)).unwrap();
                y.to_f32(device).unwrap()
            });
        }
    }
}

#[test]
fn patches_and_back() {
    for (images, shared, channels, side, patch) in
        [(2, 2, 1, 16, 4), (4, 2, 3, 12, 2), (1, 1, 2, 9, 3), (2, 1, 1, 8, 8)]
    {
        let (grid, pp) = (side / patch, patch * patch);
        let image_len = channels * side * side;
        let x = values(shared * image_len, 1, 1.0);
        let pixel = |c: usize, row: usize, col: usize| (c * side + row) * side + col;
        let mut rows = vec![0.0; images * image_len];
        let tokens = values(images * image_len, 2, 1.0);
        let mut back = vec![0.0; images * image_len];
        for b in 0..images {
            for token in 0..grid * grid {
                for c in 0..channels {
                    for (i, j) in (0..pp).map(|e| (e / patch, e % patch)) {
                        let p = pixel(c, token / grid * patch + i, token % grid * patch + j);
                        let conv_order = (c * patch + i) * patch + j;
                        let dit_order = (i * patch + j) * channels + c;
                        let base = b * image_len + token * channels * pp;
                        rows[base + conv_order] = x[b % shared * image_len + p] as f64;
                        back[b * image_len + p] = tokens[base + dit_order] as f64;
                    }
                }
            }
        }
        check(&format!("patchify {images} {channels}x{side}/{patch}"), &rows, |device, dtype| {
            let x = tensor(device, wide(dtype), &[shared, channels, side, side], &x);
            let mut y = Tensor::zeros(device, dtype, &[images, grid * grid, channels * pp]).unwrap();
            patchify(device, &x, patch, &mut y).unwrap();
            y.to_f32(device).unwrap()
        });
        check(&format!("unpatchify {images} {channels}x{side}/{patch}"), &back, |device, dtype| {
            let tokens = tensor(device, dtype, &[images, grid * grid, channels * pp], &tokens);
            let mut v = Tensor::zeros(device, dtype, &[images, channels, side, side]).unwrap();
            unpatchify(device, &tokens, patch, &mut v).unwrap();
            v.to_f32(device).unwrap()
        });
    }
}

#[test]
fn embeddings_and_token_rows() {
    for (batch, tokens, dim) in [(3, 4, 64), (1, 1, 5), (2, 7, 192)] {
        let (table, labels) = (values(4 * dim, 1, 1.0), [2u32, 0, 3]);
        let (time, x) = (values(batch * dim, 2, 2.0), values(batch * tokens * dim, 3, 1.0));
        let first = values(dim, 5, 1.0);
        let row = |i: usize| {
            let label = labels[i / dim % labels.len()] as usize;
            time[i / dim / labels.len() * dim + i % dim] as f64 + table[label * dim + i % dim] as f64
        };
        let want: Vec<f64> = (0..batch * labels.len() * dim).map(|i| silu(row(i))).collect();
        check("label embedding", &want, |device, dtype| {
            let time = tensor(device, dtype, &[batch, dim], &time);
            let table = tensor(device, dtype, &[4, dim], &table);
            let indices = Tensor::from_u32(device, &[labels.len()], &labels).unwrap();
            let mut c = Tensor::zeros(device, dtype, &[batch * labels.len(), dim]).unwrap();
            label_embedding(device, &time, &table, &indices, &mut c).unwrap();
            c.to_f32(device).unwrap()
        });
        let image = tokens * dim;
        let want: Vec<f64> = (0..batch).flat_map(|b| [f64s(&first), f64s(&x[b * image..][..image])].concat()).collect();
        check("prepend token", &want, |device, dtype| {
            let (first, x) = (tensor(device, dtype, &[dim], &first), tensor(device, dtype, &[batch, tokens, dim], &x));
            let mut y = Tensor::zeros(device, dtype, &[batch, tokens + 1, dim]).unwrap();
            prepend_token(device, &first, &x, &mut y).unwrap();
            y.to_f32(device).unwrap()
        });
        let want: Vec<f64> = (0..batch).flat_map(|b| f64s(&x[b * image..][..dim])).collect();
        check("take token", &want, |device, dtype| {
            let x = tensor(device, dtype, &[batch, tokens, dim], &x);
            let mut y = Tensor::zeros(device, dtype, &[batch, dim]).unwrap();
            take_token(device, &x, &mut y).unwrap();
            y.to_f32(device).unwrap()
        });
    }
}

#[test]
fn solver_steps() {
    let shape = [2, 1, 5, 7];
    let n = 70;
    let (x, base, prev) = (values(n, 1, 2.0), values(n, 2, 2.0), values(n, 3, 2.0));
    let v = values(2 * n, 4, 3.0);
    let row = |v_coef, prev_coef, flags| SolverStep { v_coef, prev_coef, flags, reserved: 0 };
    let rows = [
        row(-0.25, 0.0, 0),
        row(-0.25, 0.0, SAVE_BASE | SAVE_PREV),
        row(-0.5, -0.5, FROM_BASE | LAST),
        row(-1.5, 0.5, SAVE_PREV | LAST),
    ];
    for (i, step) in rows.iter().enumerate() {
        for guidance in [None, Some(2.5f32)] {
            for clamp in [None, Some((-1.0f32, 1.5f32))] {
                let mut want = [vec![0.0; n], f64s(&base), f64s(&prev)];
                for e in 0..n {
                    let (c, u) = (v[e] as f64, v[n + e] as f64);
                    let velocity = guidance.map_or(c, |g| u + g as f64 * (c - u));
                    let from = if step.flags & FROM_BASE != 0 { base[e] } else { x[e] } as f64;
                    let mut new = from + step.v_coef as f64 * velocity + step.prev_coef as f64 * prev[e] as f64;
                    if let Some((lo, hi)) = clamp.filter(|_| step.flags & LAST != 0) {
                        new = new.clamp(lo as f64, hi as f64);
                    }
                    want[0][e] = new;
                    if step.flags & SAVE_BASE != 0 {
                        want[1][e] = x[e] as f64;
                    }
                    if step.flags & SAVE_PREV != 0 {
                        want[2][e] = velocity;
                    }
                }
                check(&format!("solver row {i} {guidance:?} {clamp:?}"), &want.concat(), |device, dtype| {
                    let state = |v: &[f32]| tensor(device, wide(dtype), &shape, v);
                    let mut s = SolverState { x: state(&x), base: state(&base), prev: state(&prev) };
                    let images = if guidance.is_some() { 4 } else { 2 };
                    let v = tensor(device, dtype, &[images, 1, 5, 7], &v[..images * 35]);
                    let table = step_table(device, &rows).unwrap();
                    let mut counter = Tensor::from_u32(device, &[1], &[i as u32 - u32::from(i > 0)]).unwrap();
                    if i > 0 {
                        advance(device, &mut counter).unwrap();
                    }
                    let options = SolverOptions { guidance, clamp };
                    solver_step(device, &mut s, &v, &table, &counter, options).unwrap();
                    [s.x, s.base, s.prev].iter().flat_map(|t| t.to_f32(device).unwrap()).collect()
                });
            }
        }
    }
}

#[test]
fn solver_lets_nan_through_the_clamp() {
    for device in [cpu(), cuda()] {
        let one = |v: f32| tensor(&device, DType::F32, &[1, 1, 1, 1], &[v]);
        let mut s = SolverState { x: one(f32::NAN), base: one(0.0), prev: one(0.0) };
        let table =
            step_table(&device, &[SolverStep { v_coef: -1.0, prev_coef: 0.0, flags: LAST, reserved: 0 }]).unwrap();
        let counter = Tensor::from_u32(&device, &[1], &[0]).unwrap();
        let options = SolverOptions { guidance: None, clamp: Some((-1.0, 1.0)) };
        solver_step(&device, &mut s, &one(1.0), &table, &counter, options).unwrap();
        assert!(s.x.to_f32(&device).unwrap()[0].is_nan(), "a broken image must not look like a grey one");
    }
}

/// The same bits on both devices, whatever image the batch begins with.
#[test]
fn a_million_normals_are_identical_on_cpu_and_gpu() {
    let (images, per_image, first) = (10, 100_001, u64::from(u32::MAX) - 3);
    let draw = |device: &Device| {
        let mut x = Tensor::zeros(device, DType::F32, &[images, per_image]).unwrap();
        device.run(|| normal(device, 0x0123_4567_89ab_cdef, first, &mut x)).unwrap();
        x.to_f32(device).unwrap()
    };
    let bits = |v: &[f32]| v.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
    let on_cpu = draw(&cpu());
    assert!(bits(&on_cpu) == bits(&every_mode("normals", || draw(&cuda()))));
    let mut alone = vec![0f32; per_image];
    rng::normals(0x0123_4567_89ab_cdef, first + 7, 0, &mut alone);
    assert_eq!(on_cpu[7 * per_image..8 * per_image], alone);
}

/// Structs that go to kernels by value have the layout that the kernels' compiler gives them.
#[test]
fn spec_structs_match_their_c_side() {
    if arclet_emu::real_driver() {
        println!("the emulated library is not here: layouts are compared where it is");
        return;
    }
    for rust in arclet::ops::spec_layouts() {
        let c = arclet_emu::spec_layout(rust.name).unwrap_or_else(|| panic!("no SPEC_LAYOUT({}, ..)", rust.name));
        let fields: Vec<(&str, usize)> = c.fields.iter().map(|f| (f.name.as_str(), f.offset)).collect();
        assert_eq!((c.size, fields.as_slice()), (rust.size, rust.fields), "{}", rust.name);
        assert!(c.fields.iter().all(|f| f.size == 4), "{}", rust.name);
    }
}
