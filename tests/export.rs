//! Bundles as the models of other servers.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::cli::{fail, kiln, succeed};
use crate::fixtures::scratch;
use crate::support::references;

fn bundle(folder: &Path) -> String {
    let shapes = references().join("../../models/shapes").display().to_string();
    succeed(&mut kiln(&["compile", &shapes], folder)).trim().to_owned()
}

/// Files and folders below a folder.
fn below(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path());
    entries
        .flat_map(|path| if path.is_dir() { [below(&path), vec![path]].concat() } else { vec![path] })
        .collect()
}

#[test]
fn a_repository_of_triton_holds_the_bundle_and_its_configuration() {
    let folder = scratch();
    let bundle = bundle(folder.path());
    let export = |more: &[&str]| {
        kiln(
            &[&["export", "triton", &bundle, "--out", "models", "--name", "shapes"], more].concat(),
            folder.path(),
        )
    };
    let options = ["--threads", "2", "--batch", "4", "--memory-budget", "1GiB"];
    assert_eq!(succeed(&mut export(&options)), "models/shapes\n");
    let model = folder.path().join("models/shapes");
    let configuration = fs::read_to_string(model.join("config.pbtxt")).expect("a configuration");
    for line in [
        "name: \"shapes\"",
        "backend: \"kiln\"",
        "  { name: \"steps\", data_type: TYPE_INT32, dims: [ 1 ], optional: true },",
        "parameters { key: \"threads\", value: { string_value: \"2\" } }",
        "parameters { key: \"batch\", value: { string_value: \"4\" } }",
        "parameters { key: \"memory_budget_bytes\", value: { string_value: \"1073741824\" } }",
    ] {
        assert!(configuration.lines().any(|other| other == line), "{line}: {configuration}");
    }
    let exported = model.join("1").display().to_string();
    succeed(&mut kiln(&["inspect", &exported, "--verify"], folder.path()));
    // The engine cache is its owner's alone, and a server is another user.
    for path in below(&model) {
        let mode = fs::metadata(&path).expect("a file").permissions().mode();
        assert!(mode & 0o044 == 0o044, "{}: {mode:o}", path.display());
    }

    let refused = fail(&mut export(&[]), 2, "exists and is not empty");
    assert!(String::from_utf8_lossy(&refused.stderr).contains("models/shapes"));
    for name in ["../up", "a b", ""] {
        let out = ["export", "triton", &bundle, "--out", "models", "--name", name];
        fail(&mut kiln(&out, folder.path()), 2, "name: ");
    }
    assert_eq!(fs::read_dir(folder.path().join("models")).expect("a folder").count(), 1);
    let missing = ["export", "triton", "/no/such/bundle", "--out", "other"];
    fail(&mut kiln(&missing, folder.path()), 3, "/no/such/bundle");
    assert!(!folder.path().join("other").exists());
}

#[test]
fn guides_and_helps_of_commands_are_shown() {
    let folder = scratch();
    let help = |words: &[&str]| kiln(&[&["help"], words].concat(), folder.path());
    assert!(succeed(&mut help(&["memory"])).starts_with("# Memory\n"));
    assert!(succeed(&mut help(&["bundle", "pack"])).contains("--level"));
    let all = succeed(&mut help(&[]));
    assert_eq!(all.trim(), succeed(&mut kiln(&["--help"], folder.path())).trim());
    let topics = all.split("Topics of kiln help:\n").nth(1).expect("topics").split("\n\n").next().unwrap_or("");
    for topic in topics.lines().filter_map(|line| line.split_whitespace().next()) {
        assert!(succeed(&mut help(&[topic])).starts_with("# "), "{topic}");
    }
    fail(&mut help(&["nothing"]), 2, "help: 'nothing' is neither a command nor a topic");
}
