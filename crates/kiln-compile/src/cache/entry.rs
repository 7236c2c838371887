//! One built part in the cache.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use kiln_bundle::fs::{Lock, create_folder, digest};
use kiln_bundle::read;
use kiln_bundle::{
    BundleError, Component, ComponentName, Digests, FileEntry, Hold, MANIFEST, SealKey, Staging, Target,
};
use serde::{Deserialize, Serialize};

use super::{EngineCache, Recipe};
use crate::CompileError;

pub(super) const RECORD: &str = "entry.yaml";
pub(super) const SEAL: &str = "entry.seal";
/// Its modification time is when the entry was last used.
const USED: &str = ".used";
const DIGESTS: &str = ".digests.sealed";

/// Name of the file that says why something was set aside.
pub(super) const REASON: &str = "REASON";

/// Largest record that is read.
const MAX_BYTES: u64 = 16 << 20;

/// `entry.yaml`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    format: u32,
    /// The part.
    pub part: String,
    /// What it was built for.
    pub target: Target,
    /// What it was built from.
    pub ingredients: BTreeMap<String, String>,
    /// The options that its graphs were emitted with.
    pub emission: BTreeMap<String, String>,
    /// Its engines.
    pub components: BTreeMap<ComponentName, Component>,
    /// Its files.
    pub files: BTreeMap<String, FileEntry>,
    /// Seconds that building took.
    pub seconds: f64,
    /// Most bytes that building held in memory, where it was measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peak_bytes: Option<u64>,
}

const FORMAT: u32 = 3;

/// What a builder leaves in an entry's folder.
pub(crate) struct Built {
    pub(crate) components: BTreeMap<ComponentName, Component>,
    pub(crate) files: Vec<String>,
    pub(crate) peak_bytes: Option<u64>,
}

/// An entry whose record is sealed and whose files match it.
#[derive(Clone, Debug)]
pub struct Entry {
    /// The folder.
    pub root: PathBuf,
    /// The record.
    pub record: Record,
    /// Keeps others from removing the folder, where it could be taken.
    _hold: Option<Arc<Hold>>,
}

impl Record {
    /// What the entry was built from.
    pub fn recipe(&self) -> Recipe {
        Recipe {
            part: self.part.clone(),
            target: self.target,
            ingredients: self.ingredients.clone(),
            emission: self.emission.clone(),
        }
    }
}

impl Entry {
    /// Opens and checks an entry: its seal first, then every file.
    pub(crate) fn open(root: &Path, key: &SealKey) -> Result<Entry, CompileError> {
        let hold = Hold::take(root).map(Arc::new);
        let record = read_record(root, Some(key))?;
        let entry = Entry { root: root.into(), record, _hold: hold };
        let mut digests = Digests::load_sealed(root.join(DIGESTS), key);
        let checked = entry.check(&mut digests);
        digests.save();
        checked.map(|()| entry)
    }

    fn check(&self, digests: &mut Digests) -> Result<(), CompileError> {
        for (name, listed) in &self.record.files {
            let path = self.root.join(name);
            let found = fs::metadata(&path).map_err(|e| CompileError::io(&path, &e))?.len();
            if found != listed.size {
                return Err(BundleError::Size { path, expected: listed.size, found }.into());
            }
            if digests.of(name, &[&path], || digest(&path))? != listed.blake3 {
                return Err(BundleError::Digest { path }.into());
            }
        }
        Ok(())
    }

    fn is_of(&self, recipe: &Recipe) -> bool {
        self.record.recipe().key() == recipe.key()
    }

    /// Takes every digest anew.
    pub(crate) fn verify(&self, key: &SealKey) -> Result<(), CompileError> {
        let mut digests = Digests::load_sealed(self.root.join(DIGESTS), key);
        digests.forget();
        let checked = self.check(&mut digests);
        digests.save();
        checked
    }

    /// When it was last used.
    pub(crate) fn last_used(root: &Path) -> SystemTime {
        let modified = |name: &str| fs::metadata(root.join(name)).and_then(|metadata| metadata.modified());
        modified(USED)
            .or_else(|_| modified(RECORD))
            .or_else(|_| modified(MANIFEST))
            .unwrap_or(SystemTime::UNIX_EPOCH)
    }

    /// Notes that it is used now; a cache that cannot be written forgets it.
    pub(crate) fn touch(root: &Path) {
        let _ = File::create(root.join(USED)).and_then(|file| file.set_modified(SystemTime::now()));
    }
}

/// A record; its seal is checked where there is a key to check it with.
pub(super) fn read_record(root: &Path, key: Option<&SealKey>) -> Result<Record, CompileError> {
    let path = root.join(RECORD);
    let refuse = |reason: String| CompileError::from(BundleError::Manifest { path: path.clone(), reason });
    let text = read::bytes(&path, MAX_BYTES, "record");
    let text = text.map_err(|e| e.map(|e| CompileError::io(&path, e), refuse))?;
    if let Some(key) = key {
        key.check(&path, &text, &root.join(SEAL))?;
    }
    let text = std::str::from_utf8(&text).map_err(|e| refuse(e.to_string()))?;
    let record: Record = read::yaml(text).map_err(refuse)?;
    match record.format {
        FORMAT => Ok(record),
        other => Err(refuse(format!("format {other} is not supported; this kiln reads format {FORMAT}"))),
    }
}

impl EngineCache {
    /// Whether there is a sound entry of a recipe; changes nothing.
    pub(crate) fn has(&self, recipe: &Recipe) -> Result<bool, CompileError> {
        let root = self.entries().join(recipe.folder());
        let key = self.seal_key()?;
        Ok(root.exists() && Entry::open(&root, &key).is_ok_and(|entry| entry.is_of(recipe)))
    }

    /// The entry of a recipe, if there is a sound one; a damaged one is put into quarantine.
    pub(crate) fn find(&self, recipe: &Recipe) -> Result<Option<Entry>, CompileError> {
        let root = self.entries().join(recipe.folder());
        if !root.exists() {
            return Ok(None);
        }
        let key = self.seal_key()?;
        match Entry::open(&root, &key) {
            Ok(entry) if entry.is_of(recipe) => {
                Entry::touch(&root);
                Ok(Some(entry))
            }
            // Somebody has pruned it meanwhile.
            _ if !root.exists() => Ok(None),
            Ok(_) => self.set_aside(&root, "was built from something else").map(|()| None),
            Err(e) => self.set_aside(&root, &e.to_string()).map(|()| None),
        }
    }

    /// Takes every digest of a recipe's entry anew, and puts it into quarantine if it is damaged.
    pub(crate) fn recheck(&self, recipe: &Recipe) -> Result<(), CompileError> {
        let key = self.seal_key()?;
        match self.find(recipe)?.map(|entry| (entry.verify(&key), entry)) {
            Some((Err(e), entry)) => self.set_aside(&entry.root, &e.to_string()),
            _ => Ok(()),
        }
    }

    /// The entry of a recipe, from the cache or built now by one process of all that ask for it.
    pub(crate) fn find_or_build(
        &self,
        recipe: &Recipe,
        build: impl FnOnce(&Path) -> Result<Built, CompileError>,
    ) -> Result<Entry, CompileError> {
        if let Some(entry) = self.find(recipe)? {
            return Ok(entry);
        }
        self.prepare()?;
        let name = recipe.folder();
        let _lock = Lock::acquire(&self.entries().join(format!(".{name}.lock")))?;
        if let Some(entry) = self.find(recipe)? {
            return Ok(entry);
        }
        let key = self.seal_key()?;
        let start = std::time::Instant::now();
        let staging = Staging::new(&self.entries().join(&name))?;
        let Built { components, files, peak_bytes } = build(staging.path())?;
        let mut record = Record {
            format: FORMAT,
            part: recipe.part.clone(),
            target: recipe.target,
            ingredients: recipe.ingredients.clone(),
            emission: recipe.emission.clone(),
            components,
            files: BTreeMap::new(),
            seconds: start.elapsed().as_secs_f64(),
            peak_bytes,
        };
        let mut digests = Digests::load_sealed(staging.path().join(DIGESTS), &key);
        for name in files {
            let path = staging.path().join(&name);
            let size = fs::metadata(&path).map_err(|e| CompileError::io(&path, &e))?.len();
            let blake3 = digests.of(&name, &[&path], || digest(&path))?;
            record.files.insert(name, FileEntry { size, blake3 });
        }
        digests.save();
        let write = |name: &str, bytes: &[u8]| {
            let path = staging.path().join(name);
            fs::write(&path, bytes).map_err(|e| CompileError::io(&path, &e))
        };
        let yaml = serde_yaml::to_string(&record)
            .map_err(|e| BundleError::Manifest { path: staging.path().join(RECORD), reason: e.to_string() })?;
        write(RECORD, yaml.as_bytes())?;
        write(SEAL, key.seal(yaml.as_bytes()).as_bytes())?;
        let root = staging.publish()?;
        let hold = Hold::take(&root).map(Arc::new);
        Ok(Entry { root, record, _hold: hold })
    }

    /// The entry whose recipe is likest to this one, to say what has changed.
    pub(crate) fn nearest(&self, recipe: &Recipe) -> Option<Recipe> {
        let entries = fs::read_dir(self.entries()).ok()?.flatten();
        let recipes = entries.filter_map(|entry| read_record(&entry.path(), None).ok()).map(|r| r.recipe());
        recipes
            .filter(|other| other.part == recipe.part && other.target == recipe.target)
            .min_by_key(|other| recipe.differences(other).len())
    }

    /// Moves a damaged entry out of the way, with the reason beside it.
    pub(super) fn set_aside(&self, root: &Path, reason: &str) -> Result<(), CompileError> {
        // Where no folder can be made, the damage is what has to be told.
        let _ = create_folder(&self.quarantine());
        let name = root.file_name().unwrap_or_default().to_string_lossy();
        let stem = self.quarantine().join(&*name);
        let place = (0..)
            .map(|i| if i == 0 { stem.clone() } else { stem.with_file_name(format!("{name}.{i}")) })
            .find(|place| !place.exists())
            .unwrap_or(stem);
        let damaged = |e: std::io::Error| {
            let text = format!("{reason}; it cannot be set aside: {e}");
            CompileError::io(root, &std::io::Error::new(e.kind(), text))
        };
        fs::rename(root, &place).map_err(damaged)?;
        let note = place.join(REASON);
        fs::write(&note, format!("{reason}\n")).map_err(|e| CompileError::io(&note, &e))
    }
}
