//! A training step of the auto-encoder: loss and every gradient against PyTorch in f64 (`g_conv_hash/autoencoder_kl_step`), and
//! of a larger one the slope of the loss against finite differences.

use arclet::device::Device;
use arclet::models::autoencoder_kl::VaeConfig;
use arclet::models::builtin::{hash_uniform, hashed};
use arclet::models::config::{ModelConfig, NetworkConfig};
use arclet::models::specs;
use arclet::models::training::Params;
use arclet::models::training::vae::{VaeExamples, VaeStep};
use arclet::models::training::work::{Given, Work};
use arclet::nn::training::Keeping;
use arclet::tensor::DType;

use crate::common::{Golden, cpu, relative_error};
use crate::conv_models::input;
use crate::engines::cuda;

const BATCH: usize = 2;

/// A network without attention, of images of one channel.
pub fn network(size: usize, vae: VaeConfig) -> ModelConfig {
    let base = arclet::models::builtin::find("nanodit").expect("a built-in model").config().clone();
    ModelConfig { image_size: size, classes: None, network: NetworkConfig::AutoencoderKl(vae), ..base }
}

/// That of the golden step.
pub fn small() -> VaeConfig {
    VaeConfig {
        channels: vec![4, 8],
        layers_per_block: 1,
        latent_channels: 2,
        mid_attention: false,
        quant_conv: true,
        post_quant_conv: true,
        norm_groups: 2,
        scaling_factor: None,
        shift_factor: 0.0,
    }
}

fn params(config: &ModelConfig, device: &Device, dtype: DType) -> Params {
    let mut params = Params::zeros(config, device, dtype).unwrap();
    let shape = |name: &str| specs(config).into_iter().find(|spec| spec.name == name).expect("a parameter").shape;
    params.write(device, &mut |name| Ok(hashed(name, &shape(name)))).unwrap();
    params
}

/// The loss, and the gradients by name after `times` passes of scale 1 / `times`.
fn gradients(config: &ModelConfig, dtype: DType, times: usize) -> (f64, Vec<(String, Vec<f32>)>) {
    let device = cpu();
    let params = params(config, &device, dtype);
    let mut grads = Params::zeros(config, &device, dtype.wide()).unwrap();
    let mut work = Work::new(config, &params, &device, BATCH, Keeping::default()).unwrap();
    let (images, noise) = (input("x", BATCH * config.image_size.pow(2)), input("noise", BATCH * 8 * 8 * 2));
    let examples = VaeExamples { images: &images, noise: &noise, kl_weight: 0.1 };
    for _ in 0..times {
        work.set(Given::Vae(examples), 1.0 / times as f64).unwrap();
        device
            .run(|| {
                work.forward(&params, || false)?;
                work.backward(&params, &mut grads, || false)
            })
            .unwrap();
    }
    let loss = work.loss().unwrap();
    let losses = work.losses().unwrap();
    assert!((losses.iter().sum::<f64>() / BATCH as f64 - loss).abs() < 1e-6 * loss, "the mean of the images' losses");
    let grads = grads.read(config, &device).unwrap();
    (loss, grads.into_iter().map(|(spec, values)| (spec.name, values)).collect())
}

#[test]
fn a_training_step_of_the_autoencoder_is_pytorchs() {
    let golden = Golden::open("g_conv_hash/autoencoder_kl_step.safetensors");
    let config = network(16, small());
    let want = f64::from(golden.f32("loss")[0]);
    for (dtype, bound) in [(DType::F64, 1e-6), (DType::F32, 1e-4)] {
        let (loss, grads) = gradients(&config, dtype, 1);
        assert!((loss - want).abs() <= bound * want, "loss {loss}, {want} expected");
        assert_eq!(grads.len() + 1, golden.names().len());
        for (name, got) in &grads {
            let error = relative_error(got, &golden.f32(&format!("grad.{name}")));
            assert!(error <= bound, "gradient of {name} in {dtype}: relative error {error:.2e}");
        }
    }
    let (_, once) = gradients(&config, DType::F32, 1);
    let (_, halves) = gradients(&config, DType::F32, 2);
    for ((name, once), (_, halves)) in once.iter().zip(&halves) {
        let error = relative_error(halves, once);
        assert!(error <= 1e-5, "gradient of {name}: two halves are off by {error:.2e}");
    }
}

/// Three levels of two blocks, no convolutions around the latents.
#[test]
fn the_slope_of_the_autoencoders_loss_is_its_gradient() {
    let sizes = VaeConfig { channels: vec![4, 6, 8], layers_per_block: 2, quant_conv: false, ..small() };
    let config = network(12, VaeConfig { post_quant_conv: false, latent_channels: 3, ..sizes });
    let device = cpu();
    let (images, noise) = (input("x", BATCH * 12 * 12), input("noise", BATCH * 3 * 3 * 3));
    let examples = VaeExamples { images: &images, noise: &noise, kl_weight: 0.3 };
    let direction = |name: &str, n: usize| hash_uniform(&format!("direction.{name}"), n).collect::<Vec<f64>>();
    let moved = |by: f64| {
        let mut params = params(&config, &device, DType::F64);
        for named in params.tensors_mut() {
            let mut values = named.tensor.to_f64(&device).unwrap();
            let step = direction(&named.name, values.len());
            values.iter_mut().zip(step).for_each(|(value, step)| *value += by * step);
            named.tensor.write_f64(&device, &values).unwrap();
        }
        params
    };
    let run = |params: &Params| {
        let Params::Vae(vae) = params else { panic!("another model") };
        let mut step = VaeStep::new(&config, vae, &device, BATCH).unwrap();
        step.set(&examples, 1.0).unwrap();
        device.run(|| step.forward(vae, || false)).unwrap();
        step
    };
    let (at, mut grads) = (moved(0.0), Params::zeros(&config, &device, DType::F64).unwrap());
    let mut step = run(&at);
    let (Params::Vae(vae), Params::Vae(to)) = (&at, &mut grads) else { panic!("another model") };
    device.run(|| step.backward(vae, to, || false)).unwrap();
    let slope: f64 = (grads.tensors().iter())
        .flat_map(|named| {
            let grad = named.tensor.to_f64(&device).unwrap();
            let step = direction(&named.name, grad.len());
            grad.into_iter().zip(step).map(|(grad, step)| grad * step).collect::<Vec<f64>>()
        })
        .sum();
    let [above, below] = [1e-5, -1e-5].map(|by| run(&moved(by)).loss().unwrap());
    let difference = (above - below) / 2e-5;
    assert!((slope - difference).abs() < 1e-6 * difference.abs(), "{slope}, {difference} by differences");
}

#[test]
fn an_autoencoder_that_cannot_be_trained_is_refused() {
    let attends = network(16, VaeConfig { mid_attention: true, ..small() });
    let error = Params::zeros(&attends, &cpu(), DType::F32).err().expect("a refusal");
    assert!(error.exit_code() == 2 && error.to_string().contains("mid_block_add_attention"), "{error}");
    let error = Params::zeros(&network(16, small()), &cuda(), DType::F32).err().expect("a refusal");
    assert!(error.exit_code() == 2 && error.to_string().contains("--device cpu"), "{error}");
}
