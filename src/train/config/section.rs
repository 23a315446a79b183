//! What the tables of a training configuration share: keys with defaults, and reasons in one line.

use std::fmt::Display;
use std::ops::RangeInclusive;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::io::known;

/// A table of the configuration. Every key may be left out.
pub(super) trait Section: Default + Serialize + DeserializeOwned {
    /// Name of the table.
    const NAME: &str;
    /// Every key.
    const KEYS: &[&str];

    /// Why a value cannot be worked with.
    fn check(&self) -> Result<(), String>;

    /// The table's values, not yet checked. The reason names an unknown key and where it belongs, or the key whose
    /// value does not fit.
    fn from_table(table: &toml::Table) -> Result<Self, String> {
        for key in table.keys().filter(|key| !Self::KEYS.contains(&key.as_str())) {
            if let Some(home) = super::home_of(key) {
                return Err(format!("unknown key {key:?}: it belongs into [{home}]"));
            }
        }
        known::from_table(table, Self::KEYS)
    }
}

/// Declares a table: a struct with the default of each key beside it, and its [`Section::KEYS`]. The struct has a method
/// `check() -> Result<(), String>` of its own.
macro_rules! section {
    ($(#[$meta:meta])* $name:ident, $table:literal { $($(#[$of_key:meta])* $key:ident: $kind:ty = $default:expr,)* }) => {
        $(#[$meta])*
        #[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
        #[serde(default, deny_unknown_fields)]
        pub struct $name { $($(#[$of_key])* pub $key: $kind,)* }

        impl Default for $name {
            fn default() -> Self {
                Self { $($key: $default,)* }
            }
        }

        impl $crate::train::config::section::Section for $name {
            const NAME: &str = $table;
            const KEYS: &[&str] = &[$(stringify!($key)),*];

            fn check(&self) -> Result<(), String> {
                $name::check(self)
            }
        }
    };
}
pub(super) use section;

/// Refuses a `value` of `key` outside `range`.
pub(super) fn within<T: PartialOrd + Display>(key: &str, value: T, range: RangeInclusive<T>) -> Result<(), String> {
    match range.contains(&value) {
        true => Ok(()),
        false => Err(format!("{key} is {value}, {} to {} expected", range.start(), range.end())),
    }
}

/// Refuses what is no number above 0 and up to `most`.
pub(super) fn positive(key: &str, value: f64, most: f64) -> Result<(), String> {
    match value > 0.0 && value <= most {
        true => Ok(()),
        false => Err(format!("{key} is {value}, a number above 0 and up to {most} expected")),
    }
}

/// Refuses what is no share: a number from 0 to below 1.
pub(super) fn share(key: &str, value: f64) -> Result<(), String> {
    match (0.0..1.0).contains(&value) {
        true => Ok(()),
        false => Err(format!("{key} is {value}, a number from 0 to below 1 expected")),
    }
}
