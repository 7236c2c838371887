//! What peft's configuration says of scales: in diffusers' header, or in `adapter_config.json` beside the file.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use kiln_bundle::stable_diffusion::{TEXT_ENCODER, TEXT_ENCODER_2};
use kiln_bundle::{ComponentName, TensorFile};
#[cfg(feature = "patterns")]
use regex::{Regex, RegexBuilder};
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::Value;

use crate::LoraError;
use crate::change::Cayley;

/// Where diffusers keeps peft's configuration in a file's header (`LORA_ADAPTER_METADATA_KEY`).
const ADAPTER_METADATA: &str = "lora_adapter_metadata";

/// peft's name of its configuration.
pub(crate) const ADAPTER_CONFIG: &str = "adapter_config.json";

/// Largest configuration that is read.
const MAX_BYTES: u64 = 16 << 20;

/// Most patterns of a kind: each module is compared with all of them.
const MAX_PATTERNS: usize = 1 << 12;

/// Most patterns that are more than names, and the size that each may compile to.
const MAX_EXPRESSIONS: usize = 512;
#[cfg(feature = "patterns")]
const MAX_EXPRESSION: usize = 1 << 18;

/// Folders above a file whose names may tell its component: its own, and one for the adapter's name.
const MAX_FOLDERS: usize = 2;

/// Settings without effect on the weights are not here; these change them in ways that are not supported.
const UNSUPPORTED: [&str; 4] = ["use_bdlora", "use_qalora", "alora_invocation_tokens", "layer_replication"];

/// Ways to start training that leave other base weights behind.
const CHANGED_BASES: [&str; 5] = ["pissa", "olora", "corda", "loftq", "lora_ga"];

/// A JSON object in the order of its text: of peft's patterns, the first that matches counts.
#[derive(Debug, Default)]
struct Map(Vec<(String, Setting)>);

#[derive(Debug, serde::Deserialize)]
#[serde(untagged)]
enum Setting {
    Map(Map),
    Value(Value),
}

impl<'de> Deserialize<'de> for Map {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Map, D::Error> {
        struct Entries;

        impl<'de> Visitor<'de> for Entries {
            type Value = Map;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Map, A::Error> {
                let mut map = Map::default();
                while let Some(entry) = entries.next_entry()? {
                    map.0.push(entry);
                }
                Ok(map)
            }
        }

        deserializer.deserialize_map(Entries)
    }
}

impl Map {
    fn get(&self, key: &str) -> Option<&Setting> {
        self.0.iter().rev().find(|(name, _)| name == key).map(|(_, setting)| setting)
    }

    /// Whether peft wrapped the class that only a second text encoder has, or a model of that name.
    fn of_second_encoder(&self) -> bool {
        let class = match self.get("auto_mapping") {
            Some(Setting::Map(mapping)) => mapping.value("base_model_class").and_then(Value::as_str),
            _ => None,
        };
        let base = self.value("base_model_name_or_path").and_then(Value::as_str).unwrap_or_default();
        class == Some("CLIPTextModelWithProjection")
            || base.split(['/', '\\']).any(|part| part == TEXT_ENCODER_2.as_str())
    }

    /// A setting that is not null.
    fn value(&self, key: &str) -> Option<&Value> {
        match self.get(key)? {
            Setting::Value(value) => Some(value).filter(|value| !value.is_null()),
            Setting::Map(_) => None,
        }
    }
}

/// What a configuration says of one module.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Scaling {
    alpha: Option<f64>,
    rank: Option<f64>,
    by_root: bool,
    /// Whether (IA)^3 scales the module's inputs.
    pub(crate) scales_inputs: bool,
    /// How OFT makes rotations.
    pub(crate) cayley: Cayley,
    /// Whether HRA makes its vectors orthogonal.
    pub(crate) orthogonal: bool,
}

impl Scaling {
    /// peft's `alpha / rank`, or over the rank's root; 1 where nothing is said.
    pub(crate) fn of(&self, rank: Option<usize>) -> Result<f64, String> {
        let Some(alpha) = self.alpha else { return Ok(1.0) };
        match rank.map(|rank| rank as f64).or(self.rank) {
            Some(rank) if self.by_root => Ok(alpha / rank.sqrt()),
            Some(rank) => Ok(alpha / rank),
            None => Err("has an alpha in its configuration, and no rank".into()),
        }
    }
}

/// A configuration, or one for each component.
#[derive(Debug, Default)]
pub(crate) struct Settings {
    /// By component, or by no name for all of them.
    components: BTreeMap<Option<String>, Component>,
    /// Whether it says that peft wrapped a second text encoder.
    of_second_encoder: bool,
}

#[derive(Debug, Default)]
struct Component {
    common: Scaling,
    alphas: Vec<(Pattern, f64)>,
    ranks: Vec<(Pattern, f64)>,
    inputs: Vec<Pattern>,
}

/// A pattern of module names, `(.*\.)?(pattern)$` as peft's `get_pattern_key` has it.
#[derive(Debug)]
enum Pattern {
    /// A name, in which a dot is any character; perhaps from the start.
    Name { name: String, anchored: bool },
    /// Anything else.
    Expression(Regex),
    /// The end of a name.
    End(String),
}

impl Pattern {
    fn new(pattern: &str) -> Result<Pattern, String> {
        let name = pattern.strip_prefix('^').unwrap_or(pattern);
        if name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'.') {
            return Ok(Pattern::Name { name: name.into(), anchored: pattern.starts_with('^') });
        }
        expression(&format!(r"^(?:.*\.)?(?:{pattern})$")).map(Pattern::Expression)
    }

    fn matches(&self, path: &str) -> bool {
        match self {
            Pattern::Expression(expression) => expression.is_match(path),
            Pattern::End(end) => path.ends_with(end.as_str()),
            Pattern::Name { name, anchored } => {
                let Some(start) = path.len().checked_sub(name.len()) else { return false };
                let (rest, end) = path.as_bytes().split_at(start);
                let is_same = end.iter().zip(name.bytes()).all(|(a, b)| b == b'.' || *a == b);
                is_same && (rest.is_empty() || !anchored && rest.ends_with(b"."))
            }
        }
    }
}

/// No regular expression can be made.
#[cfg(not(feature = "patterns"))]
#[derive(Debug)]
enum Regex {}

#[cfg(not(feature = "patterns"))]
impl Regex {
    fn is_match(&self, _text: &str) -> bool {
        match *self {}
    }
}

#[cfg(not(feature = "patterns"))]
fn expression(text: &str) -> Result<Regex, String> {
    Err(format!("pattern '{}' needs the feature 'patterns'", text.escape_debug()))
}

#[cfg(feature = "patterns")]
fn expression(text: &str) -> Result<Regex, String> {
    let expression = RegexBuilder::new(text).size_limit(MAX_EXPRESSION).build();
    expression.map_err(|_| format!("pattern '{}' is not supported", text.escape_debug()))
}

impl Settings {
    /// The configuration in a file's header.
    pub(crate) fn in_header(tensors: &TensorFile) -> Result<Settings, LoraError> {
        let Some(text) = tensors.metadata().get(ADAPTER_METADATA) else { return Ok(Settings::default()) };
        let refuse = |reason: String| LoraError::new(tensors.path(), format!("{ADAPTER_METADATA}: {reason}"));
        let all: Map = serde_json::from_str(text).map_err(|e| refuse(e.to_string()))?;
        let mut components: BTreeMap<Option<String>, Map> = BTreeMap::new();
        for (key, value) in all.0 {
            let Some((component, key)) = key.split_once('.') else { continue };
            components.entry(Some(component.into())).or_default().0.push((key.into(), value));
        }
        Settings::new(components).map_err(refuse)
    }

    /// The configuration beside a file, and its text, if there is one.
    pub(crate) fn beside(file: &Path) -> Result<Option<(Settings, Vec<u8>)>, LoraError> {
        let path = file.with_file_name(ADAPTER_CONFIG);
        if !path.is_file() {
            return Ok(None);
        }
        let refuse = |e: &dyn fmt::Display| LoraError::new(&path, e);
        let mut text = Vec::new();
        let opened = File::open(&path).map_err(|e| refuse(&e))?;
        opened.take(MAX_BYTES + 1).read_to_end(&mut text).map_err(|e| refuse(&e))?;
        if text.len() as u64 > MAX_BYTES {
            return Err(refuse(&format!("has more than {MAX_BYTES} bytes")));
        }
        let settings: Map = serde_json::from_slice(&text).map_err(|e| refuse(&e))?;
        let settings = Settings::new(BTreeMap::from([(None, settings)])).map_err(|e| refuse(&e))?;
        Ok(Some((settings, text)))
    }

    fn new(all: BTreeMap<Option<String>, Map>) -> Result<Settings, String> {
        let mut components = BTreeMap::new();
        let of_second_encoder =
            all.iter().any(|(name, settings)| name.is_none() && settings.of_second_encoder());
        for (name, settings) in all {
            let component = Component::new(&settings).map_err(|e| match &name {
                Some(name) => format!("{}: {e}", name.escape_debug()),
                None => e,
            })?;
            components.insert(name, component);
        }
        Ok(Settings { components, of_second_encoder })
    }

    /// The text encoder of a file's paths that name no component: the second one where the file lies in its folder or
    /// the configuration says so.
    pub(crate) fn encoder(&self, file: &Path) -> ComponentName {
        let mut folders = file.ancestors().skip(1).take(MAX_FOLDERS).filter_map(Path::file_name);
        match self.of_second_encoder || folders.any(|name| name == TEXT_ENCODER_2.as_str()) {
            true => TEXT_ENCODER_2,
            false => TEXT_ENCODER,
        }
    }

    /// What is said of a module, by its path in the component.
    pub(crate) fn of(&self, role: ComponentName, module: &str) -> Scaling {
        let role = role.to_string();
        let found = self.components.get(&Some(role.clone())).or_else(|| self.components.get(&None));
        let Some(component) = found else { return Scaling::default() };
        let path = module.strip_prefix("base_model.model.").unwrap_or(module);
        let path = path.strip_prefix(&format!("{role}.")).unwrap_or(path);
        component.of(path)
    }
}

impl Component {
    fn new(settings: &Map) -> Result<Component, String> {
        let setting = |key: &str| settings.value(key);
        let refuse = |key: &str, value: &Value| format!("{key}: {} is not supported", shown(value));
        for key in UNSUPPORTED {
            if let Some(value) = setting(key).filter(|value| **value != Value::Bool(false)) {
                return Err(refuse(key, value));
            }
        }
        let start = setting("init_lora_weights").and_then(Value::as_str).unwrap_or("");
        if CHANGED_BASES.iter().any(|name| start.starts_with(name)) {
            return Err(format!("init_lora_weights: {start} changes the base, and is not supported"));
        }
        let number = |key: &str| match setting(key) {
            Some(value) => value.as_f64().map(Some).ok_or_else(|| refuse(key, value)),
            None => Ok(None),
        };
        let common = Scaling {
            alpha: number("lora_alpha")?.or(number("alpha")?),
            rank: number("r")?,
            by_root: setting("use_rslora") == Some(&Value::Bool(true)),
            scales_inputs: false,
            cayley: Cayley::of(&number, setting)?,
            orthogonal: setting("apply_GS") == Some(&Value::Bool(true)),
        };
        let mut left = MAX_EXPRESSIONS;
        Ok(Component {
            common,
            alphas: patterns(settings, "alpha_pattern", &mut left)?,
            ranks: patterns(settings, "rank_pattern", &mut left)?,
            inputs: ends(setting("feedforward_modules"))?,
        })
    }

    fn of(&self, path: &str) -> Scaling {
        let first = |patterns: &[(Pattern, f64)]| {
            patterns.iter().find(|(pattern, _)| pattern.matches(path)).map(|(_, number)| *number)
        };
        Scaling {
            alpha: first(&self.alphas).or(self.common.alpha),
            rank: first(&self.ranks).or(self.common.rank),
            scales_inputs: self.inputs.iter().any(|pattern| pattern.matches(path)),
            ..self.common
        }
    }
}

impl Cayley {
    /// What peft's `OFTConfig` says, and its defaults where it says nothing.
    fn of<'a>(
        number: &impl Fn(&str) -> Result<Option<f64>, String>,
        setting: impl Fn(&str) -> Option<&'a Value>,
    ) -> Result<Cayley, String> {
        const MOST_TERMS: f64 = 64.0;
        let default = Cayley::default();
        let terms = number("num_cayley_neumann_terms")?;
        if let Some(terms) = terms.filter(|terms| !(1.0..=MOST_TERMS).contains(terms)) {
            return Err(format!("num_cayley_neumann_terms: {terms} is not a number from 1 to {MOST_TERMS}"));
        }
        let terms = terms.map(|terms| terms as u32).or(default.terms);
        let is = |key: &str| setting(key) == Some(&Value::Bool(true));
        let eps = number("eps")?.unwrap_or(6e-5);
        Ok(Cayley {
            terms: terms.filter(|_| setting("use_cayley_neumann") != Some(&Value::Bool(false))),
            bound: is("coft").then_some(eps),
        })
    }
}

fn patterns(settings: &Map, key: &str, left: &mut usize) -> Result<Vec<(Pattern, f64)>, String> {
    let mut found = Vec::new();
    let Some(Setting::Map(patterns)) = settings.get(key) else { return Ok(found) };
    check_number(key, patterns.0.len())?;
    for (pattern, value) in &patterns.0 {
        let number = match value {
            Setting::Value(value) => value.as_f64(),
            Setting::Map(_) => None,
        };
        let number = number.ok_or_else(|| format!("{key}: '{}' has no number", pattern.escape_debug()))?;
        let pattern = Pattern::new(pattern).map_err(|e| format!("{key}: {e}"))?;
        if matches!(pattern, Pattern::Expression(_)) {
            *left = left.checked_sub(1).ok_or(format!("{key}: more than {MAX_EXPRESSIONS} expressions"))?;
        }
        found.push((pattern, number));
    }
    Ok(found)
}

fn check_number(key: &str, n_patterns: usize) -> Result<(), String> {
    match n_patterns <= MAX_PATTERNS {
        true => Ok(()),
        false => Err(format!("{key}: {n_patterns} patterns are more than {MAX_PATTERNS}")),
    }
}

/// peft's `feedforward_modules`: ends of names, or one expression for whole names.
fn ends(value: Option<&Value>) -> Result<Vec<Pattern>, String> {
    match value {
        Some(Value::String(text)) => {
            let whole =
                expression(&format!("^(?:{text})$")).map_err(|e| format!("feedforward_modules: {e}"))?;
            Ok(vec![Pattern::Expression(whole)])
        }
        Some(Value::Array(names)) => {
            check_number("feedforward_modules", names.len())?;
            Ok(names.iter().filter_map(Value::as_str).map(|name| Pattern::End(name.into())).collect())
        }
        _ => Ok(Vec::new()),
    }
}

/// The beginning of a value.
fn shown(value: &Value) -> String {
    value.to_string().chars().take(80).collect()
}

/// peft's configuration beside a file that may be in a folder of its own.
pub(crate) fn file_in(folder: &Path) -> Result<PathBuf, LoraError> {
    const NAMES: [&str; 2] = ["adapter_model.safetensors", "pytorch_lora_weights.safetensors"];
    const PICKLED: [&str; 2] = ["adapter_model.bin", "pytorch_lora_weights.bin"];
    let find = |names: [&str; 2]| names.iter().map(|name| folder.join(name)).find(|path| path.is_file());
    // What is pickled is refused by its name.
    find(NAMES).or_else(|| find(PICKLED)).ok_or_else(|| {
        let error = LoraError::new(folder, format!("holds no {} and no {}", NAMES[0], NAMES[1]));
        error.with_hint(Some("give a file of the folder, or the folder that peft or diffusers saved"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_as_pefts_do() {
        let module = "down_blocks.0.attentions.0.to_q";
        for (pattern, is_match) in [
            ("to_q", true),
            ("attentions.0.to_q", true),
            ("attentions_0.to_q", false),
            ("q", false),
            ("^to_q", false),
            ("^down_blocks.0.attentions.0.to_q", true),
            (r"attentions\.\d\.to_(q|k)", true),
            (r".*\.to_q", true),
            ("down_blocks.*", true),
            ("to_q|to_k", true),
            ("to_v|to_k", false),
        ] {
            assert_eq!(Pattern::new(pattern).expect(pattern).matches(module), is_match, "{pattern}");
        }
        assert!(Pattern::new("(?=x)").is_err() && Pattern::new("(").is_err());
    }

    #[test]
    fn each_module_is_compared_with_some_patterns_at_most() {
        let names = |n: usize| (0..n).map(|i| format!("m{i}"));
        let patterns: serde_json::Map<String, Value> = names(5000).map(|name| (name, 2.into())).collect();
        let feedforward: Vec<String> = names(5000).collect();
        for (key, value) in
            [("rank_pattern", Value::from(patterns)), ("feedforward_modules", feedforward.into())]
        {
            let settings = serde_json::from_value(serde_json::json!({ key: value })).expect("a map");
            let error = Component::new(&settings).expect_err("refused");
            assert_eq!(error, format!("{key}: 5000 patterns are more than 4096"));
        }
    }

    #[test]
    fn the_first_pattern_that_matches_counts() {
        let text = r#"{"r": 8, "lora_alpha": 4, "alpha_pattern": {"to_q": 2, "0.to_q": 3}, "rank_pattern": {"to_q": 16},
            "use_rslora": true}"#;
        let settings: Map = serde_json::from_str(text).expect("JSON");
        let component = Component::new(&settings).expect("settings");
        assert_eq!(component.of("a.to_q").of(Some(16)), Ok(0.5));
        assert_eq!(component.of("a.to_k").of(Some(16)), Ok(1.0));
        assert_eq!(component.of("a.to_q").of(None), Ok(0.5), "a whole factor has the configuration's rank");
    }
}
