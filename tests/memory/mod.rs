//! What pipelines hold in memory, and that spending less of it changes nothing else.

mod bench;
mod growth;
mod plan;
mod policies;
mod slicing;
mod tiling;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;

use kiln_runtime::Bundle;
use tempfile::TempDir;

use crate::cli::{measuring_kiln, succeed};
use crate::fixtures::{onnxruntime, scratch};
use crate::support::references;

/// The small model in segments of a megabyte, measured when it was compiled.
fn small() -> PathBuf {
    static FOLDER: LazyLock<(TempDir, PathBuf)> = LazyLock::new(|| {
        onnxruntime();
        let work = scratch();
        let model = references().join("../../models/shapes").display().to_string();
        let args = ["compile", &model, "--segment-size", "1MiB"];
        let bundle = PathBuf::from(succeed(&mut measuring_kiln(&args, work.path())).trim());
        (work, bundle)
    });
    FOLDER.1.clone()
}

fn open_small() -> Bundle {
    Bundle::open(small()).expect("a bundle")
}

/// Arguments that draw a picture of the small model.
fn draw<'a>(model: &'a str, out: &'a Path) -> Vec<&'a str> {
    let out = out.to_str().expect("a path of text");
    vec!["generate", "a red circle", "--model", model, "--seed", "1", "--steps", "12", "--out", out]
}

/// Runs an ignored test of this binary in a process of its own, whose memory nobody else uses.
#[track_caller]
fn by_itself(test: &str) {
    let program = std::env::current_exe().expect("this binary");
    let run = Command::new(program).args(["--exact", test, "--ignored", "--nocapture"]).output();
    let output = run.expect("another process");
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains("1 passed"), "{said}");
}
