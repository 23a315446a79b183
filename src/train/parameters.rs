//! Continuous parameters of training examples: normalised once, and left out of some examples, as classes are.
//!
//! An example without its class has no parameters either: that is the unconditional model that guidance leads away from. Of the
//! others, some are learned without, so that the model can be asked for a class alone.

use crate::data::DataSet;
use crate::error::{Error, Result};
use crate::models::parameters::{Parameter, normalised};
use crate::rng::philox4x32_10;
use crate::train::examples::{ExampleRule, HostExamples};

/// Stream of the random numbers that decide which examples are without parameters; see [`crate::train::examples`].
const PARAMETERS: u32 = 0x5452_0013;

/// The normalisation of every column of the parameters that `set` was asked for; none for a set without.
///
/// # Errors
/// [`Error::Input`] for a column from which nothing can be learned.
pub fn fit(set: &DataSet) -> Result<Vec<Parameter>> {
    let Some(table) = set.parameters() else { return Ok(Vec::new()) };
    let columns = table.names().iter().enumerate();
    let fitted = columns.map(|(at, name)| Parameter::fit(name, table.column(at)));
    fitted.collect::<std::result::Result<_, _>>().map_err(|reason| Error::input(set.path(), reason))
}

/// Normalised parameters of every image of a set.
pub struct ParameterRows {
    /// P.
    width: usize,
    /// [images, P].
    values: Vec<f32>,
    /// Probability that an example with its class is without them.
    dropout: f64,
}

impl ParameterRows {
    /// Those of `set`, for a model of these `parameters`; none for one that takes none.
    ///
    /// # Errors
    /// [`Error::Usage`] for a set that was opened with other parameters; [`Error::Input`] for values that the model cannot
    /// take.
    pub fn of(set: &DataSet, parameters: &[Parameter], dropout: f64) -> Result<Option<Self>> {
        let names: Vec<&str> = parameters.iter().map(|parameter| parameter.name.as_str()).collect();
        let found: Vec<&str> = set.parameters().iter().flat_map(|t| t.names()).map(String::as_str).collect();
        if names != found {
            let (names, found) = (names.join(", "), found.join(", "));
            return Err(Error::usage(format!(
                "{}: found the parameters [{found}], the model takes [{names}]",
                set.path().display()
            )));
        }
        let Some(table) = set.parameters() else { return Ok(None) };
        let mut values = Vec::with_capacity(table.values().len());
        for index in 0..set.len() {
            let row =
                normalised(parameters, table.row(index)).map_err(|reason| Error::input(set.place(index).0, reason))?;
            values.extend(row.into_iter().map(|value| value as f32));
        }
        Ok(Some(Self { width: parameters.len(), values, dropout }))
    }

    /// Gives `examples`, which `rule` made, the parameters of the images `indices` of the set; the first of them is number
    /// `first` of the loader's sequence, and whether it keeps its parameters follows from (seed, number) alone.
    pub fn add(&self, rule: &ExampleRule, indices: &[u32], first: u64, examples: &mut HostExamples) {
        for ((image, &index), &label) in (first..).zip(indices).zip(&examples.labels) {
            examples.parameters.extend_from_slice(&self.values[index as usize * self.width..][..self.width]);
            let alone = rule.null == Some(label);
            examples.given.push(!alone && uniform(rule.seed, image) >= self.dropout);
        }
    }

    /// Fills `examples` up to `images` with ones that have none.
    pub fn pad(&self, images: usize, examples: &mut HostExamples) {
        examples.parameters.resize(images * self.width, 0.0);
        examples.given.resize(images, false);
    }
}

fn uniform(seed: u64, image: u64) -> f64 {
    let key = [seed as u32, (seed >> 32) as u32];
    let word = philox4x32_10([image as u32, (image >> 32) as u32, 0, PARAMETERS], key)[0];
    (f64::from(word) + 0.5) / 4_294_967_296.0
}
