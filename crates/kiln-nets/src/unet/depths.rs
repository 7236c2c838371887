use serde_json::Value;

use crate::config::ConfigReader;
use crate::layers::Result;

const DOWN: &str = "transformer_layers_per_block";
const UP: &str = "reverse_transformer_layers_per_block";
const MAX_LAYERS: u64 = 64;

/// How many layers the transformers have: an entry per level, a number or a list of one per transformer of the level.
///
/// Entries of levels without transformers are never looked at, nor are those beyond the transformers that there are.
pub(super) struct Depths {
    key: &'static str,
    entries: Vec<Value>,
}

impl Depths {
    /// Those on the way down, from the first level on.
    pub(super) fn down(r: &mut ConfigReader<'_>, n_levels: usize) -> Result<Depths> {
        let entries = match r.get(DOWN) {
            None => vec![1.into(); n_levels],
            Some(list @ Value::Array(_)) => r.list(DOWN, list)?.to_vec(),
            Some(number) => vec![number.clone(); n_levels],
        };
        Depths { key: DOWN, entries }.check(r, n_levels)
    }

    /// Those on the way up, from the last level on: the others reversed, unless they are given.
    pub(super) fn up(self, r: &mut ConfigReader<'_>, n_levels: usize) -> Result<Depths> {
        if let Some(list) = r.get(UP) {
            let entries = r.list(UP, list)?.to_vec();
            return Depths { key: UP, entries }.check(r, n_levels);
        }
        if self.entries.iter().any(Value::is_array) {
            return Err(r.error(UP, format!("is missing, which {DOWN} with a list for one level needs")));
        }
        Ok(Depths { key: DOWN, entries: self.entries.into_iter().rev().collect() })
    }

    fn check(self, r: &ConfigReader<'_>, n_levels: usize) -> Result<Depths> {
        match self.entries.len() {
            n if n < n_levels => Err(r.error(self.key, format!("has {n} entries for {n_levels} levels"))),
            _ => Ok(self),
        }
    }

    /// Of each of the `n` transformers of an entry.
    pub(super) fn of(&self, r: &ConfigReader<'_>, entry: usize, n: usize) -> Result<Vec<usize>> {
        let value = &self.entries[entry];
        let Some(list) = value.as_array() else { return Ok(vec![self.number(r, value)?; n]) };
        if list.len() < n {
            return Err(r.error(self.key, format!("{value} has {} entries for {n} transformers", list.len())));
        }
        list[..n].iter().map(|value| self.number(r, value)).collect()
    }

    /// Of the transformer in the middle, which is as deep as the first of the last entry.
    pub(super) fn mid(&self, r: &ConfigReader<'_>) -> Result<Vec<usize>> {
        self.of(r, self.entries.len() - 1, 1)
    }

    fn number(&self, r: &ConfigReader<'_>, value: &Value) -> Result<usize> {
        match value.as_u64() {
            Some(n) if n <= MAX_LAYERS => Ok(n as usize),
            _ => Err(r.error(self.key, format!("{value} is not a number from 0 to {MAX_LAYERS}"))),
        }
    }
}
