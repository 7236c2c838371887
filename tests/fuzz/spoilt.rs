//! A checkpoint's folder with some files replaced.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

static FOLDER: LazyLock<PathBuf> = LazyLock::new(crate::checkpoint);

/// The folder of the small checkpoint, whole again when this is dropped.
pub struct Spoilt {
    replaced: Vec<(PathBuf, Option<Vec<u8>>)>,
}

impl Spoilt {
    /// Replaces or adds the files that a text lists.
    pub fn new(text: &str, known: &[&str]) -> Spoilt {
        let replace = |(name, content): (&str, &str)| {
            let path = FOLDER.join(name);
            let before = fs::read(&path).ok();
            fs::write(&path, content).expect("a file");
            (path, before)
        };
        Spoilt { replaced: crate::files(text, known).map(replace).collect() }
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &FOLDER
    }
}

impl Drop for Spoilt {
    fn drop(&mut self) {
        for (path, before) in self.replaced.drain(..).rev() {
            let restored = match before {
                Some(content) => fs::write(&path, content),
                None => fs::remove_file(&path),
            };
            restored.expect("a folder as before");
        }
    }
}
