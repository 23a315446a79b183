//! Networks that look at images, against timm in f64. Their weights are a hash of their names.

use std::path::Path;

use arclet::device::Device;
use arclet::error::{Error, Result};
use arclet::models::builtin::hash_uniform;
use arclet::models::config::{ModelConfig, NetworkConfig};
use arclet::models::convnextv2::forward::ConvNextV2;
use arclet::models::efficientnet::forward::EfficientNet;
use arclet::models::resnet::classifier::ResNet;
use arclet::models::specs;
use arclet::nn::no_tap;
use arclet::nn::params::WeightSource;
use arclet::tensor::{DType, Tensor};

use crate::common::{Golden, cpu, relative_error, rms_error, rounding_cpu};
use crate::conv_models::{Hashed, input};
use crate::zoo::Table;

/// The golden input of a full-size network: [1, 3, side, side].
fn image(golden: &Golden, side: usize) -> Tensor {
    let x: Vec<f32> = hash_uniform("input.x", 3 * side * side).map(|s| (1.5 * s) as f32).collect();
    assert_eq!(x[..8], golden.f32("in.x_first8"));
    Tensor::from_f32(&cpu(), DType::F32, &[1, 3, side, side], &x).unwrap()
}

fn rms(values: &[f32]) -> f32 {
    (values.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>() / values.len() as f64).sqrt() as f32
}

/// Compares a full-size network with its golden: `logits` computes them on a device, and hands what its taps see on.
/// `inner` are names of taps and of the goldens of their RMS.
fn full_size(
    golden: &Golden,
    inner: &[(&str, &str)],
    logits: impl Fn(&Device, DType, &mut (dyn FnMut(&str, &Tensor) + Send)) -> Tensor,
) {
    let want = golden.f32("out");
    let run = |device: Device, dtype| {
        let mut seen = Vec::new();
        let logits = logits(&device, dtype, &mut |name, features| {
            if let Some((_, golden)) = inner.iter().find(|(tap, _)| *tap == name) {
                seen.push((*golden, rms(&features.to_f32(&device).unwrap())));
            }
        });
        (logits.to_f32(&device).unwrap(), seen)
    };
    let (found, seen) = run(cpu(), DType::F32);
    let error = relative_error(&found, &want);
    println!("f32: {error:.2e}");
    assert!(error <= golden.bound("out", 1e-4), "{error:.2e}");
    assert_eq!(seen.len(), inner.len());
    for (name, rms) in seen {
        let wanted = golden.f32(name)[0];
        assert!((rms / wanted - 1.0).abs() < 1e-4, "{name}: {rms} {wanted}");
    }
    // bf16 as this machine multiplies it, against rounding after every operation.
    let [ours, yardstick] = [cpu(), rounding_cpu()].map(|d| rms_error(&run(d, DType::BF16).0, &want));
    println!("bf16: RMS error {ours:.2e}, rounding gives {yardstick:.2e}");
    assert!(ours <= 2.0 * yardstick);
}

pub fn resnet(source: &Hashed, device: &Device, dtype: DType) -> ResNet {
    let NetworkConfig::ResNet(resnet) = &source.0.network else { panic!("another network") };
    ResNet::load(&source.0, resnet, source, device, dtype).unwrap()
}

pub fn convnextv2(source: &Hashed, device: &Device, dtype: DType) -> ConvNextV2 {
    let NetworkConfig::ConvNextV2(convnext) = &source.0.network else { panic!("another network") };
    ConvNextV2::load(&source.0, convnext, source, device, dtype).unwrap()
}

pub fn efficientnet(source: &dyn WeightSource, config: &ModelConfig, device: &Device, dtype: DType) -> EfficientNet {
    let NetworkConfig::EfficientNet(efficientnet) = &config.network else { panic!("another network") };
    EfficientNet::load(config, efficientnet, source, device, dtype).unwrap()
}

#[test]
fn a_full_size_resnet_matches_pytorch() {
    let golden = Golden::open("f_fullsize_hash/timm_resnet34.safetensors");
    let (source, x) = (Hashed(Table::open("timm_resnet34").read()), image(&golden, 224));
    full_size(&golden, &[("enc5", "rms.layer4")], |device, dtype, tap| {
        let resnet = resnet(&source, device, dtype);
        device.run(|| resnet.logits(&x, tap)).unwrap()
    });
}

/// The small published sizes store their feed-forward layers as convolutions.
#[test]
fn a_full_size_convnextv2_matches_pytorch() {
    let golden = Golden::open("f_fullsize_hash/timm_convnextv2_atto.safetensors");
    let (source, x) = (Hashed(Table::open("timm_convnextv2_atto").read()), image(&golden, 224));
    full_size(&golden, &[("stage0", "rms.stages.0"), ("stage3", "rms.stages.3")], |device, dtype, tap| {
        let convnext = convnextv2(&source, device, dtype);
        device.run(|| convnext.logits(&x, tap)).unwrap()
    });
}

/// Hashed weights, those of products and convolutions times a gain.
struct Gained(Hashed, f64);

impl WeightSource for Gained {
    fn origin(&self) -> &Path {
        self.0.origin()
    }

    fn read(&self, name: &str) -> Result<Vec<f32>> {
        let spec = specs(&self.0.0).into_iter().find(|s| s.name == name).expect("a parameter");
        if spec.shape.len() < 2 {
            return self.0.read(name);
        }
        let scale = (3.0 / spec.shape[1..].iter().product::<usize>() as f64).sqrt();
        Ok(hash_uniform(name, spec.shape.iter().product()).map(|s| (s * scale * self.1) as f32).collect())
    }
}

#[test]
fn a_full_size_efficientnet_matches_pytorch() {
    let golden = Golden::open("f_fullsize_hash/timm_efficientnet_b3.safetensors");
    let (source, x) = (Gained(Hashed(Table::open("timm_efficientnet_b3").read()), 1.4), image(&golden, 288));
    full_size(&golden, &[("stage6", "rms.blocks.6")], |device, dtype, tap| {
        let efficientnet = efficientnet(&source, &source.0.0, device, dtype);
        device.run(|| efficientnet.logits(&x, tap)).unwrap()
    });
}

/// Two images whose sides the network does not halve evenly.
pub fn uneven(device: &Device) -> Tensor {
    Tensor::from_f32(device, DType::F32, &[2, 3, 70, 93], &input("x", 2 * 3 * 70 * 93)).unwrap()
}

/// The pixels of features [B, H, W, C] as PyTorch has them, [B, C, H, W].
pub fn channels_first(features: &Tensor, device: &Device) -> Vec<f32> {
    let [batch, height, width, c] = [0, 1, 2, 3].map(|axis| features.dim(axis));
    let (values, pixels) = (features.to_f32(device).unwrap(), height * width);
    let at = |i: usize| (i / (c * pixels) * pixels + i % pixels) * c + i / pixels % c;
    (0..batch * c * pixels).map(|i| values[at(i)]).collect()
}

fn close(golden: &Golden, name: &str, got: &[f32]) {
    let error = relative_error(got, &golden.f32(name));
    println!("{name}: {error:.2e}");
    assert!(error <= golden.bound(name, 1e-4), "{name}: {error:.2e}");
}

#[test]
fn features_of_a_convnextv2_match_pytorch() {
    let golden = Golden::open("g_conv_hash/convnextv2.safetensors");
    let (source, device, x) = (Hashed(Table::open("a6_convnextv2").read()), cpu(), uneven(&cpu()));
    let convnext = convnextv2(&source, &device, DType::F32);
    let features = device.run(|| convnext.features(&x, &mut no_tap)).unwrap();
    assert_eq!(features.shape(), [2, 2, 2, 64]);
    close(&golden, "out.features", &channels_first(&features, &device));
    let logits = device.run(|| convnext.logits(&x, &mut no_tap)).unwrap();
    close(&golden, "out.logits", &logits.to_f32(&device).unwrap());
    // Without a classifier the normed averages are what comes out.
    let mut trunk = source;
    if let NetworkConfig::ConvNextV2(convnext) = &mut trunk.0.network {
        convnext.head_size = 0;
    }
    let convnext = convnextv2(&trunk, &device, DType::F32);
    let averaged = device.run(|| convnext.logits(&x, &mut no_tap)).unwrap();
    close(&golden, "out.pre_logits", &averaged.to_f32(&device).unwrap());
}

#[test]
fn features_of_a_resnet_match_pytorch() {
    let golden = Golden::open("g_conv_hash/resnet.safetensors");
    let (mut source, device, x) = (Hashed(Table::open("a7_resnet").read()), cpu(), uneven(&cpu()));
    let mut features = Vec::new();
    let mut tap = |name: &str, t: &Tensor| {
        if name == "enc5" {
            features = channels_first(t, &device);
        }
    };
    let logits = device.run(|| resnet(&source, &device, DType::F32).logits(&x, &mut tap)).unwrap();
    close(&golden, "out.features", &features);
    close(&golden, "out.logits", &logits.to_f32(&device).unwrap());
    if let NetworkConfig::ResNet(resnet) = &mut source.0.network {
        resnet.head_size = 0;
    }
    let averaged = device.run(|| resnet(&source, &device, DType::F32).logits(&x, &mut no_tap)).unwrap();
    close(&golden, "out.pre_logits", &averaged.to_f32(&device).unwrap());
}

/// Blocks with and without a convolution that widens, with and without what goes around them, kernels of 3 and 5.
#[test]
fn features_of_an_efficientnet_match_pytorch() {
    let golden = Golden::open("g_conv_hash/efficientnet.safetensors");
    let (mut source, device, x) = (Hashed(Table::open("a7_efficientnet").read()), cpu(), uneven(&cpu()));
    let net = efficientnet(&source, &source.0, &device, DType::F32);
    let features = device.run(|| net.features(&x, &mut no_tap)).unwrap();
    assert_eq!(features.shape(), [2, 5, 6, 96]);
    close(&golden, "out.features", &channels_first(&features, &device));
    let logits = device.run(|| net.logits(&x, &mut no_tap)).unwrap();
    close(&golden, "out.logits", &logits.to_f32(&device).unwrap());
    // Without a classifier the averages are what comes out.
    if let NetworkConfig::EfficientNet(efficientnet) = &mut source.0.network {
        efficientnet.head_size = 0;
    }
    let net = efficientnet(&source, &source.0, &device, DType::F32);
    let averaged = device.run(|| net.logits(&x, &mut no_tap)).unwrap();
    close(&golden, "out.pre_logits", &averaged.to_f32(&device).unwrap());
}

/// Images of other channels, too few dimensions, or fewer pixels than the network halves away.
#[test]
fn images_that_a_network_cannot_look_at_are_refused() {
    let device = cpu();
    let convnext = convnextv2(&Hashed(Table::open("a6_convnextv2").read()), &device, DType::F32);
    let resnet = resnet(&Hashed(Table::open("a7_resnet").read()), &device, DType::F32);
    let source = Hashed(Table::open("a7_efficientnet").read());
    let efficientnet = efficientnet(&source, &source.0, &device, DType::F32);
    let images = |shape: &[usize]| Tensor::zeros(&device, DType::F32, shape).unwrap();
    let refused = |result: Result<Tensor>, part: &str| {
        let error = result.err().expect("refused");
        assert!(matches!(error, Error::Usage(_)), "{error}");
        assert!(error.to_string().contains(part), "{error}");
    };
    for (shape, part) in [
        (&[1, 1, 64, 64][..], "images have 1 channels, 3 expected"),
        (&[3, 64, 64], "images are [3, 64, 64], [batch, channels, height, width] expected"),
        (&[1, 3, 64, 0], "at least one of at least"),
        (&[0, 3, 64, 64], "0 images of 64 x 64 pixels"),
    ] {
        refused(convnext.logits(&images(shape), &mut no_tap), part);
        refused(resnet.logits(&images(shape), &mut no_tap), part);
        refused(efficientnet.logits(&images(shape), &mut no_tap), part);
    }
    refused(
        convnext.features(&images(&[1, 3, 64, 31]), &mut no_tap),
        "64 x 31 pixels, at least one of at least 32 x 32",
    );
    assert_eq!(convnext.features(&images(&[1, 3, 35, 32]), &mut no_tap).unwrap().shape(), [1, 1, 1, 64]);
}

/// A file that lacks a parameter names it.
#[test]
fn a_missing_parameter_is_named() {
    struct Without(Hashed, &'static str);
    impl WeightSource for Without {
        fn origin(&self) -> &Path {
            self.0.origin()
        }
        fn read(&self, name: &str) -> Result<Vec<f32>> {
            if name == self.1 { Err(Error::input("file", format!("no {name}"))) } else { self.0.read(name) }
        }
    }

    let source = Without(Hashed(Table::open("a6_convnextv2").read()), "stages.2.blocks.1.mlp.grn.bias");
    let NetworkConfig::ConvNextV2(convnext) = &source.0.0.network else { panic!("another network") };
    let error = ConvNextV2::load(&source.0.0, convnext, &source, &cpu(), DType::F32).err().expect("refused");
    assert!(error.to_string().contains("stages.2.blocks.1.mlp.grn.bias"), "{error}");
}
