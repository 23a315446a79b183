//! Typed access to the fields of a configuration. Metadata holds strings only, so numbers and flags may be written as
//! strings; what stands under several names has to be the same under all of them.

use serde_json::{Map, Value};

/// A field's name and what it says; `None` where the field is absent.
pub(super) type Field<T> = Option<(&'static str, T)>;

/// The fields of one JSON object. Errors are one line: the field, what was found, what was expected.
pub(super) struct Fields<'a>(pub &'a Map<String, Value>);

impl<'a> Fields<'a> {
    /// The finite number under any of `names`.
    pub fn number(&self, names: &[&'static str]) -> Result<Field<f64>, String> {
        self.any(names, |name, value| match as_number(value) {
            Some(number) => Ok(number),
            None => Err(format!("{name} is {value}, a number expected")),
        })
    }

    /// What a norm adds to the variance, under any of `names`, put into `eps`.
    pub fn epsilon(&self, names: &[&'static str], eps: &mut f64) -> Result<(), String> {
        if let Some((name, given)) = self.number(names)? {
            // Norms are computed in f32, where a smaller number is none.
            if !(given < 1.0 && given as f32 >= f32::MIN_POSITIVE) {
                return Err(format!("{name} is {given}, a number between 1e-37 and 1 expected"));
            }
            *eps = given;
        }
        Ok(())
    }

    /// The whole number under any of `names`, from 0 to 10^9.
    pub fn integer(&self, names: &[&'static str]) -> Result<Field<usize>, String> {
        self.any(names, |name, value| match as_integer(value) {
            Some(number) => Ok(number),
            None => Err(format!("{name} is {value}, a whole number expected")),
        })
    }

    /// Height and width of the square images under any of `names`: a number, `[H, W]`, or timm's `[C, H, W]` with C among `channels`.
    pub fn image_size(&self, names: &[&'static str], channels: &[usize]) -> Result<Field<usize>, String> {
        self.any(names, |name, value| {
            let sides: Option<Vec<usize>> = match value {
                Value::Array(sides) => sides.iter().map(as_integer).collect(),
                one => as_integer(one).map(|n| vec![n, n]),
            };
            match sides.as_deref() {
                Some([height, width]) if height == width => Ok(*height),
                Some([c, height, width]) if height == width && channels.contains(c) => Ok(*height),
                _ => Err(format!("{name} is {value}, the side of square images of {} channels expected", channels[0])),
            }
        })
    }

    /// Refuses a number under one of `names` other than `found`, which the weights have.
    pub fn compare(&self, names: &[&'static str], found: usize) -> Result<(), String> {
        compare(self.integer(names)?, found)
    }

    /// The whole numbers of the list called `name`.
    pub fn list(&self, name: &'static str) -> Result<Field<Vec<usize>>, String> {
        match self.present(name) {
            None => Ok(None),
            Some(value) => match value.as_array().and_then(|list| list.iter().map(as_integer).collect()) {
                Some(list) => Ok(Some((name, list))),
                None => Err(format!("{name} is {value}, a list of whole numbers expected")),
            },
        }
    }

    /// Refuses a list called `name` other than `found`, which the weights have.
    pub fn compare_list(&self, name: &'static str, found: &[usize]) -> Result<(), String> {
        match self.list(name)? {
            Some((name, given)) if given != found => {
                Err(format!("{name} is {given:?}, but the shapes of the weights say {found:?}"))
            }
            _ => Ok(()),
        }
    }

    /// Refuses a number of classes other than the `found` outputs of a classifier, if it has any.
    pub fn compare_head(&self, found: usize) -> Result<(), String> {
        if found > 0 { self.compare(&["num_classes"], found) } else { Ok(()) }
    }

    /// Refuses a field called `name` that is none of `computed`, all that is computed here.
    pub fn only(&self, name: &'static str, computed: &[Value]) -> Result<(), String> {
        let Some(value) = self.present(name).filter(|value| !computed.contains(value)) else {
            return Ok(());
        };
        let expected: Vec<String> = computed.iter().map(Value::to_string).collect();
        let expected = if expected.is_empty() { "nothing".into() } else { expected.join(" or ") };
        Err(format!("{name} is {value}, {expected} expected: another is not computed here"))
    }

    /// The field called `name`; null stands for none.
    fn present(&self, name: &str) -> Option<&'a Value> {
        self.0.get(name).filter(|value| !value.is_null())
    }

    /// The string called `name`.
    pub fn text(&self, name: &'static str) -> Result<Field<&'a str>, String> {
        self.any(&[name], |name, value| match value {
            Value::String(text) => Ok(text.as_str()),
            other => Err(format!("{name} is {other}, a string expected")),
        })
    }

    /// The flag called `name`.
    pub fn flag(&self, name: &'static str) -> Result<Field<bool>, String> {
        self.any(&[name], |name, value| match (value, value.as_str()) {
            (Value::Bool(flag), _) => Ok(*flag),
            (_, Some("true" | "True")) => Ok(true),
            (_, Some("false" | "False")) => Ok(false),
            (other, _) => Err(format!("{name} is {other}, true or false expected")),
        })
    }

    /// What `parse` makes of every field among `names`, which has to be one value.
    fn any<T: PartialEq + std::fmt::Display>(
        &self,
        names: &[&'static str],
        parse: impl Fn(&'static str, &'a Value) -> Result<T, String>,
    ) -> Result<Field<T>, String> {
        let mut found = None;
        for &name in names {
            if let Some(value) = self.present(name) {
                found = agree(found, Some((name, parse(name, value)?)))?;
            }
        }
        Ok(found)
    }
}

/// The field that is present; an error if both are and they differ.
pub(super) fn agree<T: PartialEq + std::fmt::Display>(a: Field<T>, b: Field<T>) -> Result<Field<T>, String> {
    match (&a, &b) {
        (Some((name, x)), Some((other, y))) if x != y => Err(format!("{name} is {x}, but {other} is {y}")),
        _ => Ok(a.or(b)),
    }
}

/// Refuses a `given` number other than `found`, which the weights have.
pub(super) fn compare(given: Field<usize>, found: usize) -> Result<(), String> {
    match given {
        Some((name, given)) if given != found => {
            Err(format!("{name} is {given}, but the shapes of the weights say {found}"))
        }
        _ => Ok(()),
    }
}

fn as_number(value: &Value) -> Option<f64> {
    value.as_f64().or_else(|| value.as_str()?.parse().ok()).filter(|n| n.is_finite())
}

fn as_integer(value: &Value) -> Option<usize> {
    as_number(value).filter(|n| n.fract() == 0.0 && (0.0..=1e9).contains(n)).map(|n| n as usize)
}
