//! That modules of a crate do not import each other in circles, whichever way the names go.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

/// What each module of the folder, with all that is below it, names of the others.
fn uses(source: &Path, given_on: &BTreeMap<String, String>) -> BTreeMap<String, BTreeSet<String>> {
    let mut uses: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for entry in fs::read_dir(source).expect("a folder") {
        let path = entry.expect("an entry").path();
        let module = path.file_stem().expect("a name").to_string_lossy().into_owned();
        let mut text = String::new();
        read(&path, &mut text);
        let names = named(&text).into_iter().map(|name| given_on.get(&name).cloned().unwrap_or(name));
        uses.entry(module).or_default().extend(names);
    }
    // The root gives names on, and uses all modules.
    uses.retain(|module, _| !["lib", "main"].contains(&module.as_str()));
    let modules: BTreeSet<String> = uses.keys().cloned().collect();
    for (module, names) in &mut uses {
        names.retain(|name| name != module && modules.contains(name));
    }
    uses
}

fn read(path: &Path, text: &mut String) {
    match path.is_dir() {
        false if path.extension().is_some_and(|ending| ending == "rs") => {
            text.push_str(&fs::read_to_string(path).expect("a source file"));
        }
        false => {}
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

/// The module that each name comes from that the crate's root gives on.
fn given_on(root: &str) -> BTreeMap<String, String> {
    let mut modules = BTreeMap::new();
    for item in root.split("pub use ").skip(1) {
        let item = item.split(';').next().unwrap_or_default();
        let Some((module, names)) = item.split_once("::") else { continue };
        let names = names.trim_matches(['{', '}']).split(',');
        let last = |path: &str| path.rsplit("::").next().unwrap_or_default().trim().to_owned();
        modules.extend(names.map(|name| (last(name), module.to_owned())));
    }
    modules
}

#[track_caller]
fn check(package: &str, root: &str) {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(package).join("src");
    let given_on = given_on(&fs::read_to_string(source.join(root)).expect("a crate's root"));
    let circles = in_circles(uses(&source, &given_on));
    assert!(circles.is_empty(), "{package}: {circles:?}");
}

#[test]
fn names_are_found_wherever_they_come_from() {
    let found = named("use crate::{a, b::{c, d}, e::f}; crate::g::h(); // crate::i");
    assert_eq!(found, ["a", "b", "e", "g"]);
    let given =
        given_on("pub use error::{Error, ErrorKind};\npub use memory::process as other;\npub use a::b::C;");
    assert_eq!(given.get("ErrorKind").map(String::as_str), Some("error"));
    assert_eq!(given.get("C").map(String::as_str), Some("a"));
}

#[test]
fn modules_do_not_import_each_other_in_circles() {
    check("kiln-cli", "main.rs");
    check("kiln-compile", "lib.rs");
    check("kiln-runtime", "lib.rs");
}
