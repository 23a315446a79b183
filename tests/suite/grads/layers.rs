//! Layers of convolutional networks out of operations, with convolutions by their definition in f64: outputs and gradients
//! against PyTorch (`tests/data/goldens/c_training/layer_*`).

use arclet::device::Device;
use arclet::ops::activation::{activate, activate_backward};
use arclet::ops::backward::layernorm::{AffineBackward, layernorm_backward, scratch_len};
use arclet::ops::batchnorm::{self, BatchNorm, Running, batchnorm, batchnorm_backward};
use arclet::ops::grn::{self, Grn, grn, grn_backward};
use arclet::ops::groupnorm::{self, GroupNorm, groupnorm, groupnorm_backward};
use arclet::ops::layernorm::{Affine, layernorm};
use arclet::ops::linear::Activation;
use arclet::tensor::{DType, Tensor};

use crate::common::{Golden, cpu, relative_error};
use crate::engines::cuda;

/// A convolution of images [B, H, W, C] by weights [N, C / groups, kernel, kernel].
#[derive(Clone, Copy)]
struct Conv {
    shape: [usize; 4],
    outputs: usize,
    kernel: usize,
    stride: usize,
    padding: usize,
    groups: usize,
}

impl Conv {
    fn output(&self) -> [usize; 4] {
        let [images, height, width, _] = self.shape;
        let size = |n: usize| (n + 2 * self.padding - self.kernel) / self.stride + 1;
        [images, size(height), size(width), self.outputs]
    }

    /// Each product that there is: indices of x, of the weight and of y.
    fn products(&self, mut each: impl FnMut(usize, usize, usize)) {
        let [images, height, width, c] = self.shape;
        let [_, rows, cols, n] = self.output();
        let (kernel, per_group) = (self.kernel, c / self.groups);
        for y in 0..images * rows * cols * n {
            let (image, row, col, output) = (y / n / cols / rows, y / n / cols % rows, y / n % cols, y % n);
            for weight in output * per_group * kernel * kernel..(output + 1) * per_group * kernel * kernel {
                let (i, j) = (weight / kernel % kernel, weight % kernel);
                let channel = output / (n / self.groups) * per_group + weight / (kernel * kernel) % per_group;
                let (at_row, at_col) = (row * self.stride + i, col * self.stride + j);
                let inside = |at: usize, n: usize| at >= self.padding && at - self.padding < n;
                if inside(at_row, height) && inside(at_col, width) {
                    let pixel = (image * height + at_row - self.padding) * width + at_col - self.padding;
                    each(pixel * c + channel, weight, y);
                }
            }
        }
    }

    fn forward(&self, x: &[f64], weight: &[f64], bias: Option<&[f64]>) -> Vec<f64> {
        let mut y: Vec<f64> =
            (0..self.output().iter().product()).map(|i| bias.map_or(0.0, |b| b[i % b.len()])).collect();
        self.products(|from, w, to| y[to] += x[from] * weight[w]);
        y
    }

    /// dx and dw.
    fn backward(&self, x: &[f64], weight: &[f64], dy: &[f64]) -> (Vec<f64>, Vec<f64>) {
        let (mut dx, mut dw) = (vec![0.0; x.len()], vec![0.0; weight.len()]);
        self.products(|from, w, to| {
            dx[from] += dy[to] * weight[w];
            dw[w] += dy[to] * x[from];
        });
        (dx, dw)
    }
}

/// A golden and where to compute.
struct Layer {
    golden: Golden,
    device: Device,
    dtype: DType,
}

impl Layer {
    /// Runs `check` in f64 on the CPU and in f32 on the GPU.
    fn everywhere(name: &str, check: impl Fn(&Self)) {
        for (device, dtype) in [(cpu(), DType::F64), (cuda(), DType::F32)] {
            let golden = Golden::open(&format!("c_training/layer_{name}.safetensors"));
            check(&Self { golden, device, dtype });
        }
    }

    /// A tensor's numbers; images with channels last.
    fn read(&self, name: &str) -> Vec<f64> {
        let values: Vec<f64> = self.golden.f32(name).into_iter().map(f64::from).collect();
        match *self.golden.shape(name) {
            [_, c, height, width] if !name.ends_with("weight") => {
                let (pixels, image) = (height * width, c * height * width);
                let from = |i: usize| i / image * image + i % c * pixels + i / c % pixels;
                (0..values.len()).map(|i| values[from(i)]).collect()
            }
            _ => values,
        }
    }

    fn tensor(&self, shape: &[usize], values: &[f64]) -> Tensor {
        Tensor::from_f64(&self.device, self.dtype, shape, values).unwrap()
    }

    fn weight(&self, name: &str) -> Tensor {
        let values = self.read(name);
        self.tensor(&[values.len()], &values)
    }

    fn zeros(&self, shape: &[usize]) -> Tensor {
        self.tensor(shape, &vec![0.0; shape.iter().product()])
    }

    fn host(&self, t: &Tensor) -> Vec<f64> {
        t.to_f64(&self.device).unwrap()
    }

    fn expect(&self, name: &str, got: &[f64]) {
        let narrow = |v: &[f64]| v.iter().map(|&v| v as f32).collect::<Vec<_>>();
        let error = relative_error(&narrow(got), &narrow(&self.read(name)));
        let bound = if self.dtype == DType::F64 { 1e-6 } else { 1e-4 };
        assert!(error < bound, "{name} in {}: relative error {error:.2e}", self.dtype);
    }

    fn expect_gradients(&self, name: &str, weight: &Tensor, bias: &Tensor) {
        self.expect(&format!("grad.{name}.weight"), &self.host(weight));
        self.expect(&format!("grad.{name}.bias"), &self.host(bias));
    }
}

/// A stride of 2, batch norm, ReLU, groups.
#[test]
fn convolution_and_batch_norm() {
    Layer::everywhere("conv_bn_train", |l| {
        let first = Conv { shape: [3, 9, 9, 8], outputs: 12, kernel: 3, stride: 2, padding: 1, groups: 1 };
        let second = Conv { shape: first.output(), outputs: 8, kernel: 3, stride: 1, padding: 1, groups: 4 };
        let (x, w0, w3) = (l.read("in.x"), l.read("w.0.weight"), l.read("w.3.weight"));
        let h = l.tensor(&first.output(), &first.forward(&x, &w0, None));
        let (weight, bias) = (l.weight("w.1.weight"), l.weight("w.1.bias"));
        let norm = BatchNorm { eps: 1e-5, weight: &weight, bias: &bias };
        let (mut mean, mut var) = (l.weight("w.1.running_mean"), l.weight("w.1.running_var"));
        let (mut saved, mut n) = (l.zeros(&[2, 12]), l.zeros(h.shape()));
        let mut scratch = l.zeros(&[batchnorm::scratch_len(&h).unwrap()]);
        let running = Running { mean: &mut mean, var: &mut var, momentum: 0.1 };
        batchnorm(&l.device, &h, norm, Some(running), &mut saved, &mut n, &mut scratch).unwrap();
        l.expect("after.1.running_mean", &l.host(&mean));
        l.expect("after.1.running_var", &l.host(&var));
        let n = l.host(&n);
        let relu: Vec<f64> = n.iter().map(|v| v.max(0.0)).collect();
        l.expect("out.y", &second.forward(&relu, &w3, Some(&l.read("w.3.bias"))));

        let (drelu, dw3) = second.backward(&relu, &w3, &l.read("in.gout"));
        l.expect("grad.3.weight", &dw3);
        let dn: Vec<f64> = drelu.iter().zip(&n).map(|(d, &n)| if n > 0.0 { *d } else { 0.0 }).collect();
        let (dn, mut dh) = (l.tensor(h.shape(), &dn), l.zeros(h.shape()));
        let (mut dweight, mut dbias) = (l.zeros(&[12]), l.zeros(&[12]));
        batchnorm_backward(&l.device, &h, norm, &saved, &dn, &mut dh, &mut dweight, &mut dbias, &mut scratch).unwrap();
        l.expect_gradients("1", &dweight, &dbias);
        let (dx, dw0) = first.backward(&x, &w0, &l.host(&dh));
        l.expect("grad.0.weight", &dw0);
        l.expect("gin.x", &dx);
    });
}

/// Group norms with SiLU, a time embedding between, a convolution of one pixel beside.
#[test]
fn residual_block() {
    Layer::everywhere("resblock", |l| {
        let conv = |c, outputs, kernel| Conv {
            shape: [2, 8, 8, c],
            outputs,
            kernel,
            stride: 1,
            padding: kernel / 2,
            groups: 1,
        };
        let (conv1, conv2, shortcut) = (conv(16, 24, 3), conv(24, 24, 3), conv(16, 24, 1));
        let params = |name: &str| ["weight", "bias"].map(|part| l.weight(&format!("w.{name}.{part}")));
        let (norm1, norm2) = (params("norm1"), params("norm2"));
        let norm = |x: &Tensor, [weight, bias]: &[Tensor; 2]| {
            let norm = GroupNorm { groups: 8, eps: 1e-5, weight, bias, silu: true };
            let (mut y, mut scratch) = (l.zeros(x.shape()), l.zeros(&[groupnorm::scratch_len(x).unwrap()]));
            groupnorm(&l.device, x, norm, &mut y, &mut scratch).unwrap();
            l.host(&y)
        };
        let back = |name: &str, x: &Tensor, [weight, bias]: &[Tensor; 2], dy: &[f64]| {
            let norm = GroupNorm { groups: 8, eps: 1e-5, weight, bias, silu: true };
            let mut scratch = l.zeros(&[groupnorm::backward_scratch_len(x).unwrap()]);
            let (dy, mut dx) = (l.tensor(x.shape(), dy), l.zeros(x.shape()));
            let (mut dw, mut db) = (l.zeros(weight.shape()), l.zeros(bias.shape()));
            groupnorm_backward(&l.device, x, norm, &dy, &mut dx, &mut dw, &mut db, &mut scratch).unwrap();
            l.expect_gradients(name, &dw, &db);
            l.host(&dx)
        };
        let weight = |name: &str| l.read(&format!("w.{name}.weight"));
        let bias = |name: &str| l.read(&format!("w.{name}.bias"));
        // Of each image the time embedding's product with its weights [24, 32].
        let temb: Vec<f64> = l.read("in.temb").iter().map(|v| v / (1.0 + (-v).exp())).collect();
        let (w, b) = (weight("time_emb_proj"), bias("time_emb_proj"));
        let time = |image: usize, n: usize| (0..32).map(|k| temb[image * 32 + k] * w[n * 32 + k]).sum::<f64>() + b[n];

        let x = l.tensor(&conv1.shape, &l.read("in.x"));
        let a1 = norm(&x, &norm1);
        let mut h = conv1.forward(&a1, &weight("conv1"), Some(&bias("conv1")));
        h.iter_mut().enumerate().for_each(|(i, h)| *h += time(i / (64 * 24), i % 24));
        let h = l.tensor(&conv2.shape, &h);
        let a2 = norm(&h, &norm2);
        let beside = shortcut.forward(&l.host(&x), &weight("conv_shortcut"), Some(&bias("conv_shortcut")));
        let y = conv2.forward(&a2, &weight("conv2"), Some(&bias("conv2")));
        l.expect("out.y", &y.iter().zip(&beside).map(|(a, b)| a + b).collect::<Vec<_>>());

        let dy = l.read("in.gout");
        let (da2, dw2) = conv2.backward(&a2, &weight("conv2"), &dy);
        l.expect("grad.conv2.weight", &dw2);
        let dh = back("norm2", &h, &norm2, &da2);
        let (da1, dw1) = conv1.backward(&a1, &weight("conv1"), &dh);
        l.expect("grad.conv1.weight", &dw1);
        let dx = back("norm1", &x, &norm1, &da1);
        let (beside, _) = shortcut.backward(&l.host(&x), &weight("conv_shortcut"), &dy);
        l.expect("gin.x", &dx.iter().zip(&beside).map(|(a, b)| a + b).collect::<Vec<_>>());
    });
}

/// A depthwise convolution, layer norm, two products with GELU and GRN between, and the residual.
#[test]
fn convnext_block() {
    Layer::everywhere("convnextv2_block", |l| {
        let depthwise = Conv { shape: [2, 8, 8, 16], outputs: 16, kernel: 7, stride: 1, padding: 3, groups: 16 };
        let product = |c, outputs| Conv { shape: [2, 8, 8, c], outputs, kernel: 1, stride: 1, padding: 0, groups: 1 };
        let (fc1, fc2) = (product(16, 64), product(64, 16));
        let read = |name: &str| l.read(&format!("w.{name}"));
        let x = l.read("in.x");
        let h =
            l.tensor(&depthwise.shape, &depthwise.forward(&x, &read("conv_dw.weight"), Some(&read("conv_dw.bias"))));
        let (weight, bias) = (l.weight("w.norm.weight"), l.weight("w.norm.bias"));
        let mut n = l.zeros(h.shape());
        layernorm(&l.device, &h, Affine::Learned(&weight, &bias), 1e-6, &mut n).unwrap();
        let n = l.host(&n);
        let a = l.tensor(&fc1.output(), &fc1.forward(&n, &read("mlp.fc1.weight"), Some(&read("mlp.fc1.bias"))));
        let mut g = l.zeros(a.shape());
        activate(&l.device, &a, Activation::Gelu, None, None, &mut g).unwrap();
        let (grn_weight, grn_bias) = (l.weight("w.mlp.grn.weight"), l.weight("w.mlp.grn.bias"));
        let norm = Grn { eps: 1e-6, weight: &grn_weight, bias: &grn_bias };
        let (mut r, mut scratch) = (l.zeros(a.shape()), l.zeros(&[grn::backward_scratch_len(&a).unwrap()]));
        grn(&l.device, &g, norm, &mut r, &mut scratch).unwrap();
        let r = l.host(&r);
        let y = fc2.forward(&r, &read("mlp.fc2.weight"), Some(&read("mlp.fc2.bias")));
        l.expect("out.y", &y.iter().zip(&x).map(|(a, b)| a + b).collect::<Vec<_>>());

        let dy = l.read("in.gout");
        let (dr, dw) = fc2.backward(&r, &read("mlp.fc2.weight"), &dy);
        l.expect("grad.mlp.fc2.weight", &dw);
        let (dr, mut dg, mut da) = (l.tensor(a.shape(), &dr), l.zeros(a.shape()), l.zeros(a.shape()));
        let (mut dweight, mut dbias) = (l.zeros(&[64]), l.zeros(&[64]));
        grn_backward(&l.device, &g, norm, &dr, &mut dg, &mut dweight, &mut dbias, &mut scratch).unwrap();
        l.expect_gradients("mlp.grn", &dweight, &dbias);
        activate_backward(&l.device, &a, Activation::Gelu, None, &dg, &mut da, None).unwrap();
        let (dn, dw) = fc1.backward(&n, &read("mlp.fc1.weight"), &l.host(&da));
        l.expect("grad.mlp.fc1.weight", &dw);
        let (dn, mut dh, mut scratch) =
            (l.tensor(h.shape(), &dn), l.zeros(h.shape()), l.zeros(&[scratch_len(2, 64, 16)]));
        let (mut dweight, mut dbias) = (l.zeros(&[16]), l.zeros(&[16]));
        let affine = AffineBackward::Learned { weight: &weight, dweight: &mut dweight, dbias: &mut dbias };
        layernorm_backward(&l.device, &h, affine, 1e-6, &dn, None, &mut dh, &mut scratch).unwrap();
        l.expect_gradients("norm", &dweight, &dbias);
        let (dx, dw) = depthwise.backward(&x, &read("conv_dw.weight"), &l.host(&dh));
        l.expect("grad.conv_dw.weight", &dw);
        l.expect("gin.x", &dx.iter().zip(&dy).map(|(a, b)| a + b).collect::<Vec<_>>());
    });
}
