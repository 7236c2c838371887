//! A bundle is a folder with a `bundle.yaml` and the files that it names: all that the runtime ever reads.
//!
//! The compile stage makes it in a [`Staging`] folder and publishes it by one rename, so that a half-written bundle can
//! not be seen. [`Bundle::open`] checks every file's digest, remembering those of large files by size, modification time
//! and inode; [`Bundle::verify`] takes every digest anew.

pub mod absent;
mod accuracy;
pub mod child;
mod component;
mod contents;
mod copy;
mod digests;
mod error;
mod figures;
mod float8;
pub mod fs;
mod hold;
mod manifest;
#[cfg(feature = "pack")]
mod pack;
mod partial;
pub mod read;
mod seal;
pub mod stable_diffusion;
mod tensors;
pub mod unique;

use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use accuracy::{Accuracy, PictureAccuracy};
pub use component::{AttentionFacts, AxisSize, Component, PortInfo, Segment, Stage};
pub use contents::{Contents, Role};
pub use copy::copy;
pub use digests::{Digests, FileStamp};
pub use error::BundleError;
pub use figures::{ComponentFigures, Figures, Sample};
pub use fs::{OutputFolder, Staging};
pub use hold::{Claim, Hold};
pub use kiln_types::{ComponentName, ElementType, ErrorKind, Precision, Size};
pub use manifest::{
    Content, ControlNetInfo, FileEntry, FusedLora, LatentsInfo, Manifest, PipelineInfo, Provenance, Target,
    TextEncoderInfo, TokenizerInfo, Tuning,
};
#[cfg(feature = "pack")]
pub use pack::{pack, unpack};
pub use seal::SealKey;
pub use tensors::{TensorFile, TensorFileError, TensorInfo, decode, is_float, not_floats};

/// Name of the seal over the manifest.
pub const SEAL: &str = "bundle.seal";

/// Name of the manifest inside a bundle.
pub const MANIFEST: &str = "bundle.yaml";

/// What [`Bundle::open`] remembers of large files, inside the bundle.
const DIGESTS: &str = ".digests.json";

/// The same of digests that a key vouches for.
const SEALED_DIGESTS: &str = ".digests.sealed";

/// Largest file of figures that is read.
const MAX_FIGURES: u64 = 1 << 20;

/// Files up to this size have their digest taken whenever a bundle is opened.
const ALWAYS_TAKEN: u64 = 1 << 20;

/// An opened bundle.
#[derive(Clone, Debug)]
pub struct Bundle {
    root: PathBuf,
    manifest: Manifest,
    /// Keeps others from removing the folder, where it could be taken.
    _hold: Option<Arc<Hold>>,
}

impl Bundle {
    /// Whether a folder looks like a bundle.
    pub fn is_bundle(folder: impl AsRef<Path>) -> bool {
        folder.as_ref().join(MANIFEST).is_file()
    }

    /// Reads and checks the manifest and the files it names.
    pub fn open(root: impl AsRef<Path>) -> Result<Bundle, BundleError> {
        let bundle = Bundle::read(root.as_ref())?;
        bundle.check(Digests::load(bundle.path(DIGESTS)))?;
        Ok(bundle)
    }

    /// The same of a bundle that bears the key's seal: who has not the key can change nothing of it unseen.
    pub fn open_sealed(root: impl AsRef<Path>, key: &SealKey) -> Result<Bundle, BundleError> {
        let bundle = Bundle::read(root.as_ref())?;
        bundle.check_seal(key)?;
        Ok(bundle)
    }

    fn read(root: &Path) -> Result<Bundle, BundleError> {
        let hold = Hold::take(root).map(Arc::new);
        let manifest = Manifest::read(&root.join(MANIFEST))?;
        Ok(Bundle { root: root.into(), manifest, _hold: hold })
    }

    /// Checks the digest of every file, however large.
    pub fn verify(&self) -> Result<(), BundleError> {
        let mut digests = Digests::load(self.path(DIGESTS));
        digests.forget();
        self.check(digests)
    }

    /// Checks the digest of every file that is not remembered, and remembers it.
    fn check(&self, mut digests: Digests) -> Result<(), BundleError> {
        let checked = self.check_files(&mut digests);
        digests.save();
        checked
    }

    fn check_files(&self, digests: &mut Digests) -> Result<(), BundleError> {
        for (name, entry) in &self.manifest.files {
            let path = self.path(name);
            let found = std::fs::metadata(&path).map_err(|e| BundleError::io(&path, &e))?.len();
            if found != entry.size {
                return Err(BundleError::Size { path, expected: entry.size, found });
            }
            let take = || fs::digest(&path);
            let found = if entry.size <= ALWAYS_TAKEN { take()? } else { digests.of(name, &[&path], take)? };
            if found != entry.blake3 {
                return Err(BundleError::Digest { path });
            }
        }
        Ok(())
    }

    /// The manifest.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Where its manifest lies.
    pub fn manifest_path(&self) -> PathBuf {
        self.root.join(MANIFEST)
    }

    /// Where a file of the bundle lies.
    pub fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// The constants of a pipeline; refused for a bundle of anything else.
    pub fn pipeline(&self) -> Result<&PipelineInfo, BundleError> {
        match &self.manifest.content {
            Content::Pipeline(info) => Ok(info),
            Content::Controlnet(_) => Err(self.refuse("holds a ControlNet where a pipeline is expected")),
        }
    }

    /// The constants of a ControlNet; refused for a bundle of anything else.
    pub fn controlnet(&self) -> Result<&ControlNetInfo, BundleError> {
        match &self.manifest.content {
            Content::Controlnet(info) => Ok(info),
            Content::Pipeline(_) => Err(self.refuse("holds a pipeline where a ControlNet is expected")),
        }
    }

    /// Tells it from bundles that draw otherwise, wherever it lies and whatever was measured of it, as 64 hexadecimal digits.
    pub fn digest(&self) -> String {
        let Manifest { target, content, components, tuning, files, reference, figures, .. } = &self.manifest;
        let measured = |name: &String| [reference, figures].into_iter().flatten().any(|other| other == name);
        let files: Vec<_> = files.iter().filter(|(name, _)| !measured(name)).collect();
        let draws = serde_json::to_vec(&(target, content, components, tuning, files));
        fs::digest_of(&draws.expect("a manifest is JSON, too"))
    }

    /// Writes the seal of this user's key over the manifest, and so over everything that it lists.
    pub fn seal(&self, key: &SealKey) -> Result<(), BundleError> {
        key.seal_manifest(&self.root)
    }

    /// Checks that the manifest was sealed with this user's key, and that every file is what it says, by what was remembered
    /// under the same key.
    pub fn check_seal(&self, key: &SealKey) -> Result<(), BundleError> {
        self.check_manifest(key)?;
        self.check(Digests::load_sealed(self.path(SEALED_DIGESTS), key))
    }

    fn check_manifest(&self, key: &SealKey) -> Result<(), BundleError> {
        let manifest = self.path(MANIFEST);
        key.check(&manifest, &Manifest::bytes(&manifest)?, &self.path(SEAL))
    }

    /// Takes every digest anew, after checking the seal.
    pub fn verify_sealed(&self, key: &SealKey) -> Result<(), BundleError> {
        self.check_manifest(key)?;
        let mut digests = Digests::load_sealed(self.path(SEALED_DIGESTS), key);
        digests.forget();
        self.check(digests)
    }

    /// Adds a reference to the bundle, or replaces the one it has, and seals it anew.
    pub fn set_reference(&mut self, bytes: &[u8], key: &SealKey) -> Result<(), BundleError> {
        self.attach("reference.safetensors", bytes, key, |manifest| &mut manifest.reference)
    }

    /// What its engines take, if that was measured.
    pub fn figures(&self) -> Result<Option<Figures>, BundleError> {
        let Some(name) = &self.manifest.figures else { return Ok(None) };
        let path = self.path(name);
        let refuse = |reason: String| BundleError::Figures { path: path.clone(), reason };
        if self.manifest.files.get(name).is_none_or(|file| file.size > MAX_FIGURES) {
            return Err(refuse(format!("is larger than the {MAX_FIGURES} bytes that figures may have")));
        }
        let figures = read::json(&path, MAX_FIGURES, "figures");
        let figures: Figures = figures.map_err(|e| e.map(|e| BundleError::io(&path, e), refuse))?;
        figures.check().map_err(refuse)?;
        Ok(Some(figures))
    }

    /// Adds what its engines take, or replaces what was measured before, and seals it anew.
    pub fn set_figures(&mut self, figures: &Figures, key: &SealKey) -> Result<(), BundleError> {
        let bytes = serde_json::to_vec_pretty(figures).unwrap_or_default();
        self.attach("figures.json", &bytes, key, |manifest| &mut manifest.figures)
    }

    /// Says how far it is from the same networks in f32, and seals it anew.
    pub fn set_accuracy(&mut self, accuracy: Accuracy, key: &SealKey) -> Result<(), BundleError> {
        let _lock = fs::Lock::acquire(&self.path(".lock"))?;
        self.manifest.accuracy = Some(accuracy);
        self.store_manifest(key)
    }

    /// Adds a file of which the manifest says in a field of its own what it is.
    fn attach(
        &mut self,
        name: &str,
        bytes: &[u8],
        key: &SealKey,
        field: impl Fn(&mut Manifest) -> &mut Option<String>,
    ) -> Result<(), BundleError> {
        let path = self.path(name);
        let _lock = fs::Lock::acquire(&self.path(".lock"))?;
        fs::write_atomic(&path, bytes)?;
        let entry = FileEntry { size: bytes.len() as u64, blake3: fs::digest(&path)? };
        self.manifest.files.insert(name.into(), entry);
        *field(&mut self.manifest) = Some(name.into());
        self.store_manifest(key)
    }

    fn store_manifest(&self, key: &SealKey) -> Result<(), BundleError> {
        fs::write_atomic(&self.root.join(MANIFEST), self.manifest.to_yaml().as_bytes())?;
        self.seal(key)
    }

    fn refuse(&self, reason: &str) -> BundleError {
        BundleError::Manifest { path: self.manifest_path(), reason: reason.into() }
    }

    /// The component of that name.
    pub fn component(&self, name: ComponentName) -> Result<&Component, BundleError> {
        let found = self.manifest.components.get(&name);
        found.ok_or_else(|| BundleError::NoComponent { path: self.manifest_path(), name })
    }

    /// The component whose weights another one reads: itself, unless it shares them.
    pub fn weights_owner(&self, name: ComponentName) -> ComponentName {
        let component = self.manifest.components.get(&name);
        component.and_then(|component| component.shares_weights_with).unwrap_or(name)
    }
}
