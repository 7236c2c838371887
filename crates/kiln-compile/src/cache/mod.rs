//! The engine cache: built parts by everything that they were built from, and the bundles made of them.
//!
//! ```text
//! engine-cache/entries/unet-tensorrt-rtx-0123456789abcdef/    entry.yaml, entry.seal, unet.engine
//! engine-cache/shapes-tensorrt-rtx-fedcba9876543210/          a bundle: links to entries' files, and small files
//! engine-cache/quarantine/                                    what was damaged
//! ```
//!
//! An entry is made in a hidden folder beside its place, under a lock, and renamed: a process that is killed leaves
//! nothing that looks finished, and the next one removes the rest.

mod entry;
mod recipe;
mod upkeep;

use std::fs;
use std::path::{Path, PathBuf};

use kiln_bundle::fs::{check_writable, create_folder, remove_abandoned};
use kiln_bundle::{Bundle, BundleError, Digests, SealKey};

pub(crate) use entry::Built;
pub use entry::{Entry, Record};
pub use recipe::{Difference, Recipe};
pub use upkeep::{CacheItem, Checked, ItemKind, Pruned};

use crate::CompileError;

/// How the names of folders begin that are being removed.
const REMOVED: &str = ".removed-";

/// A folder of bundles and of the parts that they are made of.
#[derive(Clone, Debug)]
pub struct EngineCache {
    root: PathBuf,
    key: Option<PathBuf>,
}

/// What compiling did.
#[derive(Clone, Debug)]
pub struct Compiled {
    /// The bundle.
    pub bundle: Bundle,
    /// Whether it was there before.
    pub was_cached: bool,
}

impl EngineCache {
    /// The cache in a folder, which need not exist yet, with the key that seals its entries in a file inside.
    pub fn new(root: impl Into<PathBuf>) -> EngineCache {
        EngineCache { root: root.into(), key: None }
    }

    /// Keeps the key that seals entries in another file, as where several caches are one user's.
    #[must_use]
    pub fn with_key(self, key: impl Into<PathBuf>) -> EngineCache {
        EngineCache { key: Some(key.into()), ..self }
    }

    /// The folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    pub(crate) fn seal_key(&self) -> Result<SealKey, CompileError> {
        let inside = || self.root.join(".seal.key");
        Ok(SealKey::open(&self.key.clone().unwrap_or_else(inside))?)
    }

    pub(crate) fn entries(&self) -> PathBuf {
        self.root.join("entries")
    }

    fn quarantine(&self) -> PathBuf {
        self.root.join("quarantine")
    }

    /// Digests of checkpoints, remembered.
    pub(crate) fn digests(&self) -> Result<Digests, CompileError> {
        Ok(Digests::load_sealed(self.root.join("digests"), &self.seal_key()?))
    }

    /// Makes the folders; what is kept in them is for their owner alone, because engines are code.
    pub(crate) fn prepare(&self) -> Result<(), CompileError> {
        create_folder(&self.root)?;
        for folder in [self.entries(), self.quarantine()] {
            if !folder.is_dir() {
                create_folder(&folder)?;
                make_private(&folder).map_err(|e| CompileError::io(&folder, &e))?;
            }
        }
        check_writable(&self.root)?;
        check_writable(&self.entries())?;
        Ok(self.remove_abandoned()?)
    }

    /// Removes what processes that were killed left half-built.
    pub(crate) fn remove_abandoned(&self) -> Result<(), BundleError> {
        for entry in fs::read_dir(self.root()).into_iter().flatten().flatten() {
            if entry.file_name().to_string_lossy().starts_with(REMOVED) {
                // The process that removes it may be at work still.
                let _ = fs::remove_dir_all(entry.path());
            }
        }
        remove_abandoned(self.root())?;
        remove_abandoned(&self.entries())
    }
}

#[cfg(unix)]
fn make_private(folder: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(folder, fs::Permissions::from_mode(0o700))
}

#[cfg(not(unix))]
fn make_private(_folder: &Path) -> std::io::Result<()> {
    Ok(())
}
