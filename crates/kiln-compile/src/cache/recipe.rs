//! Everything that can change a built part, by name.

use std::collections::{BTreeMap, BTreeSet};

use kiln_bundle::Target;

/// What one part of a bundle is built from: its key in the cache, told in full.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recipe {
    /// The part: a component, or components over the same weights.
    pub part: String,
    /// What it is built for.
    pub target: Target,
    /// What can change the result: graphs, weights, versions, options.
    pub ingredients: BTreeMap<String, String>,
    /// What explains a graph, by name: the options that it was emitted with.
    pub emission: BTreeMap<String, String>,
}

/// One ingredient that two recipes do not share.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// The ingredient's name.
    pub name: String,
    /// What it was.
    pub before: Option<String>,
    /// What it is.
    pub now: Option<String>,
}

impl Recipe {
    pub(crate) fn new(part: &str, target: Target) -> Recipe {
        Recipe { part: part.into(), target, ingredients: BTreeMap::new(), emission: BTreeMap::new() }
    }

    pub(crate) fn add(&mut self, name: impl Into<String>, value: impl Into<String>) {
        self.ingredients.insert(name.into(), value.into());
    }

    /// BLAKE3 digest over part, target and ingredients, in hexadecimal.
    pub fn key(&self) -> String {
        let mut hasher = blake3::Hasher::new();
        let mut part = |text: &str| {
            hasher.update(&(text.len() as u64).to_le_bytes());
            hasher.update(text.as_bytes());
        };
        part(&self.part);
        part(&self.target.to_string());
        for (name, value) in &self.ingredients {
            part(name);
            part(value);
        }
        hasher.finalize().to_hex().to_string()
    }

    /// Name of the entry's folder.
    pub fn folder(&self) -> String {
        format!("{}-{}-{}", self.part, self.target, &self.key()[..16])
    }

    /// What differs from an earlier recipe; where a graph does, also the options that it was emitted with.
    pub fn differences(&self, before: &Recipe) -> Vec<Difference> {
        let mut found = differences(&before.ingredients, &self.ingredients);
        if found.iter().any(|difference| difference.name.starts_with("graph")) {
            found.extend(differences(&before.emission, &self.emission));
        }
        found
    }
}

fn differences(before: &BTreeMap<String, String>, now: &BTreeMap<String, String>) -> Vec<Difference> {
    let names: BTreeSet<&String> = before.keys().chain(now.keys()).collect();
    names
        .into_iter()
        .filter(|name| before.get(*name) != now.get(*name))
        .map(|name| Difference {
            name: name.clone(),
            before: before.get(name).cloned(),
            now: now.get(name).cloned(),
        })
        .collect()
}
