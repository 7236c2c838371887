//! Digests of checkpoint files, remembered so that gigabytes are not read twice.

use std::collections::BTreeMap;
use std::fs::{self, Metadata};
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use kiln_bundle::fs::{digest, write_atomic};
use serde::{Deserialize, Serialize};

use crate::CompileError;

/// A file is taken to be unchanged while its size, modification time and inode are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Entry {
    size: u64,
    modified_ns: u128,
    inode: u64,
    blake3: String,
}

/// Digests by absolute path, kept in a file of the engine cache.
#[derive(Debug)]
pub(crate) struct Digests {
    file: PathBuf,
    entries: BTreeMap<PathBuf, Entry>,
    changed: bool,
}

impl Digests {
    pub(crate) fn load(file: PathBuf) -> Digests {
        let entries =
            fs::read(&file).ok().and_then(|json| serde_json::from_slice(&json).ok()).unwrap_or_default();
        Digests { file, entries, changed: false }
    }

    pub(crate) fn of(&mut self, path: &Path) -> Result<String, CompileError> {
        let refuse = |e: std::io::Error| CompileError::io(path, &e);
        let path = path.canonicalize().map_err(refuse)?;
        let metadata = fs::metadata(&path).map_err(refuse)?;
        let fresh = Entry {
            size: metadata.len(),
            modified_ns: metadata
                .modified()
                .ok()
                .and_then(|t| t.duration_since(UNIX_EPOCH).ok())
                .map_or(0, |t| t.as_nanos()),
            inode: inode(&metadata),
            blake3: String::new(),
        };
        if let Some(known) = self.entries.get(&path)
            && (Entry { blake3: String::new(), ..known.clone() }) == fresh
        {
            return Ok(known.blake3.clone());
        }
        let blake3 = digest(&path)?;
        self.entries.insert(path, Entry { blake3: blake3.clone(), ..fresh });
        self.changed = true;
        Ok(blake3)
    }

    /// Keeps what was learnt; a cache that can not be written only costs time.
    pub(crate) fn save(&self) {
        if self.changed
            && let Ok(json) = serde_json::to_vec(&self.entries)
        {
            let _ = write_atomic(&self.file, &json);
        }
    }
}

#[cfg(unix)]
fn inode(metadata: &Metadata) -> u64 {
    std::os::unix::fs::MetadataExt::ino(metadata)
}

#[cfg(not(unix))]
fn inode(_metadata: &Metadata) -> u64 {
    0
}
