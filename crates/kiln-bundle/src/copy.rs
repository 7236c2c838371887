//! A bundle at another place.

use std::fs;
use std::path::Path;

use crate::{Bundle, BundleError, MANIFEST};

/// Copies a bundle, whose every digest is checked, into a new folder. Its seal stays behind.
pub fn copy(bundle: &Bundle, folder: &Path) -> Result<(), BundleError> {
    bundle.verify()?;
    let files = bundle.manifest().files.keys().map(String::as_str);
    for name in files.chain([MANIFEST]) {
        let (from, to) = (bundle.path(name), folder.join(name));
        if let Some(parent) = to.parent() {
            fs::create_dir_all(parent).map_err(|e| BundleError::io(parent, &e))?;
        }
        if let Some(nested) = name.strip_suffix(&format!("/{MANIFEST}")) {
            copy(&Bundle::open(bundle.path(nested))?, &folder.join(nested))?;
            continue;
        }
        fs::copy(&from, &to).map_err(|e| BundleError::io(&to, &e))?;
    }
    Ok(())
}
