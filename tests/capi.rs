//! The C library as programs in C and C++ have it.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;

use tempfile::TempDir;

use crate::cli::{kiln, measuring_kiln, pixels, succeed};
use crate::families::Family;
use crate::fixtures::{onnxruntime, scratch};
use crate::support::references;

fn source(path: &str) -> PathBuf {
    references().join("../../crates/kiln-capi").join(path)
}

/// Where the library is installed.
fn prefix() -> &'static Path {
    static PREFIX: LazyLock<TempDir> = LazyLock::new(|| {
        let (folder, program) = (scratch(), std::env::current_exe().expect("this binary"));
        let built = program.parent().expect("a folder");
        succeed(Command::new("sh").arg(source("install.sh")).arg(built).arg(folder.path()));
        folder
    });
    PREFIX.path()
}

/// A program that is linked with the installed library.
pub(crate) fn program(compiler: &str, source: &Path, flags: &[&str], folder: &Path) -> Command {
    let (binary, prefix) = (folder.join("program"), prefix());
    let mut command = Command::new(compiler);
    command.args(["-Wall", "-Wextra", "-Werror", "-pedantic", "-g"]).args(flags).arg(source);
    command.arg(format!("-I{}", prefix.join("include").display()));
    command.arg(format!("-L{}", prefix.join("lib").display()));
    succeed(command.args(["-lkiln", "-lpthread", "-o"]).arg(&binary));
    let mut command = Command::new(binary);
    command.current_dir(folder).env("LD_LIBRARY_PATH", prefix.join("lib"));
    command
}

/// The small model's bundle, measured.
pub(crate) fn bundle() -> &'static str {
    static BUNDLE: LazyLock<(TempDir, String)> = LazyLock::new(|| {
        // Fetches the library that programs look for, where this machine has none.
        onnxruntime();
        let folder = scratch();
        let shapes = references().join("../../models/shapes").display().to_string();
        let bundle = succeed(&mut measuring_kiln(&["compile", &shapes], folder.path())).trim().to_owned();
        (folder, bundle)
    });
    &BUNDLE.1
}

#[test]
fn the_example_in_c_draws_what_the_command_draws() {
    let work = scratch();
    let bundle = bundle();
    let mut draw = program("cc", &source("examples/draw.c"), &["-std=c11"], work.path());
    let output = draw.args([bundle, "a red circle", "by-c.png"]).output().expect("it runs");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && said.contains("step 20 of 20"), "{said}");
    let by_command = [
        "generate",
        "a red circle",
        "--model",
        bundle,
        "--seed",
        "7",
        "--steps",
        "20",
        "--out",
        "by-command.png",
    ];
    succeed(&mut kiln(&by_command, work.path()));
    let [by_c, by_command] = ["by-c.png", "by-command.png"].map(|name| pixels(&work.path().join(name)));
    assert!(by_c == by_command);

    let mut refused = Command::new(draw.get_program());
    refused.current_dir(work.path()).env("LD_LIBRARY_PATH", prefix().join("lib"));
    let output = refused.args(["/no/such/bundle", "x", "x.png"]).output().expect("it runs");
    assert_eq!(output.status.code(), Some(3), "{}", String::from_utf8_lossy(&output.stderr));
    let length = std::fs::read_to_string(source("examples/draw.c")).expect("a source").lines().count();
    assert!(length < 60, "{length} lines");
}

#[test]
fn the_example_in_cpp_stops_and_draws_again() {
    let work = scratch();
    let bundle = bundle();
    let mut stop = program("c++", &source("examples/stop.cpp"), &["-std=c++17"], work.path());
    assert_eq!(succeed(stop.arg(bundle)), "stopped: yes\ndrawn: 64x64\n");
}

#[test]
fn the_interface_keeps_its_promises() {
    let work = scratch();
    let bundle = bundle();
    let mut contract = program("cc", &source("contract/contract.c"), &["-std=c11"], work.path());
    let output = contract.args([bundle, "200"]).output().expect("it runs");
    let [said, errors] = [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text));
    assert!(output.status.success(), "{errors}");
    assert!(said.lines().count() == 9 && said.lines().all(|line| line.starts_with("ok: ")), "{said}");
    assert_eq!(errors, "", "the library prints nothing");
}

#[test]
fn what_programs_are_given_lies_where_the_header_says() {
    let work = scratch();
    let bundle = bundle();
    let flags = ["-std=c11", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"];
    let mut contract = program("cc", &source("contract/contract.c"), &flags, work.path());
    // Leaks are counted as growth: its own count needs to trace the process, which containers forbid.
    contract.env("ASAN_OPTIONS", "detect_leaks=0:detect_stack_use_after_return=1");
    succeed(contract.args([bundle, "4"]));
}

#[test]
fn controlnets_and_embeddings_are_the_commands() {
    onnxruntime();
    let (family, other, work) = (Family::new("controlnet"), Family::new("taesd"), scratch());
    let shown = |path: PathBuf| path.display().to_string();
    let (model, net) = (shown(other.folder.path().into()), shown(family.folder.path().join("controlnet")));
    let [model, net] = [model, net].map(|path| succeed(&mut kiln(&["compile", &path], work.path())));
    let (bundle, net, word) = (model.trim(), net.trim(), shown(work.path().join("word.safetensors")));
    embedding(Path::new(&word));
    crate::tasks::save_picture(&work.path().join("in.png"));
    let prompt = "a <blob> circle";
    let by_command = [
        "generate",
        prompt,
        "--model",
        bundle,
        "--controlnet",
        net,
        "--embedding",
        &word,
        "--control-image",
        "in.png",
        "--steps",
        "2",
        "--seed",
        "1",
        "--out",
        "by-command.png",
    ];
    succeed(&mut kiln(&by_command, work.path()));
    let mut companions = program("cc", &source("contract/companions.c"), &["-std=c11"], work.path());
    let said = succeed(companions.args([bundle, net, &word, prompt, "by-c.png"]));
    assert!(said.contains("control image: 2 of them for 1 ControlNets"), "{said}");
    let [by_c, by_command] = ["by-c.png", "by-command.png"].map(|name| pixels(&work.path().join(name)));
    assert!(by_c == by_command);
}

/// A textual inversion for the families' small text encoder.
fn embedding(path: &Path) {
    let values: Vec<u8> = (0..32).flat_map(|i| (i as f32 / 16.0 - 1.0).to_le_bytes()).collect();
    let view = safetensors::tensor::TensorView::new(safetensors::Dtype::F32, vec![1, 32], &values);
    let tensors = [("<blob>", view.expect("a tensor"))];
    safetensors::serialize_to_file(tensors, None, path).expect("a file");
}
