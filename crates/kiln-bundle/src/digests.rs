//! Digests of files, remembered so that gigabytes are not read twice.
//!
//! What a key vouches for is remembered under its seal, so that nobody else can say that a file was checked.

use std::collections::BTreeMap;
use std::fs::{self, Metadata};
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use serde::{Deserialize, Serialize};

use crate::fs::write_atomic;
use crate::{BundleError, SealKey, read};

/// Largest memory of digests that is read.
const MAX_BYTES: u64 = 16 << 20;

/// What shows that a file has changed, as far as one can tell without reading it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileStamp(Stamp);

impl FileStamp {
    /// The stamp that a file has now.
    pub fn of(path: &Path) -> Result<FileStamp, BundleError> {
        Ok(FileStamp(stamp(path)?))
    }
}

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
    key: Option<SealKey>,
    entries: BTreeMap<String, Known>,
    changed: bool,
}

impl Digests {
    /// Reads what is remembered; an absent or malformed file remembers nothing.
    pub fn load(file: PathBuf) -> Digests {
        let text = read::text(&file, MAX_BYTES, "memory").unwrap_or_default();
        Digests { file, key: None, entries: serde_json::from_str(&text).unwrap_or_default(), changed: false }
    }

    /// The same of a file that bears the key's seal in its first line; one with another seal remembers nothing.
    pub fn load_sealed(file: PathBuf, key: &SealKey) -> Digests {
        let text = read::text(&file, MAX_BYTES, "memory").unwrap_or_default();
        let sealed = text.split_once('\n').filter(|(seal, json)| key.is_seal(seal, json.as_bytes()));
        let entries = sealed.and_then(|(_, json)| serde_json::from_str(json).ok()).unwrap_or_default();
        Digests { file, key: Some(key.clone()), entries, changed: false }
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
            && let Ok(json) = serde_json::to_string(&self.entries)
        {
            let text = match &self.key {
                Some(key) => format!("{}\n{json}", key.seal(json.as_bytes())),
                None => json,
            };
            let _ = write_atomic(&self.file, text.as_bytes());
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
