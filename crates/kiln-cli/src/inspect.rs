use std::collections::BTreeSet;
use std::path::Path;

use kiln_bundle::stable_diffusion::{TEXT_ENCODER, TEXT_ENCODER_2, UNET};
use kiln_bundle::{AttentionFacts, Bundle, Content, PortInfo};
use kiln_compile::{
    Checkpoint, CheckpointOptions, CompileError, ComponentSummary, ControlNetCheckpoint, Family, Original,
    inspect_checkpoint, inspect_controlnet, inspect_onnx, inspect_original,
};
use kiln_lora::LoraFile;
use serde_json::{Value, json};

use crate::accuracy;
use crate::args::InspectArgs;
use crate::failure::Failure;
use crate::output::{bytes, data};

pub(crate) fn run(args: &InspectArgs) -> Result<(), Failure> {
    let path = &args.path;
    let (value, lines) = if Bundle::is_bundle(path) {
        let bundle = Bundle::open(path)?;
        if args.verify {
            bundle.verify()?;
        }
        describe_bundle(&bundle)
    } else if args.verify && path.exists() {
        let reason = "is not a bundle, and --verify checks the digests that a bundle lists";
        return Err(Failure::usage(format!("{}: {reason}", path.display())));
    } else if path.is_dir() && ControlNetCheckpoint::is_one(path) {
        let checkpoint = either_variant(|variant| ControlNetCheckpoint::open(path, variant))?;
        describe_checkpoint(path, Family::ControlNet, "ControlNetModel", vec![inspect_controlnet(&checkpoint)])
    } else if LoraFile::is_lora(path) && !path.join("model_index.json").exists() {
        describe_lora(&LoraFile::open(path)?)
    } else if path.is_dir() {
        let checkpoint = either_variant(|variant| {
            let options =
                CheckpointOptions { variant: variant.map(str::to_owned), ..CheckpointOptions::default() };
            Checkpoint::open_with(path, &options)
        })?;
        describe_checkpoint(path, checkpoint.family(), checkpoint.class(), inspect_checkpoint(&checkpoint))
    } else if Original::is_candidate(path) {
        describe_original(path)?
    } else if path.is_file() {
        describe_onnx(path)?
    } else {
        return Err(Failure::input(path, "no such file or folder"));
    };
    match args.json {
        true => data(&value.to_string()),
        false => lines.iter().for_each(|line| data(line)),
    }
    Ok(())
}

/// Opens a folder, with the variant fp16 where the files without one are missing.
fn either_variant<T>(open: impl Fn(Option<&str>) -> Result<T, CompileError>) -> Result<T, CompileError> {
    open(None).or_else(|e| open(Some("fp16")).map_err(|_| e))
}

fn describe_checkpoint(
    path: &Path,
    family: Family,
    class: &str,
    components: Vec<ComponentSummary>,
) -> (Value, Vec<String>) {
    let family = family.to_string();
    let mut lines = vec![format!("checkpoint {} ({family}, {class})", path.display())];
    lines.extend(components.iter().map(describe_component));
    let value = json!({
        "kind": "checkpoint",
        "path": path,
        "family": family,
        "class": class,
        "components": components,
    });
    (value, lines)
}

fn describe_original(path: &Path) -> Result<(Value, Vec<String>), Failure> {
    let original = Original::open(path)?;
    let class = original.class().unwrap_or("ControlNetModel");
    let (mut value, mut lines) =
        describe_checkpoint(path, original.family(), class, inspect_original(&original));
    lines[0] = format!("checkpoint {} in one file ({}, {class})", path.display(), original.family());
    value["configs"] = json!(original.configs());
    Ok((value, lines))
}

fn describe_component(c: &ComponentSummary) -> String {
    let millions = c.parameters as f64 / 1e6;
    let (files, dtypes, size) = (c.files.join(", "), c.dtypes.join(", "), bytes(c.bytes));
    format!(
        "  {:<16}{millions:>9.2} M parameters, {size} in {dtypes} ({} weights, {files})",
        c.name, c.n_weights
    )
}

fn describe_bundle(bundle: &Bundle) -> (Value, Vec<String>) {
    let manifest = bundle.manifest();
    let what = match &manifest.content {
        Content::Pipeline(info) => info.class.as_str(),
        Content::Controlnet(_) => "ControlNet",
    };
    let mut lines = vec![format!(
        "bundle {} ({}, {what}, for {})",
        bundle.root().display(),
        manifest.name,
        manifest.target
    )];
    match &manifest.content {
        Content::Pipeline(info) => lines.push(format!(
            "  default size {}x{}, {} pixels per latent",
            info.size.width, info.size.height, info.latents.scale_factor
        )),
        Content::Controlnet(info) => {
            lines.push(format!("  {} pixels of the control picture per latent", info.scale_factor));
        }
    }
    lines.push(format!("  made by kiln {}, key {}", manifest.provenance.kiln, manifest.provenance.key));
    if let Some(toolkit) = &manifest.provenance.toolkit {
        lines.push(format!("  built with {toolkit}"));
        let options = manifest.provenance.options.iter().filter(|(name, _)| is_of_builder(name));
        lines.extend(options.map(|(name, value)| format!("    {name}: {value}")));
    }
    lines.extend(manifest.accuracy.as_ref().map(|accuracy| format!("  {}", accuracy::describe(accuracy))));
    for lora in &manifest.provenance.loras {
        lines.push(format!("  with LoRA {} times {} ({})", lora.name, lora.weight, lora.blake3));
    }
    for (role, component) in &manifest.components {
        let files = match component.segments.as_slice() {
            [segment] => segment.engine.clone(),
            segments => format!("{} segments", segments.len()),
        };
        lines.push(format!(
            "  {:<16}{files} ({} operators, {}), {} of weights",
            role.to_string(),
            component.operators(),
            component.precision,
            bytes(component.weight_bytes)
        ));
        if component.weights.is_none() {
            let sizes = component.segments.iter().filter_map(|segment| manifest.files.get(&segment.engine));
            lines.push(format!("    engine of {}", bytes(sizes.map(|file| file.size).sum())));
        }
        let AttentionFacts { fused, decomposed } = component.attention();
        if fused + decomposed > 0 {
            lines.push(format!("    attentions: {fused} fused, {decomposed} in several operators"));
        }
        lines.extend(component.inputs.iter().map(|port| format!("    in  {}", describe_port(port))));
        lines.extend(component.outputs.iter().map(|port| format!("    out {}", describe_port(port))));
    }
    let value = json!({ "kind": "bundle", "path": bundle.root(), "manifest": manifest });
    (value, lines)
}

/// Whether an option is about building GPU engines, and not about tracing.
fn is_of_builder(option: &str) -> bool {
    option.starts_with("profile")
        || ["compute capabilities", "workspace", "optimization level", "tf32"].contains(&option)
}

fn describe_lora(lora: &LoraFile) -> (Value, Vec<String>) {
    let namings: Vec<String> = lora.namings().iter().map(ToString::to_string).collect();
    let dtypes: Vec<String> = lora.dtypes().into_iter().collect();
    let mut lines = vec![format!(
        "LoRA {} ({}), named as by {}, in {}",
        lora.path().display(),
        lora.family().unwrap_or("family unknown"),
        namings.join(" and "),
        dtypes.join(", ")
    )];
    let mut components = Vec::new();
    for role in [UNET, TEXT_ENCODER, TEXT_ENCODER_2] {
        let modules: Vec<_> = lora.modules().iter().filter(|module| module.role() == role).collect();
        if modules.is_empty() {
            continue;
        }
        let n_convolutions =
            modules.iter().filter(|m| m.shape().len() == 4 && m.shape()[2..] != [1, 1]).count();
        let ranks: BTreeSet<usize> = modules.iter().filter_map(|module| module.rank()).collect();
        let kinds: BTreeSet<&str> = modules.iter().map(|module| module.kind()).collect();
        let scales: BTreeSet<String> = modules.iter().map(|module| module.scale().to_string()).collect();
        let join = |texts: Vec<String>| texts.join(", ");
        lines.push(format!(
            "  {:<14} {:>4} modules ({n_convolutions} with a kernel), {}, rank {}, scale {}",
            role.to_string(),
            modules.len(),
            kinds.iter().copied().collect::<Vec<_>>().join(" and "),
            join(ranks.iter().map(ToString::to_string).collect()),
            join(scales.iter().cloned().collect())
        ));
        let modules: Vec<Value> = modules
            .iter()
            .map(|m| {
                json!({
                    "name": m.name(), "kind": m.kind(), "bias": m.is_bias(), "rank": m.rank(), "scale": m.scale(),
                    "shape": m.shape(),
                })
            })
            .collect();
        components.push(json!({ "name": role.to_string(), "ranks": ranks, "modules": modules }));
    }
    let words: Vec<&str> = lora.word_names().collect();
    if !words.is_empty() {
        lines.push(format!("  words          {}", words.join(", ")));
    }
    let value = json!({
        "kind": "lora", "path": lora.path(), "blake3": lora.digest(), "family": lora.family(), "naming": namings,
        "dtypes": dtypes, "components": components, "words": words,
    });
    (value, lines)
}

fn describe_port(port: &PortInfo) -> String {
    let shape: Vec<String> = port.shape.iter().map(ToString::to_string).collect();
    format!("{} {} [{}]", port.name, port.dtype, shape.join(", "))
}

fn describe_onnx(path: &Path) -> Result<(Value, Vec<String>), Failure> {
    let model = inspect_onnx(path)?;
    let opsets: Vec<String> =
        model.opsets.iter().map(|(domain, version)| format!("{domain} {version}")).collect();
    let n_nodes: usize = model.operators.values().sum();
    let mut lines = vec![
        format!("ONNX model {} ({}), by {}", path.display(), model.name, model.producer),
        format!("  opsets {}", opsets.join(", ")),
        format!("  {} weights outside the file, {}", model.n_external_weights, bytes(model.external_bytes)),
    ];
    lines.extend(model.inputs.iter().map(|port| format!("  in  {port}")));
    lines.extend(model.outputs.iter().map(|port| format!("  out {port}")));
    lines.push(format!("  {n_nodes} nodes"));
    lines.extend(model.operators.iter().map(|(name, n)| format!("    {n:>5} {name}")));
    Ok((json!({ "kind": "onnx", "path": path, "model": model }), lines))
}
