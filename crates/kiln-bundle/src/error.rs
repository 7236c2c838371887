use std::path::{Path, PathBuf};

use kiln_types::{ComponentName, ErrorKind};

/// Why a bundle could not be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BundleError {
    /// The operating system refused.
    #[error("{path}: {reason}", path = path.display())]
    Io {
        /// File or folder.
        path: PathBuf,
        /// What the operating system said.
        reason: String,
        /// What kind of refusal it was.
        kind: std::io::ErrorKind,
    },
    /// A folder that was to be filled is not free for it.
    #[error("{path}: {reason}", path = path.display())]
    Occupied {
        /// The folder.
        path: PathBuf,
        /// What is in the way.
        reason: &'static str,
    },
    /// The manifest does not parse or contradicts itself.
    #[error("{path}: {reason}", path = path.display())]
    Manifest {
        /// The manifest.
        path: PathBuf,
        /// What is wrong, with line and column where there are such.
        reason: String,
    },
    /// The manifest is of another version's layout.
    #[error("{path}: is of format {found}, and this kiln reads format {expected}", path = path.display())]
    Format {
        /// The manifest.
        path: PathBuf,
        /// Its format.
        found: u32,
        /// What this version reads and writes.
        expected: u32,
    },
    /// What was measured of the bundle's engines cannot be used.
    #[error("{path}: {reason}", path = path.display())]
    Figures {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A file is longer or shorter than the manifest says.
    #[error("{path}: has {found} bytes, the manifest says {expected}", path = path.display())]
    Size {
        /// The file.
        path: PathBuf,
        /// Size by the manifest.
        expected: u64,
        /// Size on disk.
        found: u64,
    },
    /// A file's content is not what the manifest says.
    #[error("{path}: content does not match the digest in the manifest", path = path.display())]
    Digest {
        /// The file.
        path: PathBuf,
    },
    /// A packed bundle is malformed.
    #[error("{path}: {reason}", path = path.display())]
    Packed {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A manifest bears no valid seal of this user.
    #[error("{path}: was not sealed by this user's kiln, or has changed since", path = path.display())]
    Seal {
        /// The manifest.
        path: PathBuf,
    },
    /// Others than its owner can use a key.
    #[error("{path}: others than its owner can read or write this key", path = path.display())]
    KeyExposed {
        /// The key.
        path: PathBuf,
    },
    /// The bundle lacks a component that is needed.
    #[error("{path}: has no {name}", path = path.display())]
    NoComponent {
        /// The manifest.
        path: PathBuf,
        /// What is needed.
        name: ComponentName,
    },
}

impl BundleError {
    /// What kind of failure it is.
    pub fn kind(&self) -> ErrorKind {
        match self {
            BundleError::Io { kind: std::io::ErrorKind::NotFound, .. } => ErrorKind::Input,
            BundleError::Io { .. } => ErrorKind::Files,
            BundleError::Occupied { .. } => ErrorKind::Request,
            _ => ErrorKind::Input,
        }
    }

    /// An error of the operating system at a path.
    pub fn io(path: &Path, error: &std::io::Error) -> BundleError {
        let text = error.to_string();
        let reason = text.split(" (os error").next().unwrap_or_default().to_lowercase();
        BundleError::Io { path: path.into(), reason, kind: error.kind() }
    }
}
