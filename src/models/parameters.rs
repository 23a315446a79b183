//! Continuous parameters that a model can be asked for, such as masses and positions: their names, and how values become
//! numbers about 0 with a deviation of 1.

use serde::{Deserialize, Serialize};

/// Most parameters of a model.
pub const MAX_PARAMETERS: usize = 256;
/// Most deviations that a value may lie from the mean: further out no model has learned anything, and f16 overflows.
const MAX_DEVIATIONS: f64 = 1000.0;

/// One parameter. Mean and deviation are those of the training set, of the decimal logarithm where `log` says so.
///
/// Not every image has every parameter: a lens without axions has no axion mass. Such a number is missing (not a number) or,
/// where the logarithm is taken, 0, and enters the model as 0, the mean.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Parameter {
    /// Column of the data's `params.csv`, and the name to ask by.
    pub name: String,
    /// Mean of the values, or of their decimal logarithms.
    pub mean: f64,
    /// Standard deviation of the same.
    pub std: f64,
    /// Whether the decimal logarithm is normalised and not the value itself.
    #[serde(default)]
    pub log: bool,
}

impl Parameter {
    /// The normalisation of a column with these `values`. The logarithm is taken where all values but 0 are positive and it
    /// makes them less skewed, as it does with masses that span decades; then 0 stands for "does not apply" and does not
    /// count. Numbers that are missing (not a number) never count.
    ///
    /// # Errors
    /// One line: a column from which nothing can be learned.
    pub fn fit(name: &str, values: impl Iterator<Item = f64>) -> Result<Self, String> {
        let values: Vec<f64> = values.filter(|v| !v.is_nan()).collect();
        let applying: Vec<f64> = values.iter().copied().filter(|&v| v != 0.0).collect();
        let logarithms: Vec<f64> = applying.iter().filter(|&&v| v > 0.0).map(|&v| libm::log10(v)).collect();
        let log = logarithms.len() == applying.len()
            && match (Moments::of(&applying), Moments::of(&logarithms)) {
                (Some(plain), Some(log)) => log.skewness.abs() < plain.skewness.abs(),
                _ => false,
            };
        let Some(moments) = Moments::of(if log { &logarithms } else { &values }) else {
            return Err(match values.first() {
                Some(value) => format!("column {name:?} is {value} in every image: there is nothing to learn from it"),
                None => format!("column {name:?} is empty in every image"),
            });
        };
        Ok(Self { name: name.to_owned(), mean: moments.mean, std: moments.std, log })
    }

    /// `value` as the model takes it; 0 for one that does not apply.
    ///
    /// # Errors
    /// One line: a value that the model cannot have learned.
    pub fn normalised(&self, value: f64) -> Result<f64, String> {
        if value.is_nan() || (self.log && value == 0.0) {
            return Ok(0.0);
        }
        let name = &self.name;
        if self.log && value < 0.0 {
            return Err(format!("{name} is {value:?}, a positive number expected, or 0 where it does not apply"));
        }
        let deviations = (if self.log { libm::log10(value) } else { value } - self.mean) / self.std;
        if deviations.abs() <= MAX_DEVIATIONS {
            return Ok(deviations);
        }
        let about = self.typical();
        Err(format!("{name} is {value:?}, {deviations:.3e} deviations from the model's mean of {about:.6e}"))
    }

    /// The value in the middle of the training set.
    pub fn typical(&self) -> f64 {
        if self.log { libm::exp10(self.mean) } else { self.mean }
    }

    fn check(&self) -> Result<(), String> {
        let Self { name, mean, std, .. } = self;
        if name.is_empty() || name.contains(|c: char| c == '=' || c == ',' || c.is_control()) {
            return Err(format!("parameters has {name:?}, a name without = and commas expected"));
        }
        if !mean.is_finite() {
            return Err(format!("parameters.{name}: mean is {mean}, a number expected"));
        }
        if !(std.is_finite() && *std > 0.0) {
            return Err(format!("parameters.{name}: std is {std}, a number above 0 expected"));
        }
        Ok(())
    }
}

/// Whether a model can have these parameters.
///
/// # Errors
/// One line: what was found, what was expected.
pub(super) fn check(parameters: &[Parameter]) -> Result<(), String> {
    if parameters.len() > MAX_PARAMETERS {
        return Err(format!("{} parameters found, at most {MAX_PARAMETERS} expected", parameters.len()));
    }
    for (i, parameter) in parameters.iter().enumerate() {
        parameter.check()?;
        if parameters[..i].iter().any(|other| other.name == parameter.name) {
            return Err(format!("parameters has {:?} twice", parameter.name));
        }
    }
    Ok(())
}

/// The values, one for each of `parameters`, as the model takes them.
///
/// # Errors
/// One line: another number of values, or those of [`Parameter::normalised`].
pub fn normalised(parameters: &[Parameter], values: &[f64]) -> Result<Vec<f64>, String> {
    if values.len() != parameters.len() {
        return Err(format!("{} values given for {} parameters", values.len(), parameters.len()));
    }
    parameters.iter().zip(values).map(|(parameter, &value)| parameter.normalised(value)).collect()
}

/// What is looked at of a column.
struct Moments {
    mean: f64,
    std: f64,
    skewness: f64,
}

impl Moments {
    /// `None` for values that are all the same, or none.
    fn of(values: &[f64]) -> Option<Self> {
        let first = values.first()?;
        if values.iter().all(|v| v == first) {
            return None;
        }
        let n = values.len() as f64;
        let mean = values.iter().sum::<f64>() / n;
        let about = |power: i32| values.iter().map(|v| (v - mean).powi(power)).sum::<f64>() / n;
        let std = about(2).sqrt();
        (std > 0.0 && std.is_finite()).then(|| Self { mean, std, skewness: about(3) / std.powi(3) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fit(values: &[f64]) -> Parameter {
        Parameter::fit("m", values.iter().copied()).unwrap()
    }

    /// Evenly from 0 to 1, without the ends.
    fn even() -> impl Iterator<Item = f64> {
        (0..100).map(|i| (f64::from(i) + 0.5) / 100.0)
    }

    #[test]
    fn masses_that_span_decades_are_normalised_by_their_logarithm() {
        let masses: Vec<f64> = even().map(|u| 10f64.powf(-24.0 + 2.0 * u)).chain([0.0; 50]).collect();
        let mass = fit(&masses);
        assert!(mass.log);
        // A uniform distribution over two decades: deviation 2 / sqrt(12).
        assert!((mass.mean + 23.0).abs() < 1e-9 && (mass.std - 2.0 / 12f64.sqrt()).abs() < 1e-4, "{mass:?}");
        assert!((mass.normalised(1e-22).unwrap() - 12f64.sqrt() / 2.0).abs() < 1e-4);
        assert_eq!([0.0, f64::NAN].map(|v| mass.normalised(v).unwrap()), [0.0; 2]);
        assert!((mass.typical() / 1e-23 - 1.0).abs() < 1e-9);
        assert!(mass.normalised(-1.0).unwrap_err().contains("m is -1.0, a positive number"));
    }

    /// Angles come close to 0, but are even as they are; positions have both signs; both may be 0.
    #[test]
    fn angles_and_positions_are_normalised_as_they_are() {
        let angle = fit(&even().map(|u| std::f64::consts::TAU * u).collect::<Vec<_>>());
        assert!(!angle.log && (angle.mean - std::f64::consts::PI).abs() < 1e-9);
        let position = fit(&[-0.3, 0.1, f64::NAN, 0.0, 0.2]);
        assert!(!position.log && position.mean.abs() < 1e-15);
        assert!((position.std - 0.035f64.sqrt()).abs() < 1e-12, "the missing number does not count");
        assert!((position.normalised(0.2).unwrap() - 0.2 / 0.035f64.sqrt()).abs() < 1e-12);
        assert!(position.normalised(1e6).unwrap_err().contains("deviations"));
        assert!(position.normalised(f64::INFINITY).is_err());
        // A vortex of always the same mass, where there is one: its logarithm would be a constant.
        assert!(!fit(&[0.0, 3e10, 3e10, 0.0]).log);
    }

    #[test]
    fn columns_without_anything_to_learn_are_refused() {
        let refused = |values: &[f64]| Parameter::fit("halo", values.iter().copied()).unwrap_err();
        assert!(refused(&[1e12; 4]).contains("\"halo\" is 1000000000000 in every image"));
        assert!(refused(&[0.0; 4]).contains("is 0 in every image"));
        assert!(refused(&[f64::NAN; 2]).contains("empty in every image"));
    }
}
