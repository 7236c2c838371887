//! The hashes by which web UIs tell LoRAs apart.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

use sha2::{Digest, Sha256};

/// What web UIs tell LoRAs apart by: 12 digits of the SHA-256 digest of what follows the header of a safetensors file.
pub fn lora_hash(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let mut n_header = [0; 8];
    file.read_exact(&mut n_header)?;
    file.seek(SeekFrom::Start(u64::from_le_bytes(n_header).saturating_add(8)))?;
    let (mut hasher, mut buffer) = (Sha256::new(), vec![0; 1 << 16]);
    loop {
        match file.read(&mut buffer)? {
            0 => break,
            n => hasher.update(&buffer[..n]),
        }
    }
    Ok(hasher.finalize().iter().take(6).map(|byte| format!("{byte:02x}")).collect())
}
