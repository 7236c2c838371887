//! The tutorials, command by command.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use crate::capi;
use crate::cli::{pixels, succeed};
use crate::fixtures::{onnxruntime, scratch};
use crate::support::references;

/// The blocks of a language in a document.
fn blocks(document: &str, language: &str) -> Vec<String> {
    let path = references().join("../../docs").join(document);
    let text = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let parts = text.split("\n```").skip(1).step_by(2);
    let blocks = parts.filter_map(|part| Some(part.strip_prefix(language)?.strip_prefix('\n')?.to_owned()));
    blocks.collect()
}

/// Runs all commands of a tutorial in one shell, in a folder that looks like a checkout to them.
fn follow(document: &str, n_blocks: usize, folder: &Path) {
    // Fetches the library that the command looks for, where this machine has none.
    onnxruntime();
    let blocks = blocks(document, "sh");
    assert_eq!(blocks.len(), n_blocks, "{document}");
    symlink(references().join("../../models"), folder.join("models")).expect("a link");
    symlink(env!("CARGO_BIN_EXE_kiln"), folder.join("kiln")).expect("a link");
    let path = format!("{}:{}", folder.display(), std::env::var("PATH").unwrap_or_default());
    // Whatever fails, no server stays behind.
    let script = format!("set -eux\ntrap 'kill $(jobs -p) 2>/dev/null || true' EXIT\n{}", blocks.join("\n"));
    let mut shell = Command::new("timeout");
    shell.args(["300", "bash", "-c"]).arg(script).current_dir(folder).env("PATH", path);
    succeed(
        shell.env("KILN_ENGINE_CACHE", folder.join("engines")).env("KILN_SERVE_STATE", folder.join("state")),
    );
}

#[test]
fn a_first_engine_is_built() {
    let folder = scratch();
    follow("tutorial-engines.md", 7, folder.path());
    assert_eq!(pixels(&folder.path().join("circle.png")).len(), 64 * 64 * 3);
}

#[test]
fn a_first_server_draws() {
    let folder = scratch();
    follow("tutorial-server.md", 6, folder.path());
    assert_eq!(pixels(&folder.path().join("by-job.png")).len(), 64 * 64 * 3);
    let refused = fs::read_to_string(folder.path().join("refused.json")).expect("an answer");
    assert!(refused.contains("steps: 51"), "{refused}");
}

#[test]
fn three_boxes_draw_what_one_does() {
    let folder = scratch();
    symlink(crate::fleet::nats_server(), folder.path().join("nats-server")).expect("a link");
    follow("tutorial-fleet.md", 7, folder.path());
}

#[test]
fn a_first_program_in_c_draws() {
    let folder = scratch();
    let blocks = blocks("tutorial-programs.md", "c");
    assert!(blocks.len() == 1 && blocks[0].lines().count() < 60);
    let source = folder.path().join("first.c");
    fs::write(&source, &blocks[0]).expect("a file");
    succeed(capi::program("cc", &source, &["-std=c11"], folder.path()).arg(capi::bundle()));
    assert_eq!(pixels(&folder.path().join("by-c.png")).len(), 64 * 64 * 3);
}
