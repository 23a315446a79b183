//! A training step: gradients against finite differences and on the GPU, and the forward pass against that of sampling.

use arclet::device::Device;
use arclet::models::builtin::hash_uniform;
use arclet::models::config::ModelConfig;
use arclet::models::training::{Examples, Params, Step};
use arclet::models::{Condition, Inputs, Model};
use arclet::nn::no_tap;
use arclet::nn::training::Keeping;
use arclet::tensor::{DType, Tensor};

use super::{model, weight, weights};
use crate::common::{cpu, relative_error};
use crate::engines::cuda;

/// Three images: of a class with parameters, of one without, and of none with parameters.
struct Batch {
    x: Vec<f32>,
    target: Vec<f32>,
    times: Vec<f64>,
    labels: Vec<u32>,
    parameters: Vec<f32>,
    given: Vec<bool>,
}

impl Batch {
    fn new() -> Self {
        let pixels = |key: &str| hash_uniform(key, 3 * 64).map(|u| u as f32).collect();
        let (x, target) = (pixels("x"), pixels("target"));
        let parameters = vec![0.8, -1.3, 0.4, 0.2, -0.6, 1.1];
        Self {
            x,
            target,
            times: vec![0.2, 0.5, 0.9],
            labels: vec![2, 0, 3],
            parameters,
            given: vec![true, false, true],
        }
    }

    fn examples(&self) -> Examples<'_> {
        Examples {
            x: &self.x,
            target: &self.target,
            times: &self.times,
            labels: &self.labels,
            parameters: &self.parameters,
            given: &self.given,
        }
    }
}

/// A model in training.
struct Bench {
    config: ModelConfig,
    device: Device,
    params: Params,
    step: Step,
}

impl Bench {
    fn new(device: Device, dtype: DType, batch: &Batch) -> Self {
        let config = model(true);
        let mut params = Params::zeros(&config, &device, dtype).unwrap();
        params.write(&device, &mut |name| Ok(weight(&config, name))).unwrap();
        let mut step = Step::new(&config, &params, &device, 3, Keeping::default()).unwrap();
        step.set(&batch.examples(), 1.0).unwrap();
        Self { config, device, params, step }
    }

    fn loss(&mut self) -> f64 {
        self.device.run(|| self.step.forward(&self.params, || false)).unwrap();
        self.step.loss().unwrap()
    }

    /// All gradients by name.
    fn gradients(&mut self) -> Vec<(String, Vec<f64>)> {
        let dtype = self.params.tensors()[0].tensor.dtype().wide();
        let mut grads = Params::zeros(&self.config, &self.device, dtype).unwrap();
        self.loss();
        self.device.run(|| self.step.backward(&self.params, &mut grads, || false)).unwrap();
        grads.tensors().iter().map(|n| (n.name.clone(), n.tensor.to_f64(&self.device).unwrap())).collect()
    }

    /// The loss with element `at` of a parameter moved.
    fn moved(&mut self, name: &str, at: usize, by: f64) -> f64 {
        let (device, named) = (&self.device, self.params.tensors_mut().into_iter().find(|n| n.name == name).unwrap());
        let before = named.tensor.to_f64(device).unwrap();
        let mut after = before.clone();
        after[at] += by;
        named.tensor.write_f64(device, &after).unwrap();
        let loss = self.loss();
        let named = self.params.tensors_mut().into_iter().find(|n| n.name == name).unwrap();
        named.tensor.write_f64(&self.device, &before).unwrap();
        loss
    }
}

/// Of the layers that embed parameters, and of what they share their place with.
#[test]
fn gradients_are_finite_differences() {
    let mut bench = Bench::new(cpu(), DType::F64, &Batch::new());
    let all = bench.gradients();
    let named = |name: &str| &all.iter().find(|(n, _)| n == name).unwrap_or_else(|| panic!("no {name}")).1;
    let layers = ["param_embed.0.weight", "param_embed.0.bias", "param_embed.2.weight", "param_embed.2.bias"];
    for name in layers.into_iter().chain(["y_embedder.embedding_table.weight", "t_embedder.mlp.2.bias"]) {
        let gradient = named(name);
        let largest = gradient.iter().fold(0f64, |m, g| m.max(g.abs()));
        assert!(largest > 1e-6, "{name}: nothing to compare");
        for at in (0..gradient.len()).step_by(gradient.len().div_ceil(40)) {
            let h = 1e-4;
            let difference = (bench.moved(name, at, h) - bench.moved(name, at, -h)) / (2.0 * h);
            let error = (difference - gradient[at]).abs() / largest;
            assert!(error < 1e-6, "{name}[{at}]: {} by backward, {difference} by differences", gradient[at]);
        }
    }
}

#[test]
fn f32_and_the_gpu_have_the_gradients_of_f64() {
    let want = Bench::new(cpu(), DType::F64, &Batch::new()).gradients();
    for device in [cpu(), cuda()] {
        for ((name, got), (_, want)) in
            Bench::new(device.clone(), DType::F32, &Batch::new()).gradients().iter().zip(&want)
        {
            let narrow = |values: &[f64]| values.iter().map(|&v| v as f32).collect::<Vec<_>>();
            if want.iter().any(|&v| v != 0.0) {
                let error = relative_error(&narrow(got), &narrow(want));
                assert!(error <= 1e-4, "{name} on {}: relative error {error:.2e}", device.name());
            }
        }
    }
}

/// Whatever stands where parameters were dropped, nothing of it reaches loss and gradients.
#[test]
fn dropped_parameters_are_without_effect() {
    for device in [cpu(), cuda()] {
        let all = |batch: &Batch| {
            let mut bench = Bench::new(device.clone(), DType::F32, batch);
            (bench.gradients(), bench.loss())
        };
        let (batch, mut dropped, mut kept) = (Batch::new(), Batch::new(), Batch::new());
        (dropped.parameters[2], kept.parameters[0]) = (-0.9, -0.9);
        assert!(all(&batch) == all(&dropped));
        assert!(all(&batch).1 != all(&kept).1);
    }
}

/// The model that is drawn from computes what was trained: image by image, with and without parameters.
#[test]
fn sampling_and_training_are_one_model() {
    let mut batch = Batch::new();
    batch.target.fill(0.0);
    // mass and x of the normalised numbers; all images share those of a run.
    let (mass, x) = (10f64.powf(-23.0 + 0.5 * 0.75), 0.2 * -1.25);
    batch.parameters = [0.75, -1.25].repeat(3);
    for (device, dtype, bound) in [(cpu(), DType::F64, 1e-6), (cpu(), DType::F32, 1e-5), (cuda(), DType::F32, 1e-5)] {
        let mut bench = Bench::new(device.clone(), dtype, &batch);
        bench.loss();
        let want = bench.step.losses().unwrap();
        let model = Model::load(bench.config.clone(), &weights(&bench.config), &device, dtype).unwrap();
        let wanted: Vec<Condition> = (batch.labels.iter().zip(&batch.given))
            .map(|(&label, &parameters)| Condition { label, parameters })
            .collect();
        let conditions = model.conditions_of(&batch.times, &wanted, Some(&[mass, x])).unwrap();
        let mut acts = model.acts(1).unwrap();
        for (image, want) in want.iter().enumerate() {
            let pixels = &batch.x[64 * image..][..64];
            let x = Tensor::from_f32(&device, dtype.wide(), &[1, 1, 8, 8], pixels).unwrap();
            let [counter, rows] = [0; 2].map(|_| Tensor::from_u32(&device, &[1], &[image as u32]).unwrap());
            let inputs = Inputs { x: &x, conditions: &conditions, counter: &counter, rows: &rows };
            device.run(|| model.forward(inputs, &mut acts, &mut no_tap)).unwrap();
            let velocity = acts.output.to_f64(&device).unwrap();
            let loss = velocity.iter().map(|v| v * v).sum::<f64>() / 64.0;
            let error = (loss / want - 1.0).abs();
            assert!(error < bound, "image {image} in {dtype}: {loss} drawn, {want} trained");
        }
    }
}
