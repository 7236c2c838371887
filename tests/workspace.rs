//! What the workspace promises about itself.

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
