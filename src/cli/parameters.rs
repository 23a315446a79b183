//! `--param NAME=VALUE`: the continuous parameters that images are asked for by.

use std::collections::BTreeMap;

use arclet::error::{Error, Result};
use arclet::io::known;
use arclet::models::parameters::{Parameter, normalised};

/// Values of all the parameters `known` of the model called `model`, in its order, from what the user `asked` for; none if
/// nothing was. Of a parameter that is given twice the last value counts, so that a flag goes before a file of settings.
///
/// # Errors
/// [`Error::Usage`]: a model that takes none, an unknown name, a value that is no number or far from all that the model has
/// seen, or a parameter that is missing.
pub fn resolve(asked: &[String], parameters: &[Parameter], model: &str) -> Result<Option<Vec<f64>>> {
    let Some(first) = asked.first() else { return Ok(None) };
    if parameters.is_empty() {
        return Err(Error::usage(format!("--param {first}: {model} takes no parameters")));
    }
    let mut given: BTreeMap<&str, f64> = BTreeMap::new();
    for text in asked {
        let refuse = |reason: String| Error::usage(format!("--param {text}: {reason}"));
        let (name, value) = text.split_once('=').ok_or_else(|| refuse("NAME=VALUE expected".into()))?;
        let (name, value) = (name.trim(), value.trim());
        if parameters.iter().all(|parameter| parameter.name != name) {
            let names = parameters.iter().map(|parameter| parameter.name.as_str());
            return Err(refuse(known::unknown("parameter", name, names)));
        }
        let number = value.parse().ok().filter(|number: &f64| number.is_finite());
        given.insert(name, number.ok_or_else(|| refuse(format!("found {value:?}, a finite number expected")))?);
    }
    let missing: Vec<&str> =
        parameters.iter().map(|p| p.name.as_str()).filter(|name| !given.contains_key(name)).collect();
    if !missing.is_empty() {
        return Err(Error::usage(format!(
            "--param: {} missing; {model} takes all of its parameters or none (0 for a mass that does not apply)",
            missing.join(", ")
        )));
    }
    let values: Vec<f64> = parameters.iter().map(|parameter| given[parameter.name.as_str()]).collect();
    normalised(parameters, &values).map_err(|reason| Error::usage(format!("--param: {reason}")))?;
    Ok(Some(values))
}

/// Names and values, as a recipe holds them.
pub fn by_name(parameters: &[Parameter], values: &[f64]) -> BTreeMap<String, f64> {
    parameters.iter().map(|parameter| parameter.name.clone()).zip(values.iter().copied()).collect()
}
