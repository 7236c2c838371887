//! Where things are unless the user says otherwise.

use std::collections::BTreeSet;
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
    files.iter().try_for_each(|file| check_file(file))?;
    let folders: BTreeSet<PathBuf> = files.iter().map(|file| folder(file)).collect::<Result<_, _>>()?;
    folders.iter().try_for_each(|folder| kiln_bundle::fs::check_writable(folder).map_err(Failure::writing))
}

fn check_file(file: &Path) -> Result<(), Failure> {
    let refuse = |reason: &str| Err(Failure::usage(format!("{}: {reason}", file.display())));
    if file.as_os_str() == "-" {
        return refuse("is no file, and files are not written to standard output")
            .map_err(|failure| failure.with_hint("./- is a file of that name"));
    }
    if file.file_name().is_none() {
        return refuse("is not the name of a file");
    }
    let folder = folder(file)?;
    if !(folder.as_os_str().is_empty() || folder.is_dir()) {
        return Err(Failure::usage(format!("{}: no such folder", folder.display())));
    }
    match file.exists() && !file.is_file() {
        true => refuse("is not a regular file"),
        false => Ok(()),
    }
}

/// The folder that a file is written to.
fn folder(file: &Path) -> Result<PathBuf, Failure> {
    let target = kiln_bundle::fs::follow(file);
    let target = target.map_err(|e| Failure::usage(format!("{}: {e}", file.display())))?;
    Ok(target.parent().map(Path::to_path_buf).unwrap_or_default())
}

pub(crate) fn model(named: Option<&PathBuf>) -> Result<PathBuf, Failure> {
    if let Some(folder) = named {
        return Ok(folder.clone());
    }
    let places = [checkout(), installed()].into_iter().flatten();
    let mut small = places.map(|place| place.join(SMALL_MODEL));
    small.find(|folder| folder.join("model_index.json").is_file()).ok_or_else(|| {
        Failure::usage("no --model given, and there is no models/shapes of a checkout or package").with_hint(
            "--model takes a checkpoint, as a diffusers folder or one .safetensors file, or a bundle",
        )
    })
}

/// What a package has put beside the program: `share/kiln` of a prefix whose `bin` holds it.
fn installed() -> Option<PathBuf> {
    let program = env::current_exe().ok()?;
    Some(program.parent()?.parent()?.join("share/kiln"))
}
