//! Learning rates and the decay of moving averages, step by step, against PyTorch schedules and ema-pytorch
//! (`tests/data/goldens/c_training/schedules.json`).

use arclet::train::optimizer::EmaRule;
use arclet::train::schedule::{Schedule, Shape};

use crate::common::data;

fn golden() -> serde_json::Value {
    let text = std::fs::read_to_string(data("goldens/c_training/schedules.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

#[test]
fn warm_up_and_cosine_are_the_references() {
    let schedule = Schedule { warmup: 10, shape: Shape::Cosine, floor: 0.01 };
    let golden = golden();
    let factors = golden["lr_factor_warmup10_total100_min001"].as_array().unwrap();
    assert_eq!(factors.len(), 101);
    for (step, want) in factors.iter().enumerate() {
        let (got, want) = (schedule.factor(step as u64, 100), want.as_f64().unwrap());
        assert!((got - want).abs() < 1e-14, "step {step}: {got}, {want} expected");
    }
    assert_eq!(schedule.factor(1000, 100), 0.01, "behind the end the floor holds");
}

#[test]
fn constant_and_linear_rates_are_what_they_say() {
    assert!((0..50).all(|step| Schedule::CONSTANT.factor(step, 10) == 1.0));
    let constant = Schedule { warmup: 4, ..Schedule::CONSTANT };
    assert_eq!([0, 1, 3, 4, 99].map(|step| constant.factor(step, 20)), [0.0, 0.25, 0.75, 1.0, 1.0]);
    let linear = Schedule { warmup: 2, shape: Shape::Linear, floor: 0.125 };
    assert_eq!(
        [0, 1, 2, 4, 6, 9, 10, 11].map(|step| linear.factor(step, 10)),
        [0.0, 0.5, 1.0, 0.75, 0.5, 0.125, 0.125, 0.125]
    );
    // Nothing is left behind a warm-up as long as the run.
    let long = Schedule { warmup: 10, shape: Shape::Cosine, floor: 0.0 };
    assert_eq!([9, 10].map(|step| long.factor(step, 10)), [0.9, 1.0]);
    assert!(long.factor(11, 10).abs() < 1e-15);
}

#[test]
fn a_run_by_the_clock_rises_by_steps_and_falls_by_time() {
    let schedule = Schedule { warmup: 200, shape: Shape::Cosine, floor: 0.0 };
    assert_eq!(schedule.factor_of_progress(0, 0.0), 1.0 / 200.0);
    assert_eq!(schedule.factor_of_progress(199, 0.0), 1.0);
    assert!((schedule.factor_of_progress(99, 0.5) - 0.25).abs() < 1e-15);
    assert!(schedule.factor_of_progress(5000, 1.5).abs() < 1e-15);
}

#[test]
fn decays_of_moving_averages_are_ema_pytorchs() {
    let golden = golden();
    let defaults = &golden["ema_pytorch_defaults"];
    let number = |key: &str| defaults[key].as_f64().unwrap();
    let rule = |update_every| EmaRule::EmaPytorch {
        beta: number("beta"),
        update_after_step: number("update_after_step") as u64,
        update_every,
        inv_gamma: number("inv_gamma"),
        power: number("power"),
        min_value: number("min_value"),
    };
    assert_eq!(rule(number("update_every") as u64), EmaRule::EMA_PYTORCH);
    for row in golden["ema_decay_after_update_call"].as_array().unwrap() {
        // The golden numbers its calls from 0 on; its decays are in f32.
        let (call, want) = (row[0].as_u64().unwrap() + 1, row[1].as_f64().unwrap());
        let every = rule(1).decay(call);
        assert!((every - want).abs() < 1e-6, "call {call}: {every}, {want} expected");
        let expected = if (call - 1).is_multiple_of(10) { every } else { 1.0 };
        assert_eq!(EmaRule::EMA_PYTORCH.decay(call), expected, "call {call}");
    }
    assert_eq!(EmaRule::EMA_PYTORCH.decay(1), 0.0, "the first call copies");
    assert_eq!(EmaRule::EMA_PYTORCH.decay(10_000_001), 0.9999);
}

#[test]
fn a_capped_decay_forgets_the_start() {
    let rule = EmaRule::Capped { decay: 0.9995 };
    assert_eq!([1, 2, 89].map(|n| rule.decay(n)), [2.0 / 11.0, 3.0 / 12.0, 90.0 / 99.0]);
    assert_eq!(rule.decay(1_000_000), 0.9995);
    assert_eq!(EmaRule::Constant { decay: 0.9 }.decay(1), 0.9);
}
