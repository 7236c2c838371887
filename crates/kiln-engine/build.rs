//! Tells the crate which release of rten it is built with: rten has no constant that says so.

use std::path::{Path, PathBuf};
use std::{env, fs};

fn main() {
    let folder = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("Cargo sets it"));
    // The workspace's lock file, or the one that Cargo puts into a package.
    let lock = folder.ancestors().map(|folder| folder.join("Cargo.lock")).find(|lock| lock.is_file());
    let lock = lock.expect("kiln-engine is built with a Cargo.lock in its folder or above it");
    let release = release(&lock).expect("Cargo.lock lists rten");
    println!("cargo:rerun-if-changed={}", lock.display());
    println!("cargo:rustc-env=KILN_RTEN_RELEASE={release}");
}

/// Major and minor version of rten, which is as much as the dependency fixes: whoever depends on a published kiln-engine may
/// have another patch than its lock file.
fn release(lock: &Path) -> Option<String> {
    let text = fs::read_to_string(lock).ok()?;
    let (_, entry) = text.split_once("name = \"rten\"\n")?;
    let version = entry.lines().next()?.strip_prefix("version = \"")?.trim_end_matches('"');
    let (release, _patch) = version.rsplit_once('.')?;
    Some(release.to_owned())
}
