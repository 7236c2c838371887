//! Atomic files and folders, locks and digests.

use std::fs::{self, File, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

pub use crate::partial::{PartialFile, abandon};

use crate::BundleError;
use crate::partial::{PartialFolder, parent, sweep};

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

/// Writes a new file, whole or not at all, that its owner alone may read; one that is there is not replaced.
pub fn write_secret(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    // Temporary files are for their owner alone.
    let mut file = tempfile::Builder::new().prefix(".").suffix(".tmp").tempfile_in(folder)?;
    io::Write::write_all(&mut file, bytes)?;
    file.as_file().sync_all()?;
    file.persist_noclobber(path).map(drop).map_err(|e| e.error)
}

/// Writes a file so that readers see all of it or what was there before; a link is replaced, not followed.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> Result<(), BundleError> {
    let write = || {
        let mut file = PartialFile::beside(path)?;
        file.write_all(bytes)?;
        file.publish(path)
    };
    write().map_err(|e| BundleError::io(path, &e))
}

/// The file that a path leads to through symbolic links, whether or not it is there.
///
/// Who writes to it leaves the links as they are. A path that leads to an open descriptor, as `/dev/stdout` does, is
/// [`io::ErrorKind::InvalidInput`]: a file that is renamed would take the place of what the descriptor leads to.
pub fn follow(path: &Path) -> io::Result<PathBuf> {
    /// As many as Linux follows.
    const MAX_LINKS: usize = 40;
    let mut path = path.to_path_buf();
    for _ in 0..MAX_LINKS {
        if is_descriptor(&path) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "leads to an open descriptor, not to a file",
            ));
        }
        match fs::read_link(&path) {
            Ok(target) => path = parent(&path).join(target),
            Err(_) => return Ok(path),
        }
    }
    Err(io::Error::new(io::ErrorKind::InvalidInput, "leads through too many links"))
}

fn is_descriptor(path: &Path) -> bool {
    let folder = fs::canonicalize(parent(path));
    let is_of_process = |folder: &Path| folder.starts_with("/proc") && folder.ends_with("fd");
    folder.is_ok_and(|folder| is_of_process(&folder) || folder.starts_with("/dev/fd"))
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
    folder: PartialFolder,
    target: PathBuf,
}

impl Staging {
    /// Starts a folder that will become `target`.
    ///
    /// The caller holds whatever lock guards `target`: what an interrupted predecessor left is removed.
    pub fn new(target: &Path) -> Result<Staging, BundleError> {
        let parent = parent(target);
        create_folder(parent)?;
        let prefix = format!(".{}{STAGED}", target.file_name().unwrap_or_default().to_string_lossy());
        remove_leftovers(parent, &prefix).map_err(|e| BundleError::io(parent, &e))?;
        let folder = PartialFolder::new(&prefix, parent).map_err(|e| BundleError::io(parent, &e))?;
        Ok(Staging { folder, target: target.into() })
    }

    /// The folder under construction.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Makes the folder appear under its name, to survive a loss of power; a folder that is already there is replaced.
    ///
    /// What appears is for its owner alone.
    pub fn publish(self) -> Result<PathBuf, BundleError> {
        self.publish_with(PRIVATE)
    }

    /// Like [`Self::publish`], but everybody may read what appears.
    pub fn publish_readable(self) -> Result<PathBuf, BundleError> {
        self.publish_with(READABLE)
    }

    fn publish_with(mut self, modes: Modes) -> Result<PathBuf, BundleError> {
        let refuse = |e: io::Error| BundleError::io(&self.target, &e);
        set_modes(self.folder.path(), modes).map_err(refuse)?;
        sync_folder(self.folder.path()).map_err(refuse)?;
        if self.target.exists() {
            fs::remove_dir_all(&self.target).map_err(refuse)?;
        }
        fs::rename(self.folder.path(), &self.target).map_err(refuse)?;
        self.folder.keep();
        Ok(self.target)
    }
}

/// Removes the files and folders under construction in `parent` whose makers are gone, which their locks show.
pub fn remove_abandoned(parent: &Path) -> Result<(), BundleError> {
    let refuse = |e: io::Error| BundleError::io(parent, &e);
    let Ok(entries) = fs::read_dir(parent) else { return Ok(()) };
    sweep(parent).map_err(refuse)?;
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

/// Who may do what with folders and files.
#[derive(Clone, Copy)]
#[cfg_attr(not(unix), expect(dead_code, reason = "files have no modes there"))]
struct Modes {
    folder: u32,
    file: u32,
}

const PRIVATE: Modes = Modes { folder: 0o700, file: 0o600 };
const READABLE: Modes = Modes { folder: 0o755, file: 0o644 };

#[cfg(unix)]
fn set_modes(path: &Path, modes: Modes) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let is_folder = path.is_dir();
    if is_folder {
        for entry in fs::read_dir(path)? {
            set_modes(&entry?.path(), modes)?;
        }
    }
    let mode = if is_folder { modes.folder } else { modes.file };
    // Setting what is set already would change the time by which digests are remembered.
    match fs::metadata(path)?.permissions().mode() & 0o777 == mode {
        true => Ok(()),
        false => fs::set_permissions(path, fs::Permissions::from_mode(mode)),
    }
}

#[cfg(not(unix))]
fn set_modes(_path: &Path, _modes: Modes) -> io::Result<()> {
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
    partial: Option<PartialFolder>,
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
        sweep(folder).map_err(refuse)?;
        if fs::read_dir(folder).map_err(refuse)?.next().is_some() {
            return occupied("exists and is not empty");
        }
        let partial = PartialFolder::new(PARTIAL, folder).map_err(refuse)?;
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

/// Whether files can be made and filled in a folder: makes one and removes it, and what killed processes left there.
pub fn check_writable(folder: &Path) -> Result<(), BundleError> {
    let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    let write = || PartialFile::new(folder)?.write_all(&[0; BLOCK]);
    write().map_err(|e| BundleError::io(folder, &e))
}

/// What a file system hands out at least.
const BLOCK: usize = 4096;

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
