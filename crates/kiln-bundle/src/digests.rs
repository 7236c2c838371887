//! Digests of files, remembered so that gigabytes are not read twice.

use std::collections::BTreeMap;
use std::fs::{self, Metadata};
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use serde::{Deserialize, Serialize};

use crate::BundleError;
use crate::fs::write_atomic;

/// A file is taken to be unchanged while its size, inode and times of modification and change are; the last cannot be set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Stamp {
    size: u64,
    modified_ns: u128,
    inode: u64,
    changed_ns: i128,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Known {
    stamps: Vec<Stamp>,
    blake3: String,
}

/// Digests by name, kept in a file.
#[derive(Debug)]
pub struct Digests {
    file: PathBuf,
    entries: BTreeMap<String, Known>,
    changed: bool,
}

impl Digests {
    /// Reads what is remembered; an absent or malformed file remembers nothing.
    pub fn load(file: PathBuf) -> Digests {
        let entries =
            fs::read(&file).ok().and_then(|json| serde_json::from_slice(&json).ok()).unwrap_or_default();
        Digests { file, entries, changed: false }
    }

    /// Forgets everything: each digest is taken again.
    pub fn forget(&mut self) {
        self.changed |= !self.entries.is_empty();
        self.entries.clear();
    }

    /// The digest that `name` had when the files were last as they are now, or what `take` makes of them.
    pub fn of<E: From<BundleError>>(
        &mut self,
        name: &str,
        files: &[&Path],
        take: impl FnOnce() -> Result<String, E>,
    ) -> Result<String, E> {
        let stamps: Vec<Stamp> = files.iter().map(|file| stamp(file)).collect::<Result<_, _>>()?;
        if let Some(known) = self.entries.get(name).filter(|known| known.stamps == stamps) {
            return Ok(known.blake3.clone());
        }
        let blake3 = take()?;
        self.entries.insert(name.into(), Known { stamps, blake3: blake3.clone() });
        self.changed = true;
        Ok(blake3)
    }

    /// Remembers what was learnt; a folder that cannot be written only costs time.
    pub fn save(&mut self) {
        if self.changed
            && let Ok(json) = serde_json::to_vec(&self.entries)
        {
            let _ = write_atomic(&self.file, &json);
            self.changed = false;
        }
    }
}

fn stamp(path: &Path) -> Result<Stamp, BundleError> {
    let metadata = fs::metadata(path).map_err(|e| BundleError::io(path, &e))?;
    let modified = metadata.modified().ok().and_then(|t| t.duration_since(UNIX_EPOCH).ok());
    Ok(Stamp {
        size: metadata.len(),
        modified_ns: modified.map_or(0, |t| t.as_nanos()),
        inode: inode(&metadata),
        changed_ns: changed_ns(&metadata),
    })
}

#[cfg(unix)]
fn changed_ns(metadata: &Metadata) -> i128 {
    use std::os::unix::fs::MetadataExt;
    i128::from(metadata.ctime()) * 1_000_000_000 + i128::from(metadata.ctime_nsec())
}

#[cfg(not(unix))]
fn changed_ns(_metadata: &Metadata) -> i128 {
    0
}

#[cfg(unix)]
fn inode(metadata: &Metadata) -> u64 {
    std::os::unix::fs::MetadataExt::ino(metadata)
}

#[cfg(not(unix))]
fn inode(_metadata: &Metadata) -> u64 {
    0
}
