//! Keys with which processes come in: nkeys, of which the queue's server knows the public half alone.

use std::path::Path;

use kiln_bundle::fs::write_secret;
use nkeys::KeyPair;

use crate::FleetError;

/// A new key.
pub struct Nkey(KeyPair);

impl Nkey {
    /// A key that nobody has.
    pub fn new() -> Nkey {
        Nkey(KeyPair::new_user())
    }

    /// The public half.
    pub fn public(&self) -> String {
        self.0.public_key()
    }

    /// Writes the secret half to a new file that its owner alone may read.
    pub fn save(&self, path: &Path) -> Result<(), FleetError> {
        let refuse = |reason: String| FleetError::File { path: path.into(), reason };
        let seed = self.0.seed().map_err(|e| refuse(e.to_string()))?;
        write_secret(path, format!("{seed}\n").as_bytes()).map_err(|e| match e.kind() {
            std::io::ErrorKind::AlreadyExists => refuse("is there already, and is not replaced".into()),
            _ => refuse(e.to_string()),
        })
    }
}

impl Default for Nkey {
    fn default() -> Nkey {
        Nkey::new()
    }
}
