//! What is drawn with parameters: guidance, batches, and values that cannot be.

use arclet::device::Device;
use arclet::flow::sampler::{Sampler, SamplerOptions};
use arclet::flow::schedule::{Schedule, Solver, TimeConvention};
use arclet::models::Model;
use arclet::models::builtin::hash_uniform;
use arclet::tensor::DType;

use super::{model, weights};
use crate::common::{cpu, relative_error};
use crate::engines::cuda;

fn load(device: &Device, classes: bool) -> Model {
    let config = model(classes);
    Model::load(config.clone(), &weights(&config), device, DType::F32).unwrap()
}

/// Two images after one Euler step over all of the path, which is linear in the velocity.
fn draw(model: &Model, classes: &[usize], guidance: f32, parameters: Option<&[f64]>) -> Vec<f32> {
    let schedule = Schedule::new(Solver::Euler, 1, TimeConvention::Train).unwrap();
    let options = SamplerOptions { guidance, clamp: false };
    let mut sampler = match parameters {
        None => Sampler::new(model, &schedule, 2, options).unwrap(),
        Some(values) => Sampler::with_parameters(model, &schedule, 2, options, values).unwrap(),
    };
    let noise: Vec<f32> = hash_uniform("noise", 2 * 64).map(|u| u as f32).collect();
    sampler.set_noise(&noise).unwrap();
    sampler.run(classes).unwrap();
    sampler.state().unwrap()
}

/// a + g (b - a).
fn toward(a: &[f32], b: &[f32], g: f32) -> Vec<f32> {
    a.iter().zip(b).map(|(a, b)| a + g * (b - a)).collect()
}

#[test]
fn guidance_leads_away_from_images_without_class_and_parameters() {
    for device in [cpu(), cuda()] {
        let values = [3e-23, 0.15];
        let plain = load(&device, false);
        let (without, with) = (draw(&plain, &[], 1.0, None), draw(&plain, &[], 1.0, Some(&values)));
        assert!(relative_error(&with, &without) > 1e-3, "parameters have an effect");
        let error = relative_error(&draw(&plain, &[], 3.0, Some(&values)), &toward(&without, &with, 3.0));
        assert!(error < 1e-5, "without classes: {error}");

        // What guidance leads away from is the same whatever is asked for, and not what a class alone gives.
        let classes = load(&device, true);
        let away = |asked: &[usize], values: &[f64]| {
            let (one, three) = (draw(&classes, asked, 1.0, Some(values)), draw(&classes, asked, 3.0, Some(values)));
            toward(&one, &three, -0.5)
        };
        let nothing = away(&[0, 2], &values);
        assert!(relative_error(&nothing, &away(&[1, 1], &[2e-24, -0.3])) < 1e-5);
        assert!(relative_error(&nothing, &draw(&classes, &[0, 2], 1.0, None)) > 1e-3);
    }
}

/// Images of several classes share the parameters of the run; an image does not see the others.
#[test]
fn an_image_depends_on_its_own_class_and_the_parameters() {
    let model = load(&cpu(), true);
    let values = [3e-23, 0.15];
    for guidance in [1.0, 2.0] {
        let first = |classes: &[usize], values: &[f64]| draw(&model, classes, guidance, Some(values))[..64].to_vec();
        assert_eq!(first(&[1, 0], &values), first(&[1, 2], &values));
        assert_eq!(first(&[1, 0], &values), first(&[1, 1], &values));
        assert_ne!(first(&[1, 0], &values), first(&[0, 0], &values));
        assert_ne!(first(&[1, 0], &values), first(&[1, 0], &[3e-23, 0.16]));
    }
}

#[test]
fn values_that_cannot_be_are_usage_errors() {
    let (taking, schedule) = (load(&cpu(), false), Schedule::new(Solver::Euler, 1, TimeConvention::Train).unwrap());
    let refused = |values: &[f64], part: &str| {
        let options = SamplerOptions { guidance: 1.0, clamp: false };
        let error = Sampler::with_parameters(&taking, &schedule, 1, options, values).err().expect("a usage error");
        assert_eq!(error.exit_code(), 2, "{error}");
        assert!(error.to_string().contains(part), "{error}");
    };
    refused(&[1e-23], "1 values given for 2 parameters");
    refused(&[-1e-23, 0.0], "mass is -1e-23, a positive number");
    refused(&[1e-23, 1e4], "x is 10000.0");
    refused(&[1e-23, f64::INFINITY], "x is inf");
    let options = SamplerOptions { guidance: 2.0, clamp: false };
    let error = Sampler::new(&taking, &schedule, 1, options).err().expect("nothing to be guided to");
    assert_eq!(error.exit_code(), 2, "{error}");
}
