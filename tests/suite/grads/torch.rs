//! A training step of the flow ViT and of NanoDiT: loss and every gradient against PyTorch in f64
//! (`tests/data/goldens/c_training`).

use arclet::device::Device;
use arclet::io::Checkpoint;
use arclet::models::config::ModelConfig;
use arclet::models::import::Import;
use arclet::models::training::{Examples, Params, Step};
use arclet::nn::training::Keeping;
use arclet::tensor::DType;

use crate::common::{Golden, cpu, data, relative_error};
use crate::engines::cuda;

/// The images of a golden step, on the host.
pub struct Images {
    x: Vec<f32>,
    target: Vec<f32>,
    times: Vec<f64>,
    labels: Vec<u32>,
}

impl Images {
    /// Those of the golden file, behind a prefix of their names.
    pub fn of(golden: &Golden, prefix: &str) -> Self {
        let at = |name: &str| format!("{prefix}{name}");
        let [data, noise, times] = ["in.data", "in.noise", "in.t"].map(|name| golden.f32(&at(name)));
        let per_image = data.len() / times.len();
        let pairs = || data.iter().zip(&noise).enumerate();
        let mix = |(i, (&d, &n)): (usize, (&f32, &f32))| {
            let t = f64::from(times[i / per_image]);
            ((1.0 - t) * f64::from(d) + t * f64::from(n)) as f32
        };
        let labels = golden.names().contains(&at("in.y")).then(|| golden.i64(&at("in.y")));
        Self {
            x: pairs().map(mix).collect(),
            target: pairs().map(|(_, (d, n))| n - d).collect(),
            times: times.iter().map(|&t| t.into()).collect(),
            labels: labels.iter().flatten().map(|&y| y as u32).collect(),
        }
    }

    /// How many.
    pub fn batch(&self) -> usize {
        self.times.len()
    }

    /// As a step takes them.
    pub fn examples(&self) -> Examples<'_> {
        let (x, target, times, labels) = (&self.x, &self.target, &self.times, &self.labels);
        Examples { x, target, times, labels, parameters: &[], given: &[] }
    }
}

/// The model of a folder of goldens, with its weights on `device`, and the file's own names for them.
pub fn model(folder: &str, device: &Device, dtype: DType) -> (ModelConfig, Params, impl Fn(&str) -> String) {
    let checkpoint = Checkpoint::open(data(&format!("goldens/{folder}/weights.safetensors"))).unwrap();
    let checkpoint = Box::leak(Box::new(checkpoint));
    let import = Import::new(checkpoint).unwrap();
    let config = import.config.clone();
    let mut params = Params::zeros(&config, device, dtype).unwrap();
    params.load(device, &import).unwrap();
    (config, params, move |name| import.file_name(name).unwrap_or(name).to_string())
}

/// Loss, and all gradients by the file's names.
fn gradients(
    folder: &str,
    golden: &Golden,
    device: &Device,
    dtype: DType,
    keeping: Keeping,
) -> (f64, Vec<(String, Vec<f32>)>) {
    let (config, params, file_name) = model(folder, device, dtype);
    let images = Images::of(golden, "");
    let mut grads = Params::zeros(&config, device, dtype.wide()).unwrap();
    let mut step = Step::new(&config, &params, device, images.times.len(), keeping).unwrap();
    step.set(&images.examples(), 1.0).unwrap();
    device
        .run(|| {
            step.forward(&params, || false)?;
            step.backward(&params, &mut grads, || false)
        })
        .unwrap();
    let all = grads.read(&config, device).unwrap();
    (step.loss().unwrap(), all.into_iter().map(|(spec, values)| (file_name(&spec.name), values)).collect())
}

fn compare(folder: &str, file: &str, device: Device, dtype: DType, bound: f64) {
    let golden = Golden::open(&format!("c_training/{file}.safetensors"));
    let (loss, grads) = gradients(folder, &golden, &device, dtype, Keeping::default());
    let want = f64::from(golden.f32("loss.0")[0]);
    assert!((loss - want).abs() <= bound * want, "loss {loss}, {want} expected");
    let named = golden.names();
    let named: Vec<&str> = named.iter().filter_map(|n| n.strip_prefix("grad.")).collect();
    assert!(named.len() > 30);
    for name in named {
        let (_, got) = grads.iter().find(|(n, _)| n == name).unwrap_or_else(|| panic!("no gradient of {name}"));
        let error = relative_error(got, &golden.f32(&format!("grad.{name}")));
        assert!(error <= bound, "gradient of {name} in {dtype}: relative error {error:.2e}");
    }
    let (again, recomputed) =
        gradients(folder, &golden, &device, dtype, Keeping { recompute: true, ..Keeping::default() });
    assert!(again == loss && recomputed == grads, "blocks that are run again give other bits");
}

#[test]
fn a_training_step_of_the_flow_vit_is_pytorchs() {
    let compare = |device, dtype, bound| compare("a1_flow_vit", "flow_vit", device, dtype, bound);
    compare(cpu(), DType::F64, 1e-6);
    compare(cpu(), DType::F32, 1e-4);
    compare(cuda(), DType::F32, 1e-4);
}

#[test]
fn a_training_step_of_nanodit_is_pytorchs() {
    let compare = |device, dtype, bound| compare("a3_nanodit", "nanodit", device, dtype, bound);
    compare(cpu(), DType::F64, 1e-6);
    compare(cpu(), DType::F32, 1e-4);
    compare(cuda(), DType::F32, 1e-4);
}
