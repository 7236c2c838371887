//! A bundle at another place.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use crate::{Bundle, BundleError, MANIFEST, SEAL};

/// Copies a bundle, whose every digest is checked, into a new folder, with its seal if it has one.
///
/// Whoever may read what this process writes elsewhere may read the copy, whatever the bundle's own files allow.
pub fn copy(bundle: &Bundle, folder: &Path) -> Result<(), BundleError> {
    walk(bundle, "", &mut |name, from| {
        let to = folder.join(name);
        copy_file(from, &to)?;
        let seal = from.with_file_name(SEAL);
        match from.ends_with(MANIFEST) && seal.exists() {
            true => copy_file(&seal, &to.with_file_name(SEAL)),
            false => Ok(()),
        }
    })
}

/// Visits a bundle's manifest, then all its files and those of the bundles within it, by their names and where they are. Every
/// digest of a bundle is checked before anything of it is visited.
pub(crate) fn walk(
    bundle: &Bundle,
    prefix: &str,
    visit: &mut impl FnMut(&str, &Path) -> Result<(), BundleError>,
) -> Result<(), BundleError> {
    bundle.verify()?;
    let files = bundle.manifest().files.keys().map(String::as_str);
    for name in [MANIFEST].into_iter().chain(files) {
        match name.strip_suffix(&format!("/{MANIFEST}")) {
            Some(within) => {
                walk(&Bundle::open(bundle.path(within))?, &format!("{prefix}{within}/"), visit)?;
            }
            None => visit(&format!("{prefix}{name}"), &bundle.path(name))?,
        }
    }
    Ok(())
}

fn copy_file(from: &Path, to: &Path) -> Result<(), BundleError> {
    if let Some(parent) = to.parent() {
        fs::create_dir_all(parent).map_err(|e| BundleError::io(parent, &e))?;
    }
    let mut source = File::open(from).map_err(|e| BundleError::io(from, &e))?;
    let copied = File::create_new(to).and_then(|mut target| io::copy(&mut source, &mut target));
    copied.map(drop).map_err(|e| BundleError::io(to, &e))
}
