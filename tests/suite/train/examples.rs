//! Examples: times of the density that was asked for, classes dropped as often, and nothing that depends on the batch.

use arclet::train::config::{FlowSection, TimeDensity};
use arclet::train::examples::{ExampleRule, HostExamples, Noising};

const MANY: usize = 20_000;

fn rule(flow: FlowSection) -> ExampleRule {
    ExampleRule { seed: 5, flow, noising: Noising::Flow, null: Some(3) }
}

fn draw(rule: &ExampleRule) -> HostExamples {
    rule.examples(&[0.5; MANY], &[1; MANY], 0)
}

/// Mean and deviation.
fn moments(values: &[f64]) -> [f64; 2] {
    let mean = values.iter().sum::<f64>() / values.len() as f64;
    let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / values.len() as f64;
    [mean, variance.sqrt()]
}

/// Four standard errors of the mean of `MANY` numbers of this deviation.
fn near(found: f64, wanted: f64, deviation: f64) {
    assert!((found - wanted).abs() < 4.0 * deviation / (MANY as f64).sqrt(), "{found}, {wanted} expected");
}

#[test]
fn times_have_the_density_that_was_asked_for() {
    let uniform = draw(&rule(FlowSection::default())).times;
    assert!(uniform.iter().all(|t| (0.0..1.0).contains(t)));
    let [mean, deviation] = moments(&uniform);
    near(mean, 0.5, 12f64.sqrt().recip());
    near(deviation, 12f64.sqrt().recip(), 0.13);
    let flow =
        FlowSection { time: TimeDensity::LogitNormal, logit_mean: -0.5, logit_std: 0.8, ..FlowSection::default() };
    let logits: Vec<f64> = draw(&rule(flow)).times.iter().map(|t| (t / (1.0 - t)).ln()).collect();
    let [mean, deviation] = moments(&logits);
    near(mean, -0.5, 0.8);
    near(deviation, 0.8, 0.8 / 2f64.sqrt());
}

#[test]
fn classes_are_dropped_as_often_as_asked_for_and_whatever_the_time() {
    let flow = FlowSection { label_dropout: 0.3, ..FlowSection::default() };
    let all = draw(&rule(flow.clone()));
    let share = |labels: &[u32]| labels.iter().filter(|&&l| l == 3).count() as f64 / labels.len() as f64;
    near(share(&all.labels), 0.3, 0.3f64.sqrt());
    assert!(all.labels.iter().all(|l| [1, 3].contains(l)));
    let early: Vec<u32> = all.times.iter().zip(&all.labels).filter(|(t, _)| **t < 0.5).map(|(_, &l)| l).collect();
    near(share(&early), 0.3, (2.0f64 * 0.3).sqrt());
    let none = ExampleRule { null: None, ..rule(flow) };
    assert!(draw(&none).labels.iter().all(|&l| l == 0), "an unconditional model has one label");
}

#[test]
fn an_example_is_made_of_its_image_and_its_number_alone() {
    let rule = rule(FlowSection::default());
    let images: Vec<f32> = (0..40).map(|i| i as f32 / 40.0).collect();
    let labels = [0, 1, 2, 0, 1, 2, 0, 1, 2, 0];
    let whole = rule.examples(&images, &labels, 100);
    let [first, rest] =
        [rule.examples(&images[..12], &labels[..3], 100), rule.examples(&images[12..], &labels[3..], 103)];
    assert_eq!([first.x, rest.x].concat(), whole.x);
    assert_eq!([first.times, rest.times].concat(), whole.times);
    assert_eq!([first.labels, rest.labels].concat(), whole.labels);
    // x = (1 - t) data + t (data + velocity).
    for (i, (&x, &v)) in whole.x.iter().zip(&whole.target).enumerate() {
        let want = f64::from(images[i]) + whole.times[i / 4] * f64::from(v);
        assert!((f64::from(x) - want).abs() < 1e-6, "{x}, {want} expected");
    }
}
