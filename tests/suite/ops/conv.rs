//! Convolutions: against PyTorch over geometries, and what is fused into them against plain loops.

use arclet::device::Device;
use arclet::device::cpu::Cpu;
use arclet::device::level::Level;
use arclet::io::Checkpoint;
use arclet::ops::Columns;
use arclet::ops::conv::{
    ConvSpec, Operands, Plan, Residual, TILES, conv_transpose2d, conv2d, conv2d_by, transposed_weight,
    transposed_workspace_size, weight, workspace_size,
};
use arclet::ops::linear::{Activation, Workspace};
use arclet::tensor::{DType, Tensor};

use super::{gelu, silu, tensor, values};
use crate::common::{cpu, data, relative_error};
use crate::engines::{check, cuda, every_mode};

/// A convolution that PyTorch has computed.
pub struct Golden {
    file: Checkpoint,
    pub name: String,
    pub spec: ConvSpec,
    pub transposed: bool,
}

impl Golden {
    /// All of them.
    pub fn all() -> Vec<Self> {
        let open = || Checkpoint::open(data("conv/goldens.safetensors")).expect("golden file");
        let cases: serde_json::Value = serde_json::from_str(&open().metadata()["cases"]).expect("cases are JSON");
        let number = |v: &serde_json::Value| v.as_u64().expect("a number") as usize;
        let golden = |case: &serde_json::Value| {
            let (file, name) = (open(), case["name"].as_str().expect("a name").to_string());
            let padding = [0, 1, 2, 3].map(|side| number(&case["padding"][side]));
            let spec = ConvSpec {
                kernel: [2, 3].map(|axis| file.shape(&format!("{name}.weight")).expect("a weight")[axis]),
                stride: [number(&case["stride"]); 2],
                padding: [[padding[0], padding[1]], [padding[2], padding[3]]],
                dilation: [number(&case["dilation"]); 2],
                groups: number(&case["groups"]),
            };
            Self { file, name, spec, transposed: case["transposed"].as_bool().expect("a truth value") }
        };
        cases.as_array().expect("a list").iter().map(golden).collect()
    }

    pub fn shape(&self, name: &str) -> Vec<usize> {
        self.file.shape(&format!("{}.{name}", self.name)).expect("a tensor").to_vec()
    }

    pub fn values(&self, name: &str) -> Vec<f32> {
        self.file.read_f32(&format!("{}.{name}", self.name)).expect("a tensor")
    }

    /// [B, C, H, W] as [B, H, W, C].
    pub fn images(&self, name: &str) -> (Vec<usize>, Vec<f32>) {
        let [b, c, h, w] = self.shape(name).try_into().expect("four dimensions");
        let values = self.values(name);
        let at = |i: usize| ((i / (h * w * c) * c + i % c) * h + i / (w * c) % h) * w + i / c % w;
        (vec![b, h, w, c], (0..values.len()).map(|i| values[at(i)]).collect())
    }
}

fn space(device: &Device, dtype: DType, spec: ConvSpec, c: usize, y: &Tensor) -> Workspace {
    let output = [y.dim(1), y.dim(2)];
    Workspace::new(device, dtype, workspace_size(device, dtype, spec, [y.dim(0), c, y.dim(3)], output)).unwrap()
}

#[test]
fn convolutions_are_pytorchs() {
    for golden in Golden::all().iter().filter(|g| !g.transposed) {
        let (spec, shape) = (golden.spec, golden.shape("weight").try_into().unwrap());
        let ((x_shape, x), (y_shape, y)) = (golden.images("x"), golden.images("y"));
        let (w, bias) = (golden.values("weight"), golden.values("bias"));
        check(&format!("convolution {}", golden.name), &super::f64s(&y), |device, dtype| {
            let w = weight(device, dtype, spec, shape, &w).unwrap();
            let (x, bias) = (tensor(device, dtype, &x_shape, &x), tensor(device, dtype, &[shape[0]], &bias));
            let mut y = Tensor::zeros(device, dtype, &y_shape).unwrap();
            let mut space = space(device, dtype, spec, x_shape[3], &y);
            let (x, bias) = ([&x], Some(Columns::Shared(&bias)));
            let operands = Operands { bias, ..Operands::new(spec, &x, &w) };
            device.run(|| conv2d(device, operands, &mut y, &mut space)).unwrap();
            y.to_f32(device).unwrap()
        });
    }
}

#[test]
fn transposed_convolutions_are_pytorchs() {
    for golden in Golden::all().iter().filter(|g| g.transposed) {
        let (spec, shape) = (golden.spec, golden.shape("weight").try_into().unwrap());
        let ((x_shape, x), (y_shape, y)) = (golden.images("x"), golden.images("y"));
        let (w, bias) = (golden.values("weight"), golden.values("bias"));
        check(&format!("transposed convolution {}", golden.name), &super::f64s(&y), |device, dtype| {
            let w = transposed_weight(device, dtype, spec, shape, &w).unwrap();
            let (x, bias) = (tensor(device, dtype, &x_shape, &x), tensor(device, dtype, &[y_shape[3]], &bias));
            let mut y = Tensor::zeros(device, dtype, &y_shape).unwrap();
            let sizes = [y_shape[0], x_shape[3], y_shape[3]];
            let size = transposed_workspace_size(device, dtype, spec, sizes, [y_shape[1], y_shape[2]]);
            let mut space = Workspace::new(device, dtype, size).unwrap();
            let (x, bias) = ([&x], Some(Columns::Shared(&bias)));
            let operands = Operands { bias, ..Operands::new(spec, &x, &w) };
            device.run(|| conv_transpose2d(device, operands, &mut y, &mut space)).unwrap();
            y.to_f32(device).unwrap()
        });
    }
}

/// A convolution of several inputs side by side, with all that can follow it.
struct Fused {
    images: usize,
    size: [usize; 2],
    channels: &'static [usize],
    n: usize,
    spec: ConvSpec,
    per_image: bool,
    act: Activation,
    residual: &'static str,
}

impl Fused {
    fn output(&self) -> [usize; 2] {
        self.spec.output(self.size).unwrap()
    }

    /// Numbers of the inputs: image b of them is the same in any batch.
    fn x(&self) -> Vec<Vec<f32>> {
        let image =
            |c: usize, part: usize, b: usize| values(self.size[0] * self.size[1] * c, (7 * part + b) as u64, 1.0);
        let all = |(part, &c): (usize, &usize)| (0..self.images).flat_map(|b| image(c, part, b)).collect();
        self.channels.iter().enumerate().map(all).collect()
    }

    /// [N, C / groups, kh, kw].
    fn weight(&self) -> ([usize; 4], Vec<f32>) {
        let c = self.channels.iter().sum::<usize>() / self.spec.groups;
        let shape = [self.n, c, self.spec.kernel[0], self.spec.kernel[1]];
        (shape, values(shape.iter().product(), 50, (3.0 / (c * self.spec.taps()) as f64).sqrt()))
    }

    fn bias(&self) -> Vec<f32> {
        (0..self.images).flat_map(|b| values(self.n, 60 + b as u64, 0.5)).collect()
    }

    fn residual(&self) -> Vec<f32> {
        let pixels = self.output()[0] * self.output()[1];
        (0..self.images).flat_map(|b| values(pixels * self.n, 80 + b as u64, 1.0)).collect()
    }

    fn run(&self, device: &Device, dtype: DType) -> Vec<f32> {
        let ([h, w], [oh, ow], n) = (self.size, self.output(), self.n);
        let t = |shape: &[usize], v: &[f32]| tensor(device, dtype, shape, v);
        let inputs = self.x();
        let x: Vec<Tensor> = inputs.iter().zip(self.channels).map(|(x, &c)| t(&[self.images, h, w, c], x)).collect();
        let x: Vec<&Tensor> = x.iter().collect();
        let (shape, values) = self.weight();
        let weight = weight(device, dtype, self.spec, shape, &values).unwrap();
        let (shared, each) = (t(&[n], &self.bias()[..n]), t(&[self.images, n], &self.bias()));
        let r = t(&[self.images, oh, ow, n], &self.residual());
        let operands = Operands {
            bias: Some(if self.per_image { Columns::PerImage(&each) } else { Columns::Shared(&shared) }),
            act: self.act,
            residual: match self.residual {
                "before" => Residual::Before(&r),
                "after" => Residual::After(&r),
                _ => Residual::None,
            },
            ..Operands::new(self.spec, &x, &weight)
        };
        let mut y = Tensor::zeros(device, dtype, r.shape()).unwrap();
        let mut space = space(device, dtype, self.spec, self.channels.iter().sum(), &y);
        device.run(|| conv2d(device, operands, &mut y, &mut space)).unwrap();
        y.to_f32(device).unwrap()
    }

    /// By plain loops.
    fn want(&self) -> Vec<f64> {
        let ([h, w], [oh, ow], s) = (self.size, self.output(), &self.spec);
        let (x, (shape, weight), bias, residual) = (self.x(), self.weight(), self.bias(), self.residual());
        let pixel = |b: usize, y: isize, xx: isize, mut c: usize| -> f64 {
            if y < 0 || xx < 0 || y >= h as isize || xx >= w as isize {
                return 0.0;
            }
            let mut part = 0;
            while c >= self.channels[part] {
                c -= self.channels[part];
                part += 1;
            }
            f64::from(x[part][((b * h + y as usize) * w + xx as usize) * self.channels[part] + c])
        };
        let mut want = Vec::new();
        for (b, oy, ox, n) in (0..self.images * oh * ow * self.n)
            .map(|i| (i / (oh * ow * self.n), i / (ow * self.n) % oh, i / self.n % ow, i % self.n))
        {
            let first = n / (self.n / s.groups) * shape[1];
            let mut v = f64::from(bias[if self.per_image { b * self.n + n } else { n }]);
            for (c, ky, kx) in
                (0..shape[1] * s.taps()).map(|i| (i / s.taps(), i / s.kernel[1] % s.kernel[0], i % s.kernel[1]))
            {
                let y = (oy * s.stride[0] + ky * s.dilation[0]) as isize - s.padding[0][0] as isize;
                let xx = (ox * s.stride[1] + kx * s.dilation[1]) as isize - s.padding[1][0] as isize;
                let weight = weight[((n * shape[1] + c) * s.kernel[0] + ky) * s.kernel[1] + kx];
                v += pixel(b, y, xx, first + c) * f64::from(weight);
            }
            let r = f64::from(residual[want.len()]);
            let v = if self.residual == "before" { v + r } else { v };
            let v = match self.act {
                Activation::None => v,
                Activation::Gelu => gelu(v),
                Activation::GeluTanh => super::gelu_tanh(v),
                Activation::Silu => silu(v),
                Activation::Relu => v.max(0.0),
            };
            want.push(if self.residual == "after" { v + r } else { v });
        }
        want
    }

    fn check(&self) {
        let what = format!(
            "convolution {} of {:?} x {:?} to {}, {:?}, {:?} {}",
            self.images, self.size, self.channels, self.n, self.spec, self.act, self.residual
        );
        check(&what, &self.want(), |device, dtype| self.run(device, dtype));
    }
}

const PLAIN: Fused = Fused {
    images: 2,
    size: [5, 6],
    channels: &[16],
    n: 24,
    spec: ConvSpec { kernel: [3; 2], stride: [1; 2], padding: [[1; 2]; 2], dilation: [1; 2], groups: 1 },
    per_image: false,
    act: Activation::None,
    residual: "none",
};

#[test]
fn convolutions_are_followed_by_anything() {
    use Activation::{Gelu, GeluTanh, None as Plain, Relu, Silu};
    for (act, residual, per_image) in [
        (Relu, "before", false),
        (Silu, "after", true),
        (Gelu, "none", true),
        (GeluTanh, "before", false),
        (Plain, "after", false),
    ] {
        Fused { act, residual, per_image, ..PLAIN }.check();
        let depthwise = PLAIN.spec.groups(24);
        Fused { channels: &[24], spec: depthwise, act, residual, per_image, ..PLAIN }.check();
    }
}

/// What a network concatenates: lines that are whole and lines that are not, groups that lie in two of the inputs.
#[test]
fn convolutions_read_several_inputs() {
    for channels in [&[16usize, 32][..], &[8, 8, 8], &[1, 3], &[16, 16, 16, 16, 32, 16], &[5, 2, 9, 1, 1, 6]] {
        Fused { channels, ..PLAIN }.check();
    }
    Fused { channels: &[7, 17], n: 9, spec: PLAIN.spec.groups(3), ..PLAIN }.check();
    Fused { channels: &[7, 17], spec: PLAIN.spec.groups(24), ..PLAIN }.check();
}

/// More rows than are packed at once, several tiles each way and long sums.
#[test]
fn convolutions_of_many_rows() {
    Fused { images: 3, size: [9, 15], channels: &[64], n: 72, ..PLAIN }.check();
    Fused { images: 1, size: [24, 37], channels: &[32, 16], n: 17, ..PLAIN }.check();
}

#[test]
fn bits_depend_on_neither_threads_nor_batch() {
    let bits = |v: Vec<f32>| v.into_iter().map(f32::to_bits).collect::<Vec<_>>();
    let grouped = PLAIN.spec.groups(2);
    for case in [
        PLAIN,
        Fused { size: [33, 40], channels: &[32], n: 70, ..PLAIN },
        Fused { size: [20, 21], channels: &[3], spec: ConvSpec::new(7).stride(2).padding(3), ..PLAIN },
        Fused { spec: grouped, ..PLAIN },
        Fused { channels: &[24], spec: PLAIN.spec.groups(24), ..PLAIN },
    ] {
        let alone = Fused { images: 1, channels: case.channels, residual: case.residual, ..case };
        for level in Level::ALL {
            for dtype in [DType::F32, DType::BF16] {
                let one = Device::Cpu(Cpu::at(1, level).unwrap());
                let want = bits(case.run(&one, dtype));
                for threads in [2, 3, 16] {
                    let device = Device::Cpu(Cpu::at(threads, level).unwrap());
                    assert!(want == bits(case.run(&device, dtype)), "{} {dtype}, {threads} threads", level.name());
                }
                let alone = bits(alone.run(&one, dtype));
                assert!(want[..alone.len()] == alone, "{} {dtype}: the batch changes an image", level.name());
            }
        }
        for dtype in [DType::F32, DType::F16] {
            let (all, alone) = (bits(case.run(&cuda(), dtype)), bits(alone.run(&cuda(), dtype)));
            assert!(all[..alone.len()] == alone, "cuda {dtype}: the batch changes an image");
        }
    }
}

#[test]
fn convolutions_that_do_not_fit_are_refused() {
    let device = &cpu();
    let zeros = |shape: &[usize]| Tensor::zeros(device, DType::F32, shape).unwrap();
    let refused = |spec: ConvSpec, x: &[&Tensor], w: &Tensor, y: &[usize], said: &str| {
        let mut space = Workspace::new(device, DType::F32, Default::default()).unwrap();
        let error = conv2d(device, Operands::new(spec, x, w), &mut zeros(y), &mut space).unwrap_err().to_string();
        assert!(error.contains(said), "{error}");
    };
    let (spec, x, w) = (ConvSpec::new(3).padding(1), zeros(&[1, 4, 4, 8]), zeros(&[6, 3, 3, 8]));
    refused(spec, &[&x], &w, &[1, 4, 4, 6], "workspace is too small");
    refused(spec, &[&x], &w, &[1, 4, 5, 6], "expected");
    refused(spec, &[&x], &w, &[1, 4, 4, 7], "does not fit");
    refused(spec.groups(3), &[&x], &w, &[1, 4, 4, 6], "does not fit");
    refused(spec, &[&x, &x], &w, &[1, 4, 4, 6], "does not fit");
    refused(spec, &[&x, &zeros(&[1, 4, 3, 8])], &w, &[1, 4, 4, 6], "expected");
    refused(spec, &[&x; 7], &w, &[1, 4, 4, 6], "1 to 6 expected");
    refused(spec.stride(0), &[&x], &w, &[1, 4, 4, 6], "zero");
    refused(ConvSpec::new(7), &[&x], &w, &[1, 4, 4, 6], "smaller than the kernel");
    let error = weight(device, DType::F32, spec, [6, 8, 3, 3], &[0.0; 5]).err().expect("an error").to_string();
    assert!(error.contains("do not fit"), "{error}");
}

/// Every tile there is, with chunks of k spread over blocks and in one block: the bits are those of the smallest tile.
#[test]
fn tiles_and_plans_agree_in_every_bit() {
    let device = &cuda();
    let case = Fused { images: 3, size: [7, 9], channels: &[24, 16], n: 136, ..PLAIN };
    let (k, m, want) = (40 * 9, 3 * 63, case.want());
    for dtype in [DType::F32, DType::F16, DType::BF16] {
        let tiles = if dtype == DType::F32 { &TILES[..1] } else { &TILES };
        for splits in [1, 3] {
            let mut first: Option<Vec<f32>> = None;
            for (&tile, spread) in tiles.iter().flat_map(|t| [(t, false), (t, true)]).filter(|(_, s)| !s || splits > 1)
            {
                let plan = Plan::new(tile, k, splits, spread);
                let what = format!("convolution in {dtype} by {plan:?}");
                let got = every_mode(&what, || {
                    let t = |shape: &[usize], v: &[f32]| tensor(device, dtype, shape, v);
                    let inputs = case.x();
                    let (a, b) = (t(&[3, 7, 9, 24], &inputs[0]), t(&[3, 7, 9, 16], &inputs[1]));
                    let (shape, values) = case.weight();
                    let w = weight(device, dtype, case.spec, shape, &values).unwrap();
                    let bias = t(&[136], &case.bias()[..136]);
                    let (x, bias) = ([&a, &b], Some(Columns::Shared(&bias)));
                    let mut y = Tensor::zeros(device, dtype, &[3, 7, 9, 136]).unwrap();
                    let mut space = Workspace::new(device, dtype, plan.workspace(m, 136)).unwrap();
                    // Twice, so that the second launch finds the counters as the first one left them.
                    for _ in 0..2 {
                        let operands = Operands { bias, ..Operands::new(case.spec, &x, &w) };
                        conv2d_by(device, plan, operands, &mut y, &mut space).unwrap();
                    }
                    y.to_f32(device).unwrap()
                });
                let wanted: Vec<f32> = want.iter().map(|&v| v as f32).collect();
                let error = relative_error(&got, &wanted);
                assert!(error < if dtype == DType::BF16 { 2e-2 } else { 3e-3 }, "{what}: relative error {error:.2e}");
                match &first {
                    Some(first) => assert!(first == &got, "{what}: other bits than in the smallest tile"),
                    None => first = Some(got),
                }
            }
        }
    }
}
