//! A bundle at another place.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use crate::{Bundle, BundleError, MANIFEST, SEAL};

/// Copies a bundle, whose every digest is checked, into a new folder, with its seal if it has one.
///
/// Whoever may read what this process writes elsewhere may read the copy, whatever the bundle's own files allow.
pub fn copy(bundle: &Bundle, folder: &Path) -> Result<(), BundleError> {
    bundle.verify()?;
    let files = bundle.manifest().files.keys().map(String::as_str);
    let seal = bundle.path(SEAL).exists().then_some(SEAL);
    for name in files.chain([MANIFEST]).chain(seal) {
        let (from, to) = (bundle.path(name), folder.join(name));
        if let Some(parent) = to.parent() {
            fs::create_dir_all(parent).map_err(|e| BundleError::io(parent, &e))?;
        }
        if let Some(nested) = name.strip_suffix(&format!("/{MANIFEST}")) {
            copy(&Bundle::open(bundle.path(nested))?, &folder.join(nested))?;
            continue;
        }
        let mut source = File::open(&from).map_err(|e| BundleError::io(&from, &e))?;
        let copied = File::create_new(&to).and_then(|mut target| io::copy(&mut source, &mut target));
        copied.map_err(|e| BundleError::io(&to, &e))?;
    }
    Ok(())
}
