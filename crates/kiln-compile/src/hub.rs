//! Folders as Hugging Face's cache lays them out: `models--org--name/refs/main` names one of `snapshots/`.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use kiln_bundle::read;

use crate::CompileError;

/// The snapshot that a repository's `refs/main` names, or the path itself where it is no such repository.
pub(crate) fn snapshot(path: &Path) -> Result<PathBuf, CompileError> {
    let head = path.join("refs/main");
    if !path.join("snapshots").is_dir() || !head.exists() {
        return Ok(path.into());
    }
    let commit =
        read::text(&head, 1 << 10, "name of a snapshot").map_err(|e| CompileError::reading(&head, e))?;
    let commit = commit.trim();
    let snapshot = path.join("snapshots").join(commit);
    match commit.bytes().all(|b| b.is_ascii_alphanumeric()) && snapshot.is_dir() {
        true => Ok(snapshot),
        false => {
            Err(CompileError::checkpoint(&head, format!("names '{commit}', which is not among the snapshots"))
                .with_hint("the download may not be finished; fetch the model again"))
        }
    }
}

/// The repository's own name, without its owner's, of a snapshot.
pub(crate) fn name(snapshot: &Path) -> Option<&str> {
    let snapshots = snapshot.parent().filter(|folder| folder.file_name() == Some(OsStr::new("snapshots")))?;
    let repository = snapshots.parent()?.file_name()?.to_str()?;
    repository.strip_prefix("models--")?.rsplit("--").next()
}
