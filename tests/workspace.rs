//! What the workspace promises about itself.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::Command;

/// Crates that `package` is built from, by name.
#[track_caller]
fn dependencies(package: &str) -> String {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
    let output = Command::new(cargo)
        .args(["tree", "--package", package, "--edges", "normal,build", "--prefix", "none", "--offline"])
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("UTF-8")
}

#[test]
fn the_runtime_is_built_without_tracer_and_compiler() {
    let tree = dependencies("kiln-runtime");
    assert!(tree.contains("kiln-engine "), "{tree}");
    for never in ["kiln-graph ", "kiln-nets ", "kiln-compile ", "kiln-cli ", "prost ", "zip "] {
        assert!(!tree.contains(never), "kiln-runtime depends on {never}");
    }
}

#[test]
fn networks_know_neither_files_nor_engines() {
    let tree = dependencies("kiln-nets");
    for never in ["kiln-engine ", "kiln-bundle ", "kiln-compile ", "safetensors ", "ort "] {
        assert!(!tree.contains(never), "kiln-nets depends on {never}");
    }
}

#[test]
fn loras_know_neither_networks_nor_engines() {
    let tree = dependencies("kiln-lora");
    for never in ["kiln-graph ", "kiln-nets ", "kiln-engine ", "kiln-runtime ", "kiln-compile "] {
        assert!(!tree.contains(never), "kiln-lora depends on {never}");
    }
}

/// What each module of the folder, with all that is below it, names of the others.
fn uses(source: &Path) -> BTreeMap<String, BTreeSet<String>> {
    let mut uses: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for entry in fs::read_dir(source).expect("a folder") {
        let path = entry.expect("an entry").path();
        let module = path.file_stem().expect("a name").to_string_lossy().into_owned();
        let mut text = String::new();
        read(&path, &mut text);
        uses.entry(module).or_default().extend(named(&text));
    }
    let modules: BTreeSet<String> = uses.keys().cloned().collect();
    for (module, names) in &mut uses {
        names.retain(|name| name != module && modules.contains(name));
    }
    uses
}

fn read(path: &Path, text: &mut String) {
    match path.is_dir() {
        false => text.push_str(&fs::read_to_string(path).expect("a source file")),
        true => {
            let entries = fs::read_dir(path).expect("a folder");
            entries.for_each(|entry| read(&entry.expect("an entry").path(), text));
        }
    }
}

/// The first names of all paths that begin with `crate::`.
fn named(text: &str) -> Vec<String> {
    let identifier = |text: &str| text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
    let code: String = text.lines().map(|line| line.split("//").next().unwrap_or_default()).collect();
    let after = code.split("crate::").skip(1);
    after
        .flat_map(|rest| match rest.strip_prefix('{') {
            None => vec![identifier(rest)],
            Some(group) => {
                let (mut depth, mut names) = (0, vec![String::new()]);
                for c in group.chars() {
                    match c {
                        '{' => depth += 1,
                        '}' if depth == 0 => break,
                        '}' => depth -= 1,
                        ',' if depth == 0 => names.push(String::new()),
                        c if depth == 0 => names.last_mut().expect("a name").push(c),
                        _ => {}
                    }
                }
                names.iter().map(|name| identifier(name.trim())).collect()
            }
        })
        .collect()
}

/// Modules without those that use nothing of the rest, over and over: what is left goes in circles.
fn in_circles(mut uses: BTreeMap<String, BTreeSet<String>>) -> BTreeMap<String, BTreeSet<String>> {
    loop {
        let done: Vec<String> =
            uses.iter().filter(|(_, names)| names.is_empty()).map(|(name, _)| name.clone()).collect();
        if done.is_empty() {
            return uses;
        }
        uses.retain(|name, _| !done.contains(name));
        uses.values_mut().for_each(|names| names.retain(|name| !done.contains(name)));
    }
}

#[test]
fn modules_do_not_import_each_other_in_circles() {
    let found = named("use crate::{a, b::{c, d}, e::f}; crate::g::h(); // crate::i");
    assert_eq!(found, ["a", "b", "e", "g"]);
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let circles = in_circles(uses(&source));
    assert!(circles.is_empty(), "{circles:?}");
}
