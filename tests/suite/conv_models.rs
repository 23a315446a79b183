//! Convolutional networks against PyTorch in f64. Their weights are a hash of their names: outputs, and trajectories of the
//! flow-matching U-Net++, in the library and by the command line.

use std::path::Path;

use arclet::device::Device;
use arclet::error::{Error, Result};
use arclet::flow::sampler::{Sampler, SamplerOptions};
use arclet::flow::schedule::{Schedule, Solver, TimeConvention};
use arclet::io::{TensorBytes, write_npy_f32, write_safetensors};
use arclet::models::autoencoder_kl::coder::Autoencoder;
use arclet::models::builtin::{hash_uniform, hashed};
use arclet::models::config::{ModelConfig, NetworkConfig};
use arclet::models::unet2d::context::ContextUnet;
use arclet::models::{Inputs, Model, specs};
use arclet::nn::params::WeightSource;
use arclet::tensor::{DType, Tensor};
use serde_json::json;

use crate::cli::Desk;
use crate::common::{Golden, cpu, relative_error, rms_error, rounding_cpu};
use crate::engines::cuda;
use crate::zoo::Table;

/// The network of a key table with hashed weights.
pub struct Hashed(pub ModelConfig);

impl WeightSource for Hashed {
    fn origin(&self) -> &Path {
        Path::new("hash")
    }

    fn read(&self, name: &str) -> Result<Vec<f32>> {
        let spec = specs(&self.0).into_iter().find(|s| s.name == name);
        let shape = spec.ok_or_else(|| Error::Runtime(format!("no parameter {name}")))?.shape;
        Ok(hashed(name, &shape))
    }
}

/// The small flow-matching U-Net++ of the key table a4, at 64 pixels.
pub fn small_unetpp() -> Hashed {
    Hashed(Table::open("a4_unetpp_flow").with("image_size", json!(64)).read())
}

/// `n` numbers of the golden input `name`.
pub fn input(name: &str, n: usize) -> Vec<f32> {
    hash_uniform(&format!("input.{name}"), n).map(|s| (1.5 * s) as f32).collect()
}

/// What a model says of images [B, C, H, W], each at its own time.
pub fn velocities(model: &Model, x: &[f32], times: &[f64]) -> Vec<f32> {
    let (device, c) = (&model.device, &model.config);
    let conditions = model.conditions(times, &[0]).unwrap();
    let shape = [1, c.in_channels, c.image_size, c.image_size];
    let row = Tensor::from_u32(device, &[1], &[0]).unwrap();
    let mut acts = model.acts(1).unwrap();
    let mut all = Vec::new();
    for (i, x) in x.chunks_exact(shape.iter().product()).enumerate() {
        let x = Tensor::from_f32(device, DType::F32, &shape, x).unwrap();
        let counter = Tensor::from_u32(device, &[1], &[i as u32]).unwrap();
        let inputs = Inputs { x: &x, conditions: &conditions, counter: &counter, rows: &row };
        device.run(|| model.forward(inputs, &mut acts, &mut |_, _| {})).unwrap();
        all.extend(acts.output.to_f32(device).unwrap());
    }
    all
}

#[test]
fn a_flow_unetpp_follows_the_golden_trajectory() {
    let golden = Golden::open("g_conv_hash/unetpp_flow.safetensors");
    let source = small_unetpp();
    let x = input("x", 2 * 64 * 64);
    let close = |name: &str, got: &[f32]| {
        let error = relative_error(got, &golden.f32(name));
        println!("{name}: {error:.2e}");
        assert!(error <= golden.bound(name, 1e-4), "{name}: {error:.2e}");
    };
    let model = Model::load(source.0.clone(), &source, &cpu(), DType::F32).unwrap();
    assert_eq!(model.config.sampling_problem(), None);
    close("out.v", &velocities(&model, &x, &[0.3, 0.85].map(|t: f32| f64::from(t))));
    for (name, steps, convention) in
        [("out.euler10", 10, TimeConvention::Train), ("out.euler20_notebook", 20, TimeConvention::Notebook)]
    {
        let schedule = Schedule::new(Solver::Euler, steps, convention).unwrap();
        let options = SamplerOptions { guidance: 1.0, clamp: false };
        let drawn = |batch: usize| {
            let mut sampler = Sampler::new(&model, &schedule, batch, options).unwrap();
            let images = x.chunks_exact(batch * 64 * 64).flat_map(|x| {
                sampler.set_noise(x).unwrap();
                sampler.run(&[]).unwrap();
                sampler.state().unwrap()
            });
            images.collect::<Vec<f32>>()
        };
        let two = drawn(2);
        close(name, &two);
        assert!(drawn(1) == two, "an image depends on its batch");
    }
    let want = golden.f32("out.v");
    for dtype in [DType::BF16, DType::F16] {
        let error = |device| {
            let model = Model::load(source.0.clone(), &source, &device, dtype).unwrap();
            rms_error(&velocities(&model, &x, &[0.3, 0.85].map(|t: f32| f64::from(t))), &want)
        };
        let [ours, yardstick] = [cpu(), rounding_cpu()].map(error);
        println!("{dtype}: RMS error {ours:.2e}, rounding gives {yardstick:.2e}");
        assert!(ours <= 2.0 * yardstick);
    }
}

/// Writes the small U-Net++ as `w.safetensors`, with the notebooks' names, for images of `side` pixels a side, and two such of noise
/// as `x.npy`: at 64 the golden's.
pub fn write_small_unetpp(desk: &Desk, side: usize) {
    let source = small_unetpp();
    let named = specs(&source.0).into_iter().map(|spec| {
        let prefix = if spec.name.starts_with("time_") { "unet." } else { "unet.unet." };
        (format!("{prefix}{}", spec.name), source.read(&spec.name).unwrap(), spec.shape)
    });
    let named: Vec<_> = named.collect();
    let tensors = named.iter().map(|(name, values, shape)| TensorBytes::from_f32(&**name, shape, values));
    let metadata = [("config".to_string(), json!({ "image_size": side }).to_string())].into_iter().collect();
    write_safetensors(desk.path("w.safetensors"), tensors, &metadata).unwrap();
    write_npy_f32(desk.path("x.npy"), &[2, 1, side, side], &input("x", 2 * side * side)).unwrap();
}

/// A checkpoint as the command line meets it.
#[test]
fn an_imported_unetpp_is_sampled_by_the_command_line() {
    let (golden, desk) = (Golden::open("g_conv_hash/unetpp_flow.safetensors"), Desk::new());
    write_small_unetpp(&desk, 64);
    desk.ok("convert w.safetensors ours");
    for model in ["w.safetensors", "ours"] {
        let end = desk.ok(&format!(
            "sample --model {model} --noise x.npy --steps 10 --no-clamp --device cpu --dtype f32 --threads 2 --out {model}.npy"
        ));
        let (shape, images) = desk.images(&format!("{model}.npy"));
        assert_eq!(shape, [2, 1, 64, 64]);
        let error = relative_error(&images, &golden.f32("out.euler10"));
        assert!(error <= golden.bound("out.euler10", 1e-4), "{error:.2e}: {}", end.stderr);
    }
    let recipe = desk.recipe("ours.json");
    assert_eq!(recipe["model"]["architecture"], "flow_unetpp");
}

/// BatchNorm's variance cannot be negative.
#[test]
fn what_a_unetpp_cannot_be_loaded_from_is_refused() {
    struct Negative(Hashed);
    impl WeightSource for Negative {
        fn origin(&self) -> &Path {
            self.0.origin()
        }
        fn read(&self, name: &str) -> Result<Vec<f32>> {
            let mut values = self.0.read(name)?;
            if name == "encoder.layer2.0.bn1.running_var" {
                values[3] = -0.5;
            }
            Ok(values)
        }
    }
    let source = Negative(small_unetpp());
    let error = Model::load(small_unetpp().0, &source, &cpu(), DType::F32).err().expect("refused").to_string();
    assert!(error.contains("encoder.layer2.0.bn1.running_var: element 3 is -0.5"), "{error}");
}

/// A U-Net of diffusers at the golden times, with both ways of halving and of ordering the time's sines.
#[test]
fn unets_of_diffusers_match_pytorch() {
    let table = Table::open("a5_unet2d");
    let other = table.with("downsample_padding", json!(0)).with("flip_sin_to_cos", json!(false));
    for (name, table) in [("unet2d", &table), ("unet2d_padding0", &other.with("freq_shift", json!(1)))] {
        let golden = Golden::open(&format!("g_conv_hash/{name}.safetensors"));
        let source = Hashed(table.read());
        let x = input("x", 2 * 16 * 16);
        let run = |device, dtype| {
            let model = Model::load(source.0.clone(), &source, &device, dtype).unwrap();
            velocities(&model, &x, &[17.0, 803.0])
        };
        let want = golden.f32("out.eps");
        let error = relative_error(&run(cpu(), DType::F32), &want);
        println!("{name}: {error:.2e}");
        assert!(error <= golden.bound("out.eps", 1e-4), "{name}: {error:.2e}");
        let [ours, yardstick] = [cpu(), rounding_cpu()].map(|device| rms_error(&run(device, DType::BF16), &want));
        println!("bf16: RMS error {ours:.2e}, rounding gives {yardstick:.2e}");
        assert!(ours <= 2.0 * yardstick);
    }
    // Sampled like any other, by DDIM as it comes, or as a velocity model if it was trained to be one.
    assert_eq!(table.read().sampling_problem(), None);
    let source = Hashed(table.with("prediction", json!("velocity")).read());
    let model = Model::load(source.0.clone(), &source, &cpu(), DType::F32).unwrap();
    let schedule = Schedule::new(Solver::Euler, 3, TimeConvention::Train).unwrap();
    let drawn = |batch: usize| {
        let mut sampler =
            Sampler::new(&model, &schedule, batch, SamplerOptions { guidance: 1.0, clamp: false }).unwrap();
        let images = (0..2 / batch).flat_map(|i| {
            sampler.draw_noise(5, (i * batch) as u64).unwrap();
            sampler.run(&[]).unwrap();
            sampler.state().unwrap()
        });
        images.collect::<Vec<f32>>()
    };
    assert!(drawn(1) == drawn(2), "an image depends on its batch");
}

/// A U-Net that attends to a context, with its weights hashed.
fn context_unet(source: &Hashed, device: &Device, dtype: DType) -> ContextUnet {
    let NetworkConfig::Unet2d(unet) = &source.0.network else { panic!("another network") };
    ContextUnet::load(&source.0, unet, source, device, dtype).unwrap()
}

/// A golden of a network that attends to a context.
pub struct ContextGolden {
    pub name: &'static str,
    pub source: Hashed,
    size: [usize; 2],
    context: [usize; 2],
    times: [f64; 2],
}

/// Projections as convolutions and as layers, one transformer block and two, and images that are not square.
pub fn context_goldens() -> [ContextGolden; 2] {
    [
        ("unet2d_condition", "a5_unet2d_condition", [16, 16], [5, 24], [3.0, 640.0]),
        ("unet2d_condition_linear", "unet2d_condition_linear", [12, 20], [3, 20], [0.0, 999.0]),
    ]
    .map(|(name, table, size, context, times)| {
        let source = Hashed(Table::open(table).read());
        ContextGolden { name, source, size, context, times }
    })
}

impl ContextGolden {
    /// What the network predicts of these of the two images.
    pub fn predicted(&self, device: &Device, dtype: DType, images: std::ops::Range<usize>) -> Vec<f32> {
        let Self { source, size: [height, width], context: [tokens, dim], .. } = self;
        let (unet, n) = (context_unet(source, device, dtype), images.len());
        let part = |name: &str, shape: [usize; 3]| {
            let each = shape.iter().product::<usize>();
            let all = input(name, 2 * each);
            (all[images.start * each..images.end * each].to_vec(), shape)
        };
        let (x, [c, h, w]) = part("x", [4, *height, *width]);
        let x = Tensor::from_f32(device, DType::F32, &[n, c, h, w], &x).unwrap();
        let (context, [_, tokens, dim]) = part("ctx", [1, *tokens, *dim]);
        let context = Tensor::from_f32(device, DType::F32, &[n, tokens, dim], &context).unwrap();
        let y = device.run(|| unet.predict(&x, &self.times[images.clone()], &context)).unwrap();
        assert_eq!(y.shape(), x.shape());
        y.to_f32(device).unwrap()
    }

    pub fn golden(&self) -> Golden {
        Golden::open(&format!("g_conv_hash/{}.safetensors", self.name))
    }
}

#[test]
fn unets_that_attend_to_a_context_match_pytorch() {
    for case in context_goldens() {
        let (golden, name) = (case.golden(), case.name);
        let want = golden.f32("out.eps");
        let both = case.predicted(&cpu(), DType::F32, 0..2);
        let error = relative_error(&both, &want);
        println!("{name}: {error:.2e}");
        assert!(error <= golden.bound("out.eps", 1e-4), "{name}: {error:.2e}");
        let second = case.predicted(&cpu(), DType::F32, 1..2);
        assert!(both[both.len() / 2..] == second, "an image depends on its batch");
        let [ours, yardstick] =
            [cpu(), rounding_cpu()].map(|device| rms_error(&case.predicted(&device, DType::BF16, 0..2), &want));
        println!("bf16: RMS error {ours:.2e}, rounding gives {yardstick:.2e}");
        assert!(ours <= 2.0 * yardstick);
    }
}

/// Other channels, sides that do not halve evenly, and times or contexts that do not belong to the images.
#[test]
fn what_a_context_unet_cannot_take_is_refused() {
    let (device, source) = (cpu(), Hashed(Table::open("a5_unet2d_condition").read()));
    let unet = context_unet(&source, &device, DType::F32);
    let zeros = |shape: &[usize]| Tensor::zeros(&device, DType::F32, shape).unwrap();
    let refused = |x: &[usize], times: &[f64], context: &[usize], part: &str| {
        let error = unet.predict(&zeros(x), times, &zeros(context)).err().expect("refused");
        assert!(matches!(error, Error::Usage(_)) && error.to_string().contains(part), "{error}");
    };
    let (x, context) = ([1, 4, 16, 16], [1, 5, 24]);
    refused(&[1, 3, 16, 16], &[1.0], &context, "3 channels, images of 4 channels expected");
    refused(&[4, 16, 16], &[1.0], &context, "images are [4, 16, 16]");
    refused(&[1, 4, 16, 13], &[1.0], &context, "12 or 14 would fit");
    refused(&[1, 4, 0, 16], &[1.0], &context, "2 would fit");
    refused(&x, &[1.0, 2.0], &context, "2 times for 1 images");
    refused(&x, &[1.0], &[2, 5, 24], "context is [2, 5, 24], [1, tokens, 24] expected");
    refused(&x, &[1.0], &[1, 5, 23], "context is [1, 5, 23]");
    refused(&x, &[1.0], &[1, 0, 24], "context is [1, 0, 24]");
    // Without a context there is nothing to attend to; and heads of 1280 / 8 channels are too large.
    for (name, part) in [("a5_unet2d", "cross-attention expected"), ("unet2d_condition_sd15", "heads of 160 channels")]
    {
        let source = Hashed(Table::open(name).read());
        let NetworkConfig::Unet2d(unet) = &source.0.network else { panic!("another network") };
        for device in [cpu(), cuda()] {
            let error = ContextUnet::load(&source.0, unet, &source, &device, DType::F32).err().expect("refused");
            assert_eq!(error.exit_code(), 3);
            assert!(error.to_string().contains(part), "{error}");
        }
    }
}

/// The names of the golden outputs of the small auto-encoder, and what comes of the golden inputs: the two halves of what the
/// encoder gives, and decoded images.
pub fn autoencoded(device: &Device, dtype: DType) -> [(&'static str, Vec<f32>); 3] {
    let source = Hashed(Table::open("a5_autoencoder_kl").read());
    let NetworkConfig::AutoencoderKl(vae) = &source.0.network else { panic!("another network") };
    let vae = Autoencoder::load(&source.0, vae, &source, device, dtype).unwrap();
    let tensor = |name: &str, shape: &[usize]| {
        Tensor::from_f32(device, DType::F32, shape, &input(name, shape.iter().product())).unwrap()
    };
    let (x, z) = (tensor("x", &[2, 3, 32, 32]), tensor("z", &[2, 4, 16, 16]));
    let latents = device.run(|| vae.encode(&x)).unwrap();
    assert_eq!(latents.shape(), [2, 8, 16, 16]);
    let both = latents.to_f32(device).unwrap();
    let half = |which: usize| -> Vec<f32> {
        both.chunks_exact(4 * 256).enumerate().filter(|(i, _)| i % 2 == which).flat_map(|(_, v)| v.to_vec()).collect()
    };
    let images = device.run(|| vae.decode(&z)).unwrap();
    assert_eq!(images.shape(), [2, 3, 32, 32]);
    [("out.mean", half(0)), ("out.logvar", half(1)), ("out.decoded", images.to_f32(device).unwrap())]
}

#[test]
fn an_autoencoder_matches_pytorch() {
    let golden = Golden::open("g_conv_hash/autoencoder_kl.safetensors");
    let device = cpu();
    for (name, got) in autoencoded(&device, DType::F32) {
        let error = relative_error(&got, &golden.f32(name));
        println!("{name}: {error:.2e}");
        assert!(error <= golden.bound(name, 1e-4), "{name}: {error:.2e}");
    }
    // The published auto-encoders have one head as wide as their channels.
    let wide = Hashed(Table::open("autoencoder_kl_sd").read());
    let NetworkConfig::AutoencoderKl(sizes) = &wide.0.network else { panic!("another network") };
    let error = Autoencoder::load(&wide.0, sizes, &wide, &device, DType::F32).err().expect("refused");
    assert_eq!(error.exit_code(), 3);
    assert!(error.to_string().contains("heads of 512 channels, at most 128"), "{error}");
}
