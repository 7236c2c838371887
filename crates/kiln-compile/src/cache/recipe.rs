//! Everything that can change a built part, by name.

use std::collections::{BTreeMap, BTreeSet};

use kiln_bundle::Target;
use serde_json::json;

use crate::canonical;

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

    /// What the key is a digest of: part, target and ingredients as canonical JSON.
    fn canonical(&self) -> String {
        canonical::text(&json!({
            "part": self.part,
            "target": self.target.to_string(),
            "ingredients": self.ingredients,
        }))
    }

    /// BLAKE3 digest over part, target and ingredients, in hexadecimal.
    pub fn key(&self) -> String {
        canonical::digest(&self.canonical())
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

#[cfg(test)]
mod tests {
    use super::*;

    fn recipe() -> Recipe {
        let mut recipe = Recipe::new("unet", Target::TensorrtRtx);
        recipe.add("weights", "00ff");
        recipe.add("graph unet", "ab\n\"cd\"");
        recipe.emission.insert("attention".into(), "fused".into());
        recipe
    }

    /// Whoever changes this text makes every user build every part anew.
    #[test]
    fn the_canonical_text_is_pinned() {
        let text = r#"kiln key 1
{"ingredients":{"graph unet":"ab\n\"cd\"","weights":"00ff"},"part":"unet","target":"tensorrt-rtx"}"#;
        assert_eq!(recipe().canonical(), text);
    }

    #[test]
    fn each_ingredient_changes_the_key_and_what_explains_a_graph_does_not() {
        type Change = fn(&mut Recipe);
        let changes: [Change; 7] = [
            |r| r.part.push('2'),
            |r| r.target = Target::Cpu,
            |r| r.add("weights", "00fe"),
            |r| r.add("weights", ""),
            |r| r.add("more", ""),
            |r| drop(r.ingredients.remove("weights")),
            |r| {
                let value = r.ingredients.remove("weights").unwrap_or_default();
                r.add("weight", format!("s{value}"));
            },
        ];
        let keys = changes.into_iter().map(|change| {
            let mut recipe = recipe();
            change(&mut recipe);
            recipe.key()
        });
        let keys: BTreeSet<String> = keys.chain([recipe().key()]).collect();
        assert_eq!(keys.len(), changes.len() + 1);
        let explained = Recipe { emission: BTreeMap::new(), ..recipe() };
        assert_eq!(explained.key(), recipe().key());
    }
}
