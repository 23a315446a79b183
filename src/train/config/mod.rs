//! The settings of a training run: TOML tables in which every key has a default and an unknown one is refused with the
//! nearest known one.

mod autoencoder;
mod data;
mod model;
mod recipe;
mod run;
mod section;

pub use self::autoencoder::AutoencoderSection;
pub use self::data::DataSection;
pub use self::model::{Gelu, ModelPlan, Network, NewModel};
pub use self::recipe::{
    ConditionsSection, Decay, FlowSection, MemorySection, OptimizerKind, OptimizerSection, Precision, PrecisionSection,
    RegularisationSection, TimeDensity,
};
pub use self::run::RunSection;

use std::path::Path;

use serde::Serialize;
use toml::{Table, Value};

use self::section::Section;
use crate::error::{Error, Result};
use crate::io::{known, read_text};

/// Largest file of settings, in bytes.
const MAX_BYTES: u64 = 1 << 20;

/// Every table.
const SECTIONS: [&str; 10] =
    ["model", "autoencoder", "data", "flow", "conditions", "optimizer", "precision", "regularisation", "memory", "run"];

/// All that decides a training run, but for the device.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct TrainConfig {
    /// What is trained.
    pub model: ModelPlan,
    /// A stage before, whose latents the model learns; none for a model of the images themselves.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub autoencoder: Option<AutoencoderSection>,
    /// On which images.
    pub data: DataSection,
    /// The path from data to noise.
    pub flow: FlowSection,
    /// Continuous parameters.
    pub conditions: ConditionsSection,
    /// How weights follow gradients.
    pub optimizer: OptimizerSection,
    /// Types of numbers.
    pub precision: PrecisionSection,
    /// Against learning by heart.
    pub regularisation: RegularisationSection,
    /// Time for memory.
    pub memory: MemorySection,
    /// Length and bookkeeping.
    pub run: RunSection,
}

impl TrainConfig {
    /// Settings from TOML tables; a table or key that is left out has its default. The reason is one line: the table,
    /// the key, what was found, what was expected.
    pub fn from_table(table: &Table) -> Result<Self, String> {
        for (name, value) in table {
            if !SECTIONS.contains(&name.as_str()) {
                return Err(match home_of(name) {
                    Some(home) => format!("key {name:?} belongs into [{home}]"),
                    None => known::unknown("table", name, SECTIONS),
                });
            }
            if !value.is_table() {
                return Err(format!("{name}: found {}, the table [{name}] expected", value.type_str()));
            }
        }
        let config = Self {
            model: parse(table, "model", ModelPlan::from_table)?,
            autoencoder: table.contains_key(AutoencoderSection::NAME).then(|| section(table)).transpose()?,
            data: parse(table, DataSection::NAME, DataSection::parse)?,
            flow: section(table)?,
            conditions: section(table)?,
            optimizer: section(table)?,
            precision: section(table)?,
            regularisation: section(table)?,
            memory: section(table)?,
            run: section(table)?,
        };
        config.check()?;
        Ok(config)
    }

    /// Settings from the text of the TOML file at `path`. [`Error::Input`] names it, and the line of what is no TOML.
    pub fn from_toml(path: &Path, text: &str) -> Result<Self> {
        let table = text.parse::<Table>().map_err(|e| {
            let line = e.span().map_or(1, |span| text[..span.start.min(text.len())].matches('\n').count() + 1);
            Error::input(path, format!("TOML, line {line}: {}", e.message()))
        })?;
        Self::from_table(&table).map_err(|reason| Error::input(path, reason))
    }

    /// Settings from the TOML file at `path`. [`Error::Input`] for one that is missing, too large or refused.
    pub fn read(path: &Path) -> Result<Self> {
        Self::from_toml(path, &read_text(path, MAX_BYTES)?)
    }

    /// Every setting, the defaults too, as [`TrainConfig::from_toml`] takes them.
    pub fn to_toml(&self) -> Result<String> {
        toml::to_string(self).map_err(|e| Error::Runtime(format!("settings as TOML: {e}")))
    }

    /// Why the settings cannot be worked with; for those that were changed after reading.
    pub fn check(&self) -> Result<(), String> {
        let named = |name: &str, checked: Result<(), String>| checked.map_err(|reason| format!("[{name}] {reason}"));
        named("model", self.model.check())?;
        if let Some(autoencoder) = &self.autoencoder {
            check(autoencoder)?;
            autoencoder.check_with(&self.model)?;
        }
        check(&self.data)?;
        check(&self.flow)?;
        check(&self.conditions)?;
        check(&self.optimizer)?;
        check(&self.precision)?;
        check(&self.regularisation)?;
        check(&self.memory)?;
        check(&self.run)
    }

    /// Settings of the stages of a run: of the auto-encoder, if there is one, and of the model.
    pub fn stages(&self) -> (Option<Self>, Self) {
        let Some(autoencoder) = &self.autoencoder else { return (None, self.clone()) };
        let minutes = self.run.minutes.map(|minutes| minutes * (1.0 - autoencoder.share));
        let second = Self { run: RunSection { minutes, ..self.run.clone() }, ..self.clone() };
        (Some(autoencoder.first_stage(self)), second)
    }
}

/// The table that has a key called `key`, if there is exactly one.
fn home_of(key: &str) -> Option<&'static str> {
    let here = |(name, keys): &(&'static str, &[&str])| keys.contains(&key).then_some(*name);
    let homes: Vec<&str> = [
        entry::<DataSection>(),
        entry::<FlowSection>(),
        entry::<ConditionsSection>(),
        entry::<OptimizerSection>(),
        entry::<PrecisionSection>(),
        entry::<RegularisationSection>(),
        entry::<MemorySection>(),
        entry::<RunSection>(),
    ]
    .iter()
    .filter_map(here)
    .chain(model::keys().any(|k| k == key).then_some("model"))
    .collect();
    // The auto-encoder has keys of others, too; theirs go before.
    let homes = if homes.is_empty() { here(&entry::<AutoencoderSection>()).into_iter().collect() } else { homes };
    <[&str; 1]>::try_from(homes).ok().map(|[home]| home)
}

fn entry<T: Section>() -> (&'static str, &'static [&'static str]) {
    (T::NAME, T::KEYS)
}

fn section<T: Section>(table: &Table) -> Result<T, String> {
    parse(table, T::NAME, T::from_table)
}

fn check<T: Section>(section: &T) -> Result<(), String> {
    section.check().map_err(|reason| format!("[{}] {reason}", T::NAME))
}

/// The table `name` of `table`, read by `read`; an empty one where it is left out.
fn parse<T>(table: &Table, name: &str, read: impl FnOnce(&Table) -> Result<T, String>) -> Result<T, String> {
    let empty = Table::new();
    let section = table.get(name).and_then(Value::as_table).unwrap_or(&empty);
    read(section).map_err(|reason| format!("[{name}] {reason}"))
}
