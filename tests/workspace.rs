//! What the workspace promises about itself.

use std::collections::BTreeSet;
use std::process::Command;

/// Crates that `package` is built from, by name.
#[track_caller]
fn dependencies(package: &str) -> String {
    tree(&["--package", package, "--edges", "normal,build"])
}

#[track_caller]
fn tree(arguments: &[&str]) -> String {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
    let output = Command::new(cargo)
        .args(["tree", "--prefix", "none", "--offline"])
        .args(arguments)
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

/// What an application compiles that runs kiln on one backend.
#[track_caller]
fn with_one_backend(backend: &str) -> String {
    tree(&["--package", "kiln-runtime", "--no-default-features", "--features", backend, "--edges", "normal"])
}

#[test]
fn who_wants_one_backend_compiles_no_other() {
    let cuda = ["cudarc ", "kiln-cuda ", "kiln-trt "];
    for (backend, others) in [("onnxruntime", ["rten ", "rten-tensor "]), ("rten", ["ort ", "ort-sys "])] {
        let tree = with_one_backend(backend);
        assert!(tree.contains("kiln-engine "), "{tree}");
        for never in cuda.into_iter().chain(others) {
            let found = tree.lines().any(|line| line.starts_with(never));
            assert!(!found, "kiln-runtime with {backend} depends on {never}");
        }
    }
}

#[test]
fn the_runtime_depends_on_few_crates() {
    let tree = with_one_backend("onnxruntime");
    let lines: BTreeSet<&str> = tree.lines().collect();
    assert!(lines.len() <= 145, "{} lines:\n{tree}", lines.len());
}
