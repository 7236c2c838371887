//! Bundles of engines from bundles of ONNX: tracing on one machine, building on another.

use std::collections::BTreeMap;

use kiln_bundle::{Bundle, MANIFEST, Target};

use super::{Models, Part, Plan, recipes};
use crate::checkpoint::Source;
use crate::targets::{EngineOptions, OnnxModel, TargetOptions};
use crate::{CompileError, Recipe};

pub(super) fn plan(source: &Bundle, options: &EngineOptions) -> Result<Plan<'static>, CompileError> {
    let manifest = source.manifest();
    if manifest.target != Target::Onnx {
        let reason = format!("is a bundle for {}", manifest.target);
        return Err(CompileError::checkpoint(source.root(), reason)
            .with_hint("engines are built from a checkpoint, or from what --target onnx makes of one"));
    }
    let target = TargetOptions::Engines(options.clone());
    let mut groups: BTreeMap<&str, Vec<OnnxModel>> = BTreeMap::new();
    for (name, component) in &manifest.components {
        let weights = component.weights.as_deref().unwrap_or_default();
        let part = weights.rsplit_once('.').map_or(weights, |(stem, _)| stem);
        groups.entry(part).or_default().push(OnnxModel::new(*name, source.root(), component.clone())?);
    }
    let parts = groups.into_iter().map(|(name, models)| {
        let mut recipe = Recipe::new(name, options.target);
        recipe.add("kiln", env!("CARGO_PKG_VERSION"));
        recipe.add("builder", recipes::BUILDER);
        for model in &models {
            let digest = |file: &str| manifest.files.get(file).map(|listed| listed.blake3.clone());
            for segment in &model.component.segments {
                recipe.add(format!("graph {}", model.name), digest(&segment.engine).unwrap_or_default());
            }
            if let Some(weights) = &model.component.weights {
                recipe.add("weights", digest(weights).unwrap_or_default());
            }
        }
        options.add_to(&mut recipe);
        for model in &models {
            options.add_sizes_to(&mut recipe, model.name, model.component.stage, &model.component.inputs);
        }
        recipe.emission = manifest.provenance.options.clone();
        Part { models: Models::Onnx(models), recipe }
    });
    let parts: Vec<Part<'static>> = parts.collect();
    let (mut companions, mut nested) = (Vec::new(), Vec::new());
    let components = || manifest.components.values();
    for name in manifest.files.keys() {
        let is_model = components().any(|component| component.files().any(|file| file == name));
        if let Some(folder) = name.strip_suffix(&format!("/{MANIFEST}")) {
            nested.push((folder.to_owned(), plan(&Bundle::open(source.path(folder))?, options)?));
        } else if !is_model && manifest.reference.as_ref() != Some(name) {
            companions.push((name.clone(), Source::File(source.path(name))));
        }
    }
    let mut provenance = manifest.provenance.clone();
    provenance.toolkit = Some(options.release.clone());
    provenance.options.extend(options.named());
    recipes::seal(&mut provenance, &manifest.content, &parts, &nested);
    Ok(Plan {
        name: manifest.name.clone(),
        target,
        parts,
        content: manifest.content.clone(),
        companions,
        provenance,
        nested,
    })
}
