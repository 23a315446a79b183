//! Parameters of training examples: whose they are, and which examples are without.

use std::path::Path;

use arclet::data::{DataSet, SourceOptions};
use arclet::models::parameters::Parameter;
use arclet::train::config::FlowSection;
use arclet::train::examples::{ExampleRule, HostExamples, Noising};
use arclet::train::parameters::{ParameterRows, fit};

use crate::data::write_image;

const IMAGES: usize = 5;

/// Images of one class whose mass is a power of ten and whose position its tenth.
fn set(folder: &Path, parameters: &[&str]) -> DataSet {
    let mut table = String::from("file,mass,x\n");
    for i in 0..IMAGES {
        write_image(folder.join(format!("no/{i}.npy")), 4, i as f32);
        table += &format!("no/{i}.npy,1e{i},0.{i}\n");
    }
    std::fs::write(folder.join("params.csv"), table).unwrap();
    let names: Vec<String> = parameters.iter().map(|&name| name.into()).collect();
    DataSet::open(folder, &SourceOptions::default()).unwrap().with_parameters(&names).unwrap()
}

/// Examples of images of value 0 with these numbers in the sequence.
fn examples(rows: &ParameterRows, rule: &ExampleRule, indices: &[u32], first: u64) -> HostExamples {
    let mut examples = rule.examples(&vec![0.0; indices.len()], &vec![0; indices.len()], first);
    rows.add(rule, indices, first, &mut examples);
    examples
}

#[test]
fn examples_have_the_normalised_parameters_of_their_images() {
    let folder = tempfile::tempdir().unwrap();
    let set = set(folder.path(), &["x", "mass"]);
    let parameters = fit(&set).unwrap();
    assert_eq!(parameters.iter().map(|p| (p.name.as_str(), p.log)).collect::<Vec<_>>(), [("x", false), ("mass", true)]);
    let rows = ParameterRows::of(&set, &parameters, 0.0).unwrap().expect("parameters");
    let rule = ExampleRule { seed: 1, flow: FlowSection::default(), noising: Noising::Flow, null: None };
    let found = examples(&rows, &rule, &[4, 2, 0], 10);
    // Five steps of one: deviation sqrt(2) of them.
    let side = 2f32.sqrt();
    let want = [side, side, 0.0, 0.0, -side, -side];
    assert!(found.parameters.iter().zip(want).all(|(f, w)| (f - w).abs() < 1e-6), "{:?}", found.parameters);
    assert_eq!(found.given, [true; 3]);

    // Another model's normalisation, and a set that was opened for another model.
    let other = [Parameter { name: "x".into(), mean: 0.0, std: 0.1, log: false }];
    let error = ParameterRows::of(&set, &other, 0.0).err().expect("other parameters");
    assert!(error.to_string().contains("found the parameters [x, mass], the model takes [x]"), "{error}");
    assert!(ParameterRows::of(&self::set(folder.path(), &[]), &[], 0.0).unwrap().is_none());
}

/// An example without class is without parameters; of the others so many are. The rest follows from (seed, number) alone.
#[test]
fn parameters_are_left_out_as_the_settings_say() {
    let folder = tempfile::tempdir().unwrap();
    let set = set(folder.path(), &["x"]);
    let rows = ParameterRows::of(&set, &fit(&set).unwrap(), 0.25).unwrap().expect("parameters");
    let flow = FlowSection { label_dropout: 0.2, ..FlowSection::default() };
    let rule = ExampleRule { seed: 3, flow, noising: Noising::Flow, null: Some(1) };
    let n = 8000;
    let all = examples(&rows, &rule, &vec![0; n], 0);
    let alone = all.labels.iter().zip(&all.given).filter(|(label, _)| **label == 1);
    assert!(alone.clone().count() > n / 6 && alone.clone().all(|(_, given)| !given));
    let with_class: Vec<bool> =
        all.labels.iter().zip(&all.given).filter(|(label, _)| **label == 0).map(|(_, given)| *given).collect();
    let share = with_class.iter().filter(|given| !**given).count() as f64 / with_class.len() as f64;
    // Four deviations of the share among some 6400 examples.
    assert!((share - 0.25).abs() < 4.0 * (0.25 * 0.75 / 6400f64).sqrt(), "{share}");

    let part = examples(&rows, &rule, &[0; 100], 500);
    assert_eq!(part.given, all.given[500..600], "batches do not matter");
    let other = examples(&rows, &ExampleRule { seed: 4, ..rule }, &[0; 100], 500);
    assert_ne!(part.given, other.given);
}
