//! Names that a file may use: an unknown one is answered with the nearest known one.

use serde::de::DeserializeOwned;

use crate::io::quoted;

/// The name of `known` that `name` is most likely a misspelling of: the least edits (insert, delete, replace, swap
/// neighbours), if they are at most a third of its length, at least one.
pub fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let (edits, best) = known.into_iter().map(|k| (distance(name, k), k)).min()?;
    (edits <= (name.chars().count().max(best.chars().count()) / 3).max(1)).then_some(best)
}

/// The message about an unknown `name`: with the nearest known one, else with all.
pub fn unknown<'a>(what: &str, name: &str, known: impl IntoIterator<Item = &'a str> + Clone) -> String {
    match nearest(name, known.clone()) {
        Some(near) => format!("unknown {what} {}, did you mean {near:?}?", quoted(name)),
        None => {
            let all: Vec<&str> = known.into_iter().collect();
            format!("unknown {what} {}, expected one of {}", quoted(name), all.join(", "))
        }
    }
}

/// Settings of type `T` from a TOML table whose keys may be `keys`, each of which `T` does without (`serde(default)`).
/// The reason names an unknown key and the nearest known one, or the key whose value does not fit.
pub fn from_table<T: DeserializeOwned>(table: &toml::Table, keys: &[&str]) -> Result<T, String> {
    for (key, value) in table {
        if !keys.contains(&key.as_str()) {
            return Err(unknown("key", key, keys.iter().copied()));
        }
        // Alone first, so that a refusal names the key.
        let alone = toml::Table::from_iter([(key.clone(), value.clone())]);
        alone.try_into::<T>().map_err(|e| format!("key {key:?}: {}", e.message()))?;
    }
    table.clone().try_into().map_err(|e: toml::de::Error| e.message().to_owned())
}

/// Optimal string alignment distance, with at most 64 characters of each looked at.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().take(64).collect(), b.chars().take(64).collect());
    let mut rows = vec![(0..=b.len()).collect::<Vec<usize>>()];
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let replace = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut best = replace.min(rows[i - 1][j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(rows[i - 2][j - 2] + 1);
            }
            row.push(best);
        }
        rows.push(row);
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn misspellings_find_their_name() {
        let known = ["learning_rate", "batch", "seed", "resize"];
        for (typed, meant) in
            [("learnig_rate", "learning_rate"), ("btach", "batch"), ("sed", "seed"), ("resise", "resize")]
        {
            assert_eq!(nearest(typed, known), Some(meant), "{typed}");
        }
        assert_eq!(nearest("optimizer", known), None);
        assert_eq!(nearest("x", []), None);
        assert_eq!(
            [("", "abc"), ("abc", "abc"), ("ab", "ba"), ("kitten", "sitting")].map(|(a, b)| distance(a, b)),
            [3, 0, 1, 3]
        );
        assert_eq!(unknown("key", "btach", known), "unknown key \"btach\", did you mean \"batch\"?");
        assert!(unknown("key", "optimizer", known).ends_with("expected one of learning_rate, batch, seed, resize"));
    }
}
