//! Checkpoints that lie near a folder that is none.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::INDEX;

/// Most paths that a hint names, and entries of a folder that are looked at.
const SHOWN: usize = 3;
const LOOKED_AT: usize = 1000;

/// What may help where a folder has no index: the folder above it, those in it, or files of whole checkpoints.
pub(super) fn hint(folder: &Path) -> Option<String> {
    let above = folder.parent().filter(|above| above.join(INDEX).is_file());
    if let Some(above) = above {
        return Some(format!("it is part of a checkpoint; give the folder above it: {}", above.display()));
    }
    let entries = std::fs::read_dir(folder).ok()?.take(LOOKED_AT).flatten();
    let found: BTreeSet<PathBuf> = entries.map(|entry| entry.path()).filter(|path| is_one(path)).collect();
    let shown: Vec<String> = found.iter().take(SHOWN).map(|path| path.display().to_string()).collect();
    match found.len() {
        0 => None,
        1 => Some(format!("it holds {}", shown[0])),
        n if n > SHOWN => {
            Some(format!("it holds {} and {} more; give one of them", shown.join(", "), n - SHOWN))
        }
        _ => Some(format!("it holds {}; give one of them", shown.join(", "))),
    }
}

fn is_one(path: &Path) -> bool {
    let is_file = path.extension().is_some_and(|ending| ending == "safetensors") && path.is_file();
    is_file || path.join(INDEX).is_file()
}
