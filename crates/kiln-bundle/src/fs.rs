//! Atomic files and folders, locks and digests.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use crate::BundleError;

/// BLAKE3 digest of a file, in hexadecimal.
pub fn digest(path: &Path) -> Result<String, BundleError> {
    let mut hasher = blake3::Hasher::new();
    File::open(path)
        .and_then(|file| hasher.update_reader(file).map(|_| ()))
        .map_err(|e| BundleError::io(path, &e))?;
    Ok(hasher.finalize().to_hex().to_string())
}

/// Writes a file so that readers see all of it or what was there before.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> Result<(), BundleError> {
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let write = || {
        let mut builder = tempfile::Builder::new();
        #[cfg(unix)]
        builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644));
        let mut file = builder.prefix(".").suffix(".tmp").tempfile_in(folder)?;
        file.write_all(bytes)?;
        file.as_file().sync_all()?;
        file.persist(path).map_err(|e| e.error)
    };
    write().map(|_| ()).map_err(|e| BundleError::io(path, &e))
}

/// Creates a folder and its parents.
pub fn create_folder(path: &Path) -> Result<(), BundleError> {
    fs::create_dir_all(path).map_err(|e| BundleError::io(path, &e))
}

/// An exclusive lock between processes, held until it is dropped.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

impl Lock {
    /// Waits for the lock whose file is `path`.
    pub fn acquire(path: &Path) -> Result<Lock, BundleError> {
        let open = || File::options().create(true).truncate(false).write(true).open(path);
        let file = open().map_err(|e| BundleError::io(path, &e))?;
        file.lock().map_err(|e| BundleError::io(path, &e))?;
        Ok(Lock { _file: file })
    }
}

/// A folder under construction beside the place where it will appear; dropped unpublished, it is removed.
#[derive(Debug)]
pub struct Staging {
    folder: tempfile::TempDir,
    target: PathBuf,
}

impl Staging {
    /// Starts a folder that will become `target`.
    ///
    /// The caller holds whatever lock guards `target`: what an interrupted predecessor left is removed.
    pub fn new(target: &Path) -> Result<Staging, BundleError> {
        let parent = target.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        create_folder(parent)?;
        let prefix = format!(".{}.partial-", target.file_name().unwrap_or_default().to_string_lossy());
        remove_leftovers(parent, &prefix).map_err(|e| BundleError::io(parent, &e))?;
        let folder = tempfile::Builder::new()
            .prefix(&prefix)
            .tempdir_in(parent)
            .map_err(|e| BundleError::io(parent, &e))?;
        Ok(Staging { folder, target: target.into() })
    }

    /// The folder under construction.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Makes the folder appear under its name, to survive a loss of power; a folder that is already there is replaced.
    pub fn publish(self) -> Result<PathBuf, BundleError> {
        sync_folder(self.folder.path()).map_err(|e| BundleError::io(&self.target, &e))?;
        self.publish_unsynced()
    }

    /// Like [`Staging::publish`], but leaves it to the operating system when the files reach the disk.
    pub fn publish_unsynced(self) -> Result<PathBuf, BundleError> {
        let refuse = |e: io::Error| BundleError::io(&self.target, &e);
        if self.target.exists() {
            fs::remove_dir_all(&self.target).map_err(refuse)?;
        }
        fs::rename(self.folder.path(), &self.target).map_err(refuse)?;
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            fs::set_permissions(&self.target, fs::Permissions::from_mode(0o755)).map_err(refuse)?;
        }
        let _ = self.folder.keep();
        Ok(self.target)
    }
}

fn remove_leftovers(parent: &Path, prefix: &str) -> io::Result<()> {
    for entry in fs::read_dir(parent)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(prefix) {
            fs::remove_dir_all(entry.path())?;
        }
    }
    Ok(())
}

fn sync_folder(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        match path.is_dir() {
            true => sync_folder(&path)?,
            false => File::open(&path)?.sync_data()?,
        }
    }
    Ok(())
}
