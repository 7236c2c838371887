//! Seals: proofs that a file was written by this user's kiln.
//!
//! A digest shows that a file is what its manifest says; a seal shows who wrote the manifest. Engines of TensorRT are
//! code, and no deserializer gets to see one whose manifest bears no valid seal.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use crate::fs::{write_atomic, write_secret};
use crate::{BundleError, MANIFEST, Manifest, SEAL, read};

/// A user's secret key.
#[derive(Clone)]
pub struct SealKey {
    path: PathBuf,
    key: [u8; 32],
}

impl SealKey {
    /// What its file is called in kiln's cache folder.
    pub const FILE: &str = "seal.key";

    /// Reads the key in a file, which is made with random bytes if it is not there.
    ///
    /// A key that others could have read or written is refused.
    pub fn open(path: &Path) -> Result<SealKey, BundleError> {
        let refuse = |e: io::Error| BundleError::io(path, &e);
        if !path.exists() {
            SealKey::make(path).map_err(refuse)?;
        }
        let file = File::open(path).map_err(refuse)?;
        check_private(path, &file.metadata().map_err(refuse)?)?;
        let mut key = Vec::new();
        file.take(33).read_to_end(&mut key).map_err(refuse)?;
        match <[u8; 32]>::try_from(key) {
            Ok(key) => Ok(SealKey { path: path.into(), key }),
            Err(_) => Err(refuse(io::Error::new(io::ErrorKind::InvalidData, "is not a key of 32 bytes"))),
        }
    }

    fn make(path: &Path) -> io::Result<()> {
        let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        fs::create_dir_all(folder)?;
        let mut key = [0; 32];
        getrandom::fill(&mut key).map_err(|e| io::Error::other(e.to_string()))?;
        match write_secret(path, &key) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => Err(e),
            _ => Ok(()),
        }
    }

    /// The seal of a file's bytes, in hexadecimal.
    pub fn seal(&self, bytes: &[u8]) -> String {
        blake3::keyed_hash(&self.key, bytes).to_hex().to_string()
    }

    /// Writes the seal over the manifest of the bundle in a folder.
    pub fn seal_manifest(&self, bundle: &Path) -> Result<(), BundleError> {
        let bytes = Manifest::bytes(&bundle.join(MANIFEST))?;
        write_atomic(&bundle.join(SEAL), self.seal(&bytes).as_bytes())
    }

    /// Checks the seal in the file `seal` over `bytes`, the content of `sealed`.
    pub fn check(&self, sealed: &Path, bytes: &[u8], seal: &Path) -> Result<(), BundleError> {
        let refuse = || BundleError::Seal { path: sealed.into() };
        let text = read::text(seal, 1 << 10, "seal").map_err(|_| refuse())?;
        match self.is_seal(text.trim(), bytes) {
            true => Ok(()),
            false => Err(refuse()),
        }
    }

    /// Whether a text is the seal of these bytes.
    pub fn is_seal(&self, text: &str, bytes: &[u8]) -> bool {
        // Hashes compare in constant time.
        blake3::Hash::from_hex(text).is_ok_and(|found| found == blake3::keyed_hash(&self.key, bytes))
    }

    /// The key's file.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl std::fmt::Debug for SealKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SealKey").field("path", &self.path).finish_non_exhaustive()
    }
}

#[cfg(unix)]
fn check_private(path: &Path, metadata: &fs::Metadata) -> Result<(), BundleError> {
    use std::os::unix::fs::PermissionsExt;
    match metadata.permissions().mode() & 0o077 {
        0 => Ok(()),
        _ => Err(BundleError::KeyExposed { path: path.into() }),
    }
}

#[cfg(not(unix))]
fn check_private(_path: &Path, _metadata: &fs::Metadata) -> Result<(), BundleError> {
    Ok(())
}
