//! What parts and bundles are built from, told by name.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use kiln_bundle::{Content, Digests, FusedLora, Provenance};
use kiln_graph::{Cuts, WeightLayout};
use kiln_lora::Lora;
use kiln_nets::Sizes;
use serde_json::json;

use super::{BuildOptions, Part, Plan};
use crate::checkpoint::Source;
use crate::targets::{TargetOptions, ports};
use crate::trace::Traced;
use crate::{CompileError, Recipe, TraceOptions, canonical};

/// Counts the changes of how parts are built from the same graphs, weights and options.
pub(super) const BUILDER: &str = "3";

/// What a part is built from.
pub(super) fn recipe(
    part: &str,
    traced: &[Traced<'_>],
    options: &BuildOptions,
    digests: &mut Digests,
) -> Result<Recipe, CompileError> {
    let mut recipe = Recipe::new(part, options.target.target());
    recipe.add("kiln", env!("CARGO_PKG_VERSION"));
    recipe.add("builder", BUILDER);
    for model in traced.iter().flat_map(|component| &component.models) {
        let graph = model.to_onnx(&WeightLayout::anywhere(model))?;
        recipe.add(format!("graph {}", model.name), blake3::hash(&graph).to_hex().as_str());
    }
    recipe.add("weights", weights_digest(part, traced, digests)?);
    if traced.iter().any(|component| component.changes.is_some()) {
        for (i, lora) in fused_loras(&options.trace.loras).into_iter().enumerate() {
            recipe.add(format!("lora {i}"), format!("{} times {}", lora.blake3, lora.weight));
        }
    }
    if let TargetOptions::Engines(options) = &options.target {
        options.add_to(&mut recipe);
        for component in traced {
            options.add_sizes_to(&mut recipe, component.name, component.stage, &ports(&component.inputs));
        }
    }
    recipe.emission = named_options(&options.trace);
    Ok(recipe)
}

/// Digest of the weights that a part reads, remembered while their files stay as they are.
fn weights_digest(part: &str, traced: &[Traced<'_>], digests: &mut Digests) -> Result<String, CompileError> {
    let Some(source) = traced.first().map(|component| component.source) else { return Ok(String::new()) };
    let names: BTreeSet<&str> = traced.iter().flat_map(Traced::weights).map(|w| w.name.as_str()).collect();
    let mut hasher = blake3::Hasher::new();
    for name in &names {
        hasher.update(name.as_bytes()).update(&[0]);
    }
    let first = &source.files()[0];
    let path = first.canonicalize().map_err(|e| CompileError::io(first, &e))?;
    // The form of the digest is part of the name under which it is remembered.
    let name = format!("{}#{part}#2#{}", path.display(), &hasher.finalize().to_hex()[..16]);
    let files: Vec<&Path> = source.files().iter().map(|file| file.as_path()).collect();
    digests.of(&name, &files, || source.content_digest(names.into_iter()))
}

/// Where a bundle comes from; its key covers all that the manifest says.
pub(super) fn provenance(
    content: &Content,
    parts: &[Part<'_>],
    companions: &[(String, Source)],
    nested: &[(String, Plan<'_>)],
    options: &BuildOptions,
) -> Result<Provenance, CompileError> {
    let mut checkpoint = BTreeMap::new();
    for (name, source) in companions {
        let digest = match source {
            Source::File(path) => kiln_bundle::fs::digest(path)?,
            Source::Made(bytes) => blake3::hash(bytes).to_hex().to_string(),
        };
        checkpoint.insert(name.clone(), digest);
    }
    for part in parts {
        let weights = part.recipe.ingredients.get("weights").cloned().unwrap_or_default();
        checkpoint.insert(format!("{} weights", part.recipe.part), weights);
    }
    let mut provenance = Provenance {
        kiln: env!("CARGO_PKG_VERSION").into(),
        key: String::new(),
        toolkit: match &options.target {
            TargetOptions::Cpu | TargetOptions::Cuda(_) | TargetOptions::Onnx => None,
            TargetOptions::Engines(options) => Some(options.release.clone()),
        },
        options: named_options(&options.trace).into_iter().chain(options.target.named()).collect(),
        checkpoint,
        loras: fused_loras(&options.trace.loras),
    };
    seal(&mut provenance, content, parts, nested);
    Ok(provenance)
}

/// Gives a provenance its key.
pub(super) fn seal(
    provenance: &mut Provenance,
    content: &Content,
    parts: &[Part<'_>],
    nested: &[(String, Plan<'_>)],
) {
    let parts = parts.iter().map(|part| part.recipe.key()).collect();
    let nested = nested.iter().map(|(_, plan)| plan.provenance.key.clone()).collect();
    provenance.key = canonical::digest(&canonical_text(provenance, content, parts, nested));
}

/// What a bundle's key is a digest of: what its manifest says of content and provenance, and the keys of its parts and of
/// the bundles inside it.
fn canonical_text(
    provenance: &Provenance,
    content: &Content,
    parts: Vec<String>,
    nested: Vec<String>,
) -> String {
    let Provenance { kiln, key: _, toolkit, options, checkpoint, loras } = provenance;
    canonical::text(&json!({
        "content": content,
        "kiln": kiln,
        "toolkit": toolkit,
        "options": options,
        "checkpoint": checkpoint,
        "loras": loras,
        "parts": parts,
        "nested": nested,
    }))
}

fn named_options(options: &TraceOptions) -> BTreeMap<String, String> {
    let TraceOptions { policy, precisions, sizes, controlled, runtime_ports, loras: _ } = options;
    let types = precisions.iter().map(|(name, precision)| match precision.products {
        Some(products) => format!("{name} {products} products"),
        None => format!("{name} {}", precision.compute),
    });
    let sizes = match sizes {
        Sizes::Dynamic => "dynamic".into(),
        Sizes::Static { batch, height, width } => format!("batch {batch}, latents {height}x{width}"),
    };
    let precision = &policy.precision;
    let scopes = precision.scopes.iter().map(|(scope, compute)| format!("{scope} {compute}"));
    BTreeMap::from([
        ("attention".into(), policy.attention.to_string()),
        ("flavor".into(), policy.flavor.to_string()),
        ("compute".into(), precision.compute.to_string()),
        ("products".into(), precision.products.map_or("as computed".into(), |dtype| dtype.to_string())),
        ("storage".into(), precision.storage.map_or("as computed".into(), |dtype| dtype.to_string())),
        ("norms".into(), precision.norms.to_string()),
        ("softmax".into(), precision.softmax.to_string()),
        ("components".into(), types.collect::<Vec<_>>().join(", ")),
        ("scopes".into(), scopes.collect::<Vec<_>>().join(", ")),
        ("sizes".into(), sizes),
        (
            "segments".into(),
            match &policy.cuts {
                Cuts::None => "whole".into(),
                Cuts::At(names) => names.join(", "),
                Cuts::Every(bytes) => format!("up to {bytes} bytes of weights"),
            },
        ),
        ("apart from".into(), policy.prompts.join(", ")),
        ("controlled".into(), controlled.to_string()),
        ("runtime ports".into(), runtime_ports.to_string()),
    ])
}

/// The LoRAs that change something.
fn fused_loras(loras: &[Lora]) -> Vec<FusedLora> {
    let named = |lora: &Lora| FusedLora {
        name: lora.file.path().file_name().unwrap_or_default().to_string_lossy().into_owned(),
        blake3: lora.file.digest().into(),
        weight: lora.weight,
    };
    loras.iter().filter(|lora| lora.weight != 0.0).map(named).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use kiln_bundle::ControlNetInfo;

    fn provenance() -> Provenance {
        Provenance {
            kiln: "1.2.3".into(),
            key: "of no meaning".into(),
            toolkit: Some("TensorRT-RTX 1.7.1".into()),
            options: BTreeMap::from([("tf32".into(), "true".into()), ("attention".into(), "fused".into())]),
            checkpoint: BTreeMap::from([("controlnet weights".into(), "00ff".into())]),
            loras: vec![FusedLora { name: "a.safetensors".into(), blake3: "0f".into(), weight: 0.5 }],
        }
    }

    fn content() -> Content {
        Content::Controlnet(ControlNetInfo { scale_factor: 8, latent_channels: 4, cross_attention_dim: 768 })
    }

    fn text(change: impl FnOnce(&mut Provenance)) -> String {
        let mut provenance = provenance();
        change(&mut provenance);
        canonical_text(&provenance, &content(), vec!["k1".into()], vec!["k2".into()])
    }

    /// Whoever changes this text makes every user put every bundle together anew.
    #[test]
    fn the_canonical_text_is_pinned() {
        let expected = concat!(
            "kiln key 1\n",
            r#"{"checkpoint":{"controlnet weights":"00ff"},"#,
            r#""content":{"cross_attention_dim":768,"kind":"controlnet","latent_channels":4,"scale_factor":8},"#,
            r#""kiln":"1.2.3","loras":[{"blake3":"0f","name":"a.safetensors","weight":0.5}],"nested":["k2"],"#,
            r#""options":{"attention":"fused","tf32":"true"},"parts":["k1"],"toolkit":"TensorRT-RTX 1.7.1"}"#,
        );
        assert_eq!(text(|_| {}), expected);
    }

    #[test]
    fn everything_but_the_key_itself_changes_the_text() {
        type Change = fn(&mut Provenance);
        let changes: [Change; 9] = [
            |p| p.kiln.push('0'),
            |p| p.toolkit = None,
            |p| drop(p.options.remove("tf32")),
            |p| drop(p.options.insert("tf32".into(), "false".into())),
            |p| drop(p.checkpoint.insert("controlnet weights".into(), "00fe".into())),
            |p| p.loras.clear(),
            |p| p.loras[0].weight = 0.25,
            |p| p.loras[0].name.push('x'),
            |p| p.loras[0].blake3.push('0'),
        ];
        let same = canonical_text(&provenance(), &content(), vec![], vec!["k1".into(), "k2".into()]);
        let texts: BTreeSet<String> = changes.into_iter().map(text).chain([text(|_| {}), same]).collect();
        assert_eq!(texts.len(), changes.len() + 2);
        assert_eq!(text(|p| p.key.clear()), text(|_| {}));
    }
}
