//! That modules of a crate do not import each other in circles, whichever way the names go.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

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
