//! Compiled kernels in a folder, sealed: they are code.

use std::fs;
use std::path::PathBuf;

use kiln_bundle::{Bundle, SealKey, fs::write_atomic};
use kiln_cuda::Device;
use kiln_engine::KernelStore;

use super::KernelCache;

/// Bytes of the seal that comes before the kernels, in hexadecimal.
const SEAL_BYTES: usize = 64;

/// Most bytes that are read back.
const MOST: u64 = 1 << 30;

/// The file of one engine's kernels on one device.
#[derive(Debug)]
pub(super) struct KernelFile {
    path: PathBuf,
    key: SealKey,
}

impl KernelFile {
    pub(super) fn new(
        cache: &KernelCache,
        bundle: &Bundle,
        engine: &str,
        device: &Device,
    ) -> Option<KernelFile> {
        let digest = &bundle.manifest().files.get(engine)?.blake3;
        let device: String = device.info().name.chars().filter(char::is_ascii_alphanumeric).collect();
        let name = format!("{}-{device}", digest.get(..16)?);
        Some(KernelFile { path: cache.folder.join(name), key: cache.key.clone() })
    }
}

impl KernelStore for KernelFile {
    fn load(&self) -> Option<Vec<u8>> {
        fs::metadata(&self.path).ok().filter(|metadata| metadata.len() <= MOST)?;
        let mut bytes = fs::read(&self.path).ok()?;
        let kernels = bytes.split_off(SEAL_BYTES.min(bytes.len()));
        let seal = String::from_utf8(bytes).ok()?;
        self.key.is_seal(&seal, &kernels).then_some(kernels)
    }

    fn store(&self, kernels: &[u8]) {
        // Whatever cannot be written is compiled again.
        if let Some(folder) = self.path.parent()
            && kiln_bundle::fs::create_folder(folder).is_ok()
        {
            let sealed = [self.key.seal(kernels).as_bytes(), kernels].concat();
            let _ = write_atomic(&self.path, &sealed);
        }
    }
}
