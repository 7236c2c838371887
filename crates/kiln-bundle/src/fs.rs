//! Atomic files and folders, locks and digests.

use std::collections::BTreeSet;
use std::fs::{self, File, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use crate::BundleError;

/// BLAKE3 digest of bytes, in hexadecimal.
pub fn digest_of(bytes: &[u8]) -> String {
    blake3::hash(bytes).to_hex().to_string()
}

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

/// Folders under construction by this process.
static PARTIALS: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());

/// Removes all that this process has half-written; for a process that is about to end without running destructors.
///
/// From now on its threads start no other folder, and wait for the end where they would.
pub fn abandon() {
    let partials = PARTIALS.lock().unwrap_or_else(PoisonError::into_inner);
    for folder in partials.iter() {
        // What other threads add meanwhile by its old name finds no folder.
        let mut aside = folder.clone().into_os_string();
        aside.push("-abandoned");
        let aside = PathBuf::from(aside);
        let folder = if fs::rename(folder, &aside).is_ok() { &aside } else { folder };
        let _ = fs::remove_dir_all(folder);
    }
    std::mem::forget(partials);
}

/// A folder under construction, removed when it is dropped or abandoned.
#[derive(Debug)]
struct Partial(tempfile::TempDir);

impl Partial {
    fn new(prefix: &str, parent: &Path) -> io::Result<Partial> {
        let mut partials = PARTIALS.lock().unwrap_or_else(PoisonError::into_inner);
        let folder = tempfile::Builder::new().prefix(prefix).tempdir_in(parent)?;
        partials.insert(folder.path().into());
        Ok(Partial(folder))
    }

    fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        // A process that is interrupted now waits until the folder is gone.
        let mut partials = PARTIALS.lock().unwrap_or_else(PoisonError::into_inner);
        partials.remove(self.path());
        // What was published is no longer there.
        let _ = fs::remove_dir_all(self.path());
    }
}

/// A folder under construction beside the place where it will appear; dropped unpublished, it is removed.
#[derive(Debug)]
pub struct Staging {
    folder: Partial,
    target: PathBuf,
}

impl Staging {
    /// Starts a folder that will become `target`.
    ///
    /// The caller holds whatever lock guards `target`: what an interrupted predecessor left is removed.
    pub fn new(target: &Path) -> Result<Staging, BundleError> {
        let parent = target.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        create_folder(parent)?;
        let prefix = format!(".{}{STAGED}", target.file_name().unwrap_or_default().to_string_lossy());
        remove_leftovers(parent, &prefix).map_err(|e| BundleError::io(parent, &e))?;
        let folder = Partial::new(&prefix, parent).map_err(|e| BundleError::io(parent, &e))?;
        Ok(Staging { folder, target: target.into() })
    }

    /// The folder under construction.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Makes the folder appear under its name, to survive a loss of power; a folder that is already there is replaced.
    ///
    /// What appears is for its owner alone.
    pub fn publish(mut self) -> Result<PathBuf, BundleError> {
        let refuse = |e: io::Error| BundleError::io(&self.target, &e);
        make_private(self.folder.path()).map_err(refuse)?;
        sync_folder(self.folder.path()).map_err(refuse)?;
        if self.target.exists() {
            fs::remove_dir_all(&self.target).map_err(refuse)?;
        }
        fs::rename(self.folder.path(), &self.target).map_err(refuse)?;
        self.folder.0.disable_cleanup(true);
        Ok(self.target)
    }
}

/// Removes the folders under construction in `parent` whose makers are gone, which their locks show.
pub fn remove_abandoned(parent: &Path) -> Result<(), BundleError> {
    let refuse = |e: io::Error| BundleError::io(parent, &e);
    let Ok(entries) = fs::read_dir(parent) else { return Ok(()) };
    for entry in entries {
        let name = entry.map_err(refuse)?.file_name().to_string_lossy().into_owned();
        let Some((target, _)) = name.strip_prefix('.').and_then(|name| name.rsplit_once(STAGED)) else {
            continue;
        };
        let lock = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(parent.join(format!(".{target}.lock")));
        if lock.is_ok_and(|lock| lock.try_lock().is_ok()) {
            fs::remove_dir_all(parent.join(name)).map_err(refuse)?;
        }
    }
    Ok(())
}

#[cfg(unix)]
fn make_private(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let is_folder = path.is_dir();
    if is_folder {
        for entry in fs::read_dir(path)? {
            make_private(&entry?.path())?;
        }
    }
    let mode = if is_folder { 0o700 } else { 0o600 };
    // Setting what is set already would change the time by which digests are remembered.
    match fs::metadata(path)?.permissions().mode() & 0o777 == mode {
        true => Ok(()),
        false => fs::set_permissions(path, fs::Permissions::from_mode(mode)),
    }
}

#[cfg(not(unix))]
fn make_private(_path: &Path) -> io::Result<()> {
    Ok(())
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

/// What follows the name of a folder in that of the one under construction.
const STAGED: &str = ".partial-";

/// What an [`OutputFolder`] under construction is called inside the folder that it fills.
const PARTIAL: &str = ".kiln-partial-";

/// A new or empty folder that a user named, being filled.
///
/// Its content is made in a hidden folder inside and moved up at the end, so that working folders, mount points and links
/// can be filled too; dropped unpublished, it leaves the folder as it was. Processes that want the same folder are told
/// apart by a lock on the folder itself. On file systems without such locks, leftovers of interrupted processes count as
/// content.
#[derive(Debug)]
pub struct OutputFolder {
    folder: PathBuf,
    partial: Option<Partial>,
    is_new: bool,
    _lock: Option<File>,
}

impl OutputFolder {
    /// Takes hold of a folder that does not exist yet or is empty; anything else is [`BundleError::Occupied`].
    pub fn open(folder: &Path) -> Result<OutputFolder, BundleError> {
        let refuse = |e: io::Error| BundleError::io(folder, &e);
        let occupied = |reason| Err(BundleError::Occupied { path: folder.into(), reason });
        let is_new = !folder.exists();
        if is_new && folder.is_symlink() {
            return occupied("is a link to nothing");
        }
        if !is_new && !folder.is_dir() {
            return occupied("exists and is not a folder");
        }
        create_folder(folder)?;
        let lock = match lock_folder(folder) {
            Ok(lock) => Some(lock),
            Err(TryLockError::WouldBlock) => return occupied("is being written by another process"),
            Err(TryLockError::Error(_)) => None,
        };
        if lock.is_some() {
            remove_leftovers(folder, PARTIAL).map_err(refuse)?;
        }
        if fs::read_dir(folder).map_err(refuse)?.next().is_some() {
            return occupied("exists and is not empty");
        }
        let partial = Partial::new(PARTIAL, folder).map_err(refuse)?;
        Ok(OutputFolder { folder: folder.into(), partial: Some(partial), is_new, _lock: lock })
    }

    /// Where to write.
    pub fn path(&self) -> &Path {
        self.partial.as_ref().map_or(&self.folder, |partial| partial.path())
    }

    /// Moves what was written into the folder.
    pub fn publish(mut self) -> Result<PathBuf, BundleError> {
        let refuse = |e: io::Error| BundleError::io(&self.folder, &e);
        let Some(partial) = &self.partial else { return Ok(self.folder.clone()) };
        let entries = fs::read_dir(partial.path()).and_then(|entries| entries.collect::<io::Result<Vec<_>>>());
        let mut entries = entries.map_err(refuse)?;
        // A bundle is none before its manifest is there.
        entries.sort_by_key(|entry| entry.file_name() == crate::MANIFEST);
        for entry in entries {
            fs::rename(entry.path(), self.folder.join(entry.file_name())).map_err(refuse)?;
        }
        self.partial = None;
        self.is_new = false;
        Ok(self.folder.clone())
    }
}

impl Drop for OutputFolder {
    fn drop(&mut self) {
        self.partial = None;
        if self.is_new {
            // Refused by the operating system where anything is in it.
            let _ = fs::remove_dir(&self.folder);
        }
    }
}

#[cfg(unix)]
fn lock_folder(folder: &Path) -> Result<File, TryLockError> {
    use std::os::unix::fs::MetadataExt;
    let lock = File::open(folder).map_err(TryLockError::Error)?;
    lock.try_lock()?;
    let identity = |metadata: fs::Metadata| (metadata.dev(), metadata.ino());
    let locked = lock.metadata().map(identity).map_err(TryLockError::Error)?;
    match fs::metadata(folder).map(identity).is_ok_and(|found| found == locked) {
        true => Ok(lock),
        // Its last holder has removed the folder.
        false => Err(TryLockError::WouldBlock),
    }
}

#[cfg(not(unix))]
fn lock_folder(_folder: &Path) -> Result<File, TryLockError> {
    Err(TryLockError::Error(io::ErrorKind::Unsupported.into()))
}

/// Whether files can be made in a folder: makes one and removes it.
pub fn check_writable(folder: &Path) -> Result<(), BundleError> {
    let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    let made = tempfile::Builder::new().prefix(".").suffix(".tmp").tempfile_in(folder);
    made.map(drop).map_err(|e| BundleError::io(folder, &e))
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
