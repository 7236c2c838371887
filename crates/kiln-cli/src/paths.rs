//! Where things are unless the user says otherwise.

use std::env;
use std::path::{Path, PathBuf};

use crate::args::CacheArgs;
use crate::failure::Failure;

/// The model that pictures are drawn with by default.
const SMALL_MODEL: &str = "models/shapes";

/// The checkout that the working folder lies in.
fn checkout() -> Option<PathBuf> {
    let here = env::current_dir().ok()?;
    let is_checkout = |folder: &&Path| {
        folder.join("engine-cache/README.md").is_file() && folder.join("crates/kiln-cli").is_dir()
    };
    here.ancestors().find(is_checkout).map(Path::to_path_buf)
}

/// The folder for engines: `--engine-cache`, `KILN_ENGINE_CACHE`, a checkout's `engine-cache/`, the platform's cache folder.
pub(crate) fn engine_cache(args: &CacheArgs) -> Result<PathBuf, Failure> {
    if let Some(folder) = args.engine_cache.as_ref().filter(|folder| !folder.as_os_str().is_empty()) {
        return Ok(folder.clone());
    }
    match checkout() {
        Some(checkout) => Ok(checkout.join("engine-cache")),
        None => Ok(kiln_native::cache_dir()?.join("engines")),
    }
}

/// Refuses files that could not be written once they are made.
pub(crate) fn check_outputs(files: &[PathBuf]) -> Result<(), Failure> {
    let Some(first) = files.first() else { return Ok(()) };
    let Some(folder) = first.parent().filter(|_| first.file_name().is_some()) else {
        return Err(Failure::usage(format!("{}: is not the name of a file", first.display())));
    };
    if !(folder.as_os_str().is_empty() || folder.is_dir()) {
        return Err(Failure::usage(format!("{}: no such folder", folder.display())));
    }
    if let Some(file) = files.iter().find(|file| file.exists() && !file.is_file()) {
        return Err(Failure::usage(format!("{}: is not a regular file", file.display())));
    }
    kiln_bundle::fs::check_writable(folder).map_err(Failure::writing)
}

pub(crate) fn model(named: Option<&PathBuf>) -> Result<PathBuf, Failure> {
    if let Some(folder) = named {
        return Ok(folder.clone());
    }
    let small = checkout().map(|checkout| checkout.join(SMALL_MODEL));
    small.filter(|folder| folder.join("model_index.json").is_file()).ok_or_else(|| {
        Failure::usage("no --model given, and this is not a checkout of kiln with models/shapes").with_hint(
            "--model takes a checkpoint, as a diffusers folder or one .safetensors file, or a bundle",
        )
    })
}
