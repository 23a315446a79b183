//! Adam, AdamW, clipping, moving averages and the loss scale against PyTorch (`scripts/gen_c_optimizer.py`), on the CPU and
//! on the GPU, and what must hold whatever the numbers are.

use arclet::device::Device;
use arclet::device::cpu::Cpu;
use arclet::ops::optimizer::{
    AdamRule, GradReport, REPORT, StepValues, VALUES, adam, cast, ema, fill_zero, grad_report, report_scratch_len,
};
use arclet::tensor::{DType, Tensor};
use arclet::train::optimizer::{LossScale, StepInputs, step_values};

use crate::common::{Golden, cpu, relative_error};
use crate::engines::{CUDA_DTYPES, cuda, every_mode};

/// Weights, their gradients, moments and averages on one device.
struct Run {
    device: Device,
    rule: AdamRule,
    /// Which parameters weight decay applies to.
    decays: Vec<bool>,
    steps: u64,
    values: Tensor,
    report: Tensor,
    scratch: Tensor,
    weights: Vec<Tensor>,
    grads: Vec<Tensor>,
    moments: Vec<[Tensor; 2]>,
    averages: Vec<Tensor>,
}

impl Run {
    fn new(device: &Device, dtype: DType, rule: AdamRule, start: &[(&str, Vec<usize>, Vec<f32>, bool)]) -> Self {
        let tensor = |shape: &[usize], v: &[f32]| Tensor::from_f32(device, dtype, shape, v).unwrap();
        let zeros = |n: usize| Tensor::zeros(device, dtype, &[n]).unwrap();
        let given = || start.iter().map(|(_, shape, v, _)| tensor(shape, v)).collect::<Vec<_>>();
        let empty = || start.iter().map(|(_, shape, v, _)| tensor(shape, &vec![0.0; v.len()]));
        Self {
            device: device.clone(),
            rule,
            decays: start.iter().map(|(.., decays)| *decays).collect(),
            steps: 0,
            values: zeros(VALUES),
            report: zeros(REPORT),
            scratch: zeros(report_scratch_len(start.iter().map(|(_, _, v, _)| v.len()))),
            weights: given(),
            grads: empty().collect(),
            moments: empty().zip(empty()).map(|(mean, square)| [mean, square]).collect(),
            averages: given(),
        }
    }

    fn enqueue(&mut self) -> arclet::error::Result<()> {
        let Self { device, rule, decays, values, report, scratch, weights, grads, moments, averages, .. } = self;
        grad_report(device, &grads.iter().collect::<Vec<_>>(), values, scratch, report)?;
        let parameters = weights.iter_mut().zip(grads.iter()).zip(moments).zip(decays);
        for (((weight, grad), moments), decays) in parameters {
            let weight_decay = if *decays { rule.weight_decay } else { 0.0 };
            adam(device, AdamRule { weight_decay, ..*rule }, values, report, weight, grad, moments.each_mut())?;
        }
        weights.iter().zip(averages).try_for_each(|(weight, average)| ema(device, values, report, weight, average))
    }

    fn prepare(&mut self, inputs: StepInputs, grads: &[Vec<f32>]) {
        step_values(&self.rule, self.steps + 1, inputs).write(&self.device, &mut self.values).unwrap();
        let to = self.grads.iter_mut().zip(grads);
        to.for_each(|(to, from)| to.write_f32(&self.device, from).unwrap());
    }

    fn finish(&mut self) -> GradReport {
        let report = GradReport::read(&self.device, &self.report).unwrap();
        self.steps += u64::from(report.finite);
        report
    }

    fn step(&mut self, inputs: StepInputs, grads: &[Vec<f32>]) -> GradReport {
        self.prepare(inputs, grads);
        let device = self.device.clone();
        device.run(|| self.enqueue()).unwrap();
        self.finish()
    }

    /// Weights, averages and moments.
    fn state(&self) -> Vec<f32> {
        let all = self.weights.iter().chain(&self.averages).chain(self.moments.iter().flatten());
        all.flat_map(|t| t.to_f32(&self.device).unwrap()).collect()
    }
}

fn random(n: usize, seed: u64, scale: f32) -> Vec<f32> {
    let mut values = vec![0.0; n];
    arclet::rng::normals(seed, 0, 9, &mut values);
    values.iter_mut().for_each(|v| *v *= scale);
    values
}

fn inputs(lr: f64) -> StepInputs {
    StepInputs { lr, loss_scale: 1.0, clip: None, ema_decay: 1.0 }
}

/// Ten steps of a case of the golden file: weights and averages after steps 1, 2 and 10, and the norms of the gradients.
fn ten_steps(
    golden: &Golden,
    case: &str,
    config: AdamRule,
    lr: f64,
    run_on: (&Device, DType),
) -> Vec<(String, Vec<f32>)> {
    let (device, dtype) = run_on;
    let clipped = case == "adamw_clip_ema";
    let start = ["a", "b"].map(|n| {
        let name = format!("start.{n}");
        (n, golden.shape(&name), golden.f32(&name), n == "a")
    });
    let mut run = Run::new(device, dtype, config, &start);
    let mut found = Vec::new();
    for k in 0..10usize {
        let rate = if k < 4 { lr * (1.0 + k as f64) / 4.0 } else { lr * 0.9f64.powi(k as i32) };
        let clip = clipped.then_some(1.0);
        let inputs = StepInputs { lr: rate, loss_scale: 1.0, clip, ema_decay: if clipped { 0.9 } else { 1.0 } };
        let grads = ["a", "b"].map(|n| {
            let all = golden.f32(&format!("grad.{n}"));
            let n = all.len() / 10;
            all[k * n..][..n].to_vec()
        });
        let report = run.step(inputs, &grads);
        assert!(report.finite);
        if clipped {
            found.push((format!("{case}.norm{}", k + 1), vec![report.norm as f32]));
        }
        if [1, 2, 10].contains(&(k + 1)) {
            for (i, n) in ["a", "b"].iter().enumerate() {
                found.push((format!("{case}.w{}.{n}", k + 1), run.weights[i].to_f32(device).unwrap()));
                if clipped {
                    let average = run.averages[i].to_f32(device).unwrap();
                    found.push((format!("{case}.ema{}.{n}", k + 1), average));
                }
            }
        }
    }
    assert_eq!(run.steps, 10);
    found
}

#[test]
fn ten_steps_of_adam_and_adamw_are_pytorchs() {
    let golden = Golden::open("c_training/optimizer.safetensors");
    let cases = [
        ("adam", AdamRule::ADAM, 1e-2),
        ("adam_decay", AdamRule { beta1: 0.8, beta2: 0.95, eps: 1e-3, weight_decay: 0.1, decoupled: false }, 1e-2),
        ("adamw", AdamRule { beta2: 0.99, weight_decay: 0.05, ..AdamRule::ADAMW }, 1e-2),
        ("adamw_clip_ema", AdamRule::ADAMW, 1e-3),
    ];
    for (case, config, lr) in cases {
        let check = |where_: &str, found: &[(String, Vec<f32>)], bound: f64| {
            for (name, got) in found {
                let error = relative_error(got, &golden.f32(name));
                assert!(error <= bound, "{name} {where_}: relative error {error:.2e}");
            }
        };
        check("in f64", &ten_steps(&golden, case, config, lr, (&cpu(), DType::F64)), 1e-7);
        check("in f32", &ten_steps(&golden, case, config, lr, (&cpu(), DType::F32)), 1e-6);
        let device = cuda();
        let run = || ten_steps(&golden, case, config, lr, (&device, DType::F32));
        every_mode(case, || run().into_iter().flat_map(|(_, v)| v).collect());
        check("on the GPU", &run(), 1e-6);
    }
}

#[test]
fn the_first_step_of_the_flow_vit_and_the_norms_of_both_models_are_pytorchs() {
    let golden = Golden::open("c_training/optimizer.safetensors");
    let (weights, vit) =
        (Golden::open("a1_flow_vit/weights.safetensors"), Golden::open("c_training/flow_vit.safetensors"));
    let names: Vec<String> = vit.names().iter().filter_map(|n| n.strip_prefix("grad.")).map(str::to_string).collect();
    let start: Vec<_> = names.iter().map(|n| (&**n, weights.shape(n), weights.f32(n), true)).collect();
    let grads: Vec<Vec<f32>> = names.iter().map(|n| vit.f32(&format!("grad.{n}"))).collect();
    for (device, dtype) in [(cpu(), DType::F64), (cpu(), DType::F32), (cuda(), DType::F32)] {
        let mut run = Run::new(&device, dtype, AdamRule::ADAMW, &start);
        let report = run.step(inputs(1e-3), &grads);
        let error = relative_error(&[report.norm as f32], &golden.f32("flow_vit.norm"));
        assert!(error < 1e-6, "norm on {} in {dtype}: relative error {error:.2e}", device.name());
        let mut compared = 0;
        for (name, weight) in names.iter().zip(&run.weights) {
            let wanted = format!("flow_vit.w1.{name}");
            if golden.names().contains(&wanted) {
                let error = relative_error(&weight.to_f32(&device).unwrap(), &golden.f32(&wanted));
                assert!(error < 1e-6, "{name} on {} in {dtype}: relative error {error:.2e}", device.name());
                compared += 1;
            }
        }
        assert!(compared > 20, "{compared} parameters compared");
    }
    let nanodit = Golden::open("c_training/nanodit.safetensors");
    let grads = nanodit.names().into_iter().filter(|n| n.starts_with("grad.")).map(|n| nanodit.f32(&n));
    let grads: Vec<Vec<f32>> = grads.collect();
    let want = f64::from(golden.f32("nanodit.norm")[0]);
    for device in [cpu(), cuda()] {
        let (report, factor) = report_of(&device, DType::F32, &grads, 1.0, 1.0);
        assert!((report.norm - want).abs() < 1e-6 * want, "{} on {}, {want} expected", report.norm, device.name());
        assert!((factor - 1.0 / (want + 1e-6)).abs() < 1e-6 * factor, "the factor {factor} clips to a norm of 1");
    }
}

/// Report and factor of gradients under a loss scale of 1 / `grad_scale`.
fn report_of(device: &Device, dtype: DType, grads: &[Vec<f32>], grad_scale: f64, max_norm: f64) -> (GradReport, f64) {
    let mut values = Tensor::zeros(device, dtype, &[VALUES]).unwrap();
    let step = StepValues { lr: 0.0, step_size: 0.0, root2: 1.0, grad_scale, max_norm, ema_weight: 0.0 };
    step.write(device, &mut values).unwrap();
    let grads: Vec<Tensor> = grads.iter().map(|g| Tensor::from_f32(device, dtype, &[g.len()], g).unwrap()).collect();
    let mut scratch = Tensor::zeros(device, dtype, &[report_scratch_len(grads.iter().map(Tensor::len))]).unwrap();
    let mut report = Tensor::zeros(device, dtype, &[REPORT]).unwrap();
    let grads: Vec<&Tensor> = grads.iter().collect();
    device.run(|| grad_report(device, &grads, &values, &mut scratch, &mut report)).unwrap();
    (GradReport::read(device, &report).unwrap(), report.to_f64(device).unwrap()[2])
}

#[test]
fn the_norm_counts_every_gradient_once() {
    // One element, a whole chunk, several with a remainder.
    let grads: Vec<Vec<f32>> = [1, 8192, 3, 20_001].iter().zip(0..).map(|(&n, s)| random(n, s, 1.5)).collect();
    let want = grads.iter().flatten().map(|&g| f64::from(g).powi(2)).sum::<f64>().sqrt();
    let (exact, _) = report_of(&cpu(), DType::F64, &grads, 1.0, f64::INFINITY);
    assert!((exact.norm - want).abs() < 1e-12 * want);
    let near = |norm: f64, what: &str| assert!((norm - want).abs() < 1e-6 * want, "{what}: {norm}, {want} expected");
    let norms = [1, 2, 3].map(|threads| {
        let device = Device::Cpu(Cpu::new(threads).unwrap());
        let (report, factor) = report_of(&device, DType::F32, &grads, 1.0, f64::INFINITY);
        assert_eq!((report.finite, factor), (true, 1.0), "nothing is clipped");
        near(report.norm, "cpu");
        report.norm
    });
    assert!(norms[0] == norms[1] && norms[1] == norms[2], "the norm depends on threads: {norms:?}");
    let device = cuda();
    let got = every_mode("norm", || {
        let (report, factor) = report_of(&device, DType::F32, &grads, 0.25, 2.0);
        vec![report.norm as f32, factor as f32]
    });
    near(f64::from(got[0]) * 4.0, "cuda");
    let factor = 0.25 * 2.0 / (want * 0.25 + 1e-6);
    assert!((f64::from(got[1]) - factor).abs() < 1e-6 * factor, "{} clips to 2, {factor} expected", got[1]);
    // A norm below the limit is left alone.
    for device in [cpu(), device] {
        let (_, factor) = report_of(&device, DType::F32, &[vec![0.3, -0.4]], 0.5, 1.0);
        assert_eq!(factor, 0.5);
        let (report, _) = report_of(&device, DType::F32, &[vec![0.0; 5]], 0.5, 1.0);
        assert_eq!(report, GradReport { norm: 0.0, finite: true });
    }
}

/// Two parameters of several threads and of one.
fn two(n: usize) -> [(&'static str, Vec<usize>, Vec<f32>, bool); 2] {
    [("large", vec![n], random(n, 1, 1.0), true), ("small", vec![3], random(3, 2, 1.0), false)]
}

fn grads_of(n: usize, step: u64) -> Vec<Vec<f32>> {
    vec![random(n, 10 + step, 0.1), random(3, 20 + step, 10.0)]
}

const AVERAGED: StepInputs = StepInputs { lr: 1e-3, loss_scale: 1.0, clip: Some(0.5), ema_decay: 0.7 };

#[test]
fn a_step_with_a_gradient_that_is_not_finite_changes_nothing() {
    for (device, dtype) in [(cpu(), DType::F64), (cpu(), DType::F32), (cuda(), DType::F32)] {
        for bad in [f32::INFINITY, f32::NEG_INFINITY, f32::NAN] {
            let [mut run, mut other] = [0; 2].map(|_| Run::new(&device, dtype, AdamRule::ADAMW, &two(1030)));
            run.step(AVERAGED, &grads_of(1030, 0));
            other.step(AVERAGED, &grads_of(1030, 0));
            let before = run.state();
            let mut grads = grads_of(1030, 1);
            grads[0][517] = bad;
            let report = run.step(AVERAGED, &grads);
            assert!(!report.finite && !report.norm.is_finite(), "{report:?} of {bad}");
            assert!(run.state() == before, "{bad} on {} in {dtype} went into the state", device.name());
            assert_eq!(run.steps, 1, "a skipped step does not count");
            // The next one is as if it had not been.
            assert!(run.step(AVERAGED, &grads_of(1030, 2)).finite);
            other.step(AVERAGED, &grads_of(1030, 2));
            let (state, wanted) = (run.state(), other.state());
            assert!(state == wanted && state != before, "{bad} on {} in {dtype}", device.name());
        }
    }
}

#[test]
fn a_loss_scale_changes_no_bit() {
    for device in [cpu(), cuda()] {
        let [mut run, mut scaled] = [0; 2].map(|_| Run::new(&device, DType::F32, AdamRule::ADAMW, &two(300)));
        for step in 0..3 {
            let grads = grads_of(300, step);
            let larger: Vec<Vec<f32>> = grads.iter().map(|g| g.iter().map(|g| g * 65536.0).collect()).collect();
            let plain = run.step(AVERAGED, &grads);
            let report = scaled.step(StepInputs { loss_scale: 65536.0, ..AVERAGED }, &larger);
            assert_eq!(plain, report, "the norm is that of the gradients without the scale");
        }
        assert!(run.state() == scaled.state(), "on {}", device.name());
    }
}

#[test]
fn steps_have_the_same_bits_on_any_threads() {
    let on = |threads: usize| {
        let device = Device::Cpu(Cpu::new(threads).unwrap());
        let mut run = Run::new(&device, DType::F32, AdamRule::ADAMW, &two(40_003));
        (0..3).for_each(|step| assert!(run.step(AVERAGED, &grads_of(40_003, step)).finite));
        run.state()
    };
    let one = on(1);
    assert!(one == on(2) && one == on(3));
}

#[test]
fn a_captured_step_follows_the_values_on_the_device() {
    let device = cuda();
    let [mut run, mut other] = [0; 2].map(|_| Run::new(&device, DType::F32, AdamRule::ADAM, &two(1030)));
    // Recording must not load code.
    fill_zero(&device, &mut Tensor::zeros(&device, DType::F32, &[1]).unwrap()).unwrap();
    let graph = device.capture(|| run.enqueue()).unwrap().unwrap();
    for step in 0..4 {
        let inputs = StepInputs { lr: 1e-3 * (1.0 + step as f64), ema_decay: 0.1 * step as f64, ..AVERAGED };
        let mut grads = grads_of(1030, step);
        if step == 2 {
            grads[1][0] = f32::INFINITY;
        }
        run.prepare(inputs, &grads);
        graph.launch().unwrap();
        let report = run.finish();
        assert_eq!(report.finite, other.step(inputs, &grads).finite);
        assert!(run.state() == other.state(), "step {step}");
    }
    assert_eq!(run.steps, 3);
}

/// One step and one average from given values and report, then the copies in every type.
fn given(device: &Device, n: usize, decoupled: bool, part: f64) -> Vec<f32> {
    let tensor = |v: &[f32]| Tensor::from_f32(device, DType::F32, &[v.len()], v).unwrap();
    let [mut w, g, mut m] = [3, 4, 5].map(|seed| tensor(&random(n, seed, 0.5)));
    let mut v = tensor(&random(n, 6, 0.5).iter().map(|v| v * v).collect::<Vec<_>>());
    let mut average = tensor(&random(n, 7, 0.5));
    let mut values = Tensor::zeros(device, DType::F32, &[VALUES]).unwrap();
    let step = StepValues { lr: 0.1, step_size: 0.3, root2: 0.7, grad_scale: 1.0, max_norm: 1.0, ema_weight: part };
    step.write(device, &mut values).unwrap();
    let report = tensor(&[1.0, 1.0, 0.37]);
    let rule = AdamRule { beta1: 0.9, beta2: 0.95, eps: 1e-6, weight_decay: 0.2, decoupled };
    adam(device, rule, &values, &report, &mut w, &g, [&mut m, &mut v]).unwrap();
    ema(device, &values, &report, &w, &mut average).unwrap();
    let mut all = [&w, &m, &v, &average].map(|t| t.to_f32(device).unwrap()).concat();
    for dtype in CUDA_DTYPES {
        let mut copy = Tensor::zeros(device, dtype, &[n]).unwrap();
        cast(device, &w, &mut copy).unwrap();
        all.extend(copy.to_f32(device).unwrap());
    }
    fill_zero(device, &mut w).unwrap();
    all.extend(w.to_f32(device).unwrap());
    all
}

#[test]
fn a_step_has_the_same_bits_on_every_device() {
    let (host, device) = (cpu(), cuda());
    // One element, a remainder of four, several blocks.
    for (n, decoupled, part) in [(1, true, 0.2), (7, false, 0.6), (2100, true, 0.6), (2103, false, 0.2)] {
        let want = host.run(|| given(&host, n, decoupled, part));
        let got = every_mode("a step", || given(&device, n, decoupled, part));
        assert!(want.iter().zip(&got).all(|(a, b)| a.to_bits() == b.to_bits()), "{n} elements");
        let [weight, average] = [0, 3].map(|i| &want[i * n..][..n]);
        let rounded = |dtype: DType| weight.iter().map(move |&w| dtype.round(w));
        let copies = rounded(DType::F32).chain(rounded(DType::F16)).chain(rounded(DType::BF16));
        assert!(want[4 * n..7 * n].iter().copied().eq(copies), "the copies are the rounded weights");
        assert!(want[7 * n..].iter().all(|&v| v == 0.0) && weight.iter().any(|&v| v != 0.0));
        let old = random(n, 7, 0.5);
        for ((&average, &weight), old) in average.iter().zip(weight).zip(old) {
            assert!((average - (old + part as f32 * (weight - old))).abs() < 1e-6);
        }
    }
    // The ends are exact: the weights, and the average as it was.
    for device in [host, device] {
        let copied = given(&device, 50, true, 1.0);
        assert!(copied[150..200] == copied[..50]);
        assert!(given(&device, 50, true, 0.0)[150..200] == random(50, 7, 0.5));
    }
}

#[test]
fn operands_that_do_not_fit_are_refused() {
    for device in [cpu(), cuda()] {
        let mut run = Run::new(&device, DType::F32, AdamRule::ADAM, &two(8));
        let lost = run.grads.pop().unwrap();
        assert!(run.enqueue().is_err(), "a gradient is missing");
        run.grads.push(Tensor::zeros(&device, DType::F32, &[4]).unwrap());
        assert!(run.enqueue().is_err(), "a gradient is longer than its weight");
        *run.grads.last_mut().unwrap() = Tensor::zeros(&device, DType::F16, &[3]).unwrap();
        assert!(run.enqueue().is_err(), "a gradient in f16");
        *run.grads.last_mut().unwrap() = lost;
        run.enqueue().unwrap();
        let mut short = Tensor::zeros(&device, DType::BF16, &[2]).unwrap();
        assert!(cast(&device, &run.weights[1], &mut short).is_err());
        assert!(fill_zero(&device, &mut short).is_err(), "gradients are wide");
    }
}

#[test]
fn the_loss_scale_follows_gradscaler() {
    let mut scale = LossScale::new(65536.0);
    assert_eq!(scale.value(), 65536.0);
    (0..1999).for_each(|_| scale.update(true));
    assert_eq!((scale.value(), scale.good_steps()), (65536.0, 1999));
    scale.update(true);
    assert_eq!((scale.value(), scale.good_steps()), (131072.0, 0));
    scale.update(false);
    assert_eq!((scale.value(), scale.good_steps()), (65536.0, 0), "an overflow begins the count again");
    (0..40).for_each(|_| scale.update(false));
    assert_eq!(scale.value(), 1.0);
    let mut large = LossScale::new(2f64.powi(127));
    (0..2000).for_each(|_| large.update(true));
    assert_eq!((large.value(), large.good_steps()), (2f64.powi(127), 0), "f32 holds the scale");
}
