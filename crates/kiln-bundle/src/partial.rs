//! What is half-written, and whoever works on it: removed and ended when the process ends before they are done.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tempfile::{NamedTempFile, TempDir};

/// What a file under construction is called: these, with random letters between them.
const FILE: [&str; 2] = [".kiln-", ".tmp"];

/// What ends before its time with the process.
#[derive(Default)]
pub(crate) struct Register {
    /// Files and folders under construction.
    partials: BTreeSet<PathBuf>,
    /// Process groups of children.
    pub(crate) groups: BTreeSet<u32>,
    /// Folders in which leftovers of other processes were looked for.
    swept: BTreeSet<PathBuf>,
}

static REGISTER: Mutex<Register> =
    Mutex::new(Register { partials: BTreeSet::new(), groups: BTreeSet::new(), swept: BTreeSet::new() });

/// Who holds it begins and finishes what is registered; a process that is interrupted waits meanwhile.
pub(crate) fn register() -> MutexGuard<'static, Register> {
    REGISTER.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Ends all children and removes all that this process has half-written; for a process that is about to end without
/// running destructors.
///
/// From now on its threads start nothing else, and wait for the end where they would.
pub fn abandon() {
    let register = register();
    register.groups.iter().copied().for_each(crate::child::end);
    register.partials.iter().for_each(|path| remove(path));
    std::mem::forget(register);
}

fn remove(path: &Path) {
    if fs::remove_file(path).is_ok() {
        return;
    }
    // What other threads add meanwhile by its old name finds no folder.
    let mut aside = path.to_path_buf().into_os_string();
    aside.push("-abandoned");
    let aside = PathBuf::from(aside);
    let folder = if fs::rename(path, &aside).is_ok() { &aside } else { path };
    let _ = fs::remove_dir_all(folder);
}

/// A folder under construction, removed when it is dropped or abandoned.
#[derive(Debug)]
pub(crate) struct PartialFolder(TempDir);

impl PartialFolder {
    pub(crate) fn new(prefix: &str, parent: &Path) -> io::Result<PartialFolder> {
        let mut register = register();
        let folder = tempfile::Builder::new().prefix(prefix).tempdir_in(parent)?;
        register.partials.insert(folder.path().into());
        Ok(PartialFolder(folder))
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }

    /// Lets it be: it has been published.
    pub(crate) fn keep(&mut self) {
        self.0.disable_cleanup(true);
    }
}

impl Drop for PartialFolder {
    fn drop(&mut self) {
        // A process that is interrupted now waits until the folder is gone.
        let mut register = register();
        register.partials.remove(self.path());
        // What was published is no longer there.
        let _ = fs::remove_dir_all(self.path());
    }
}

/// A file under construction in the folder where it will appear; dropped unpublished or abandoned, it is removed.
///
/// Its maker holds a lock on it: what a killed process left is told from what another one writes.
#[derive(Debug)]
pub struct PartialFile(NamedTempFile);

impl PartialFile {
    /// Starts a file beside the one that it will become, and removes what killed processes left there.
    pub fn beside(path: &Path) -> io::Result<PartialFile> {
        PartialFile::new(parent(path))
    }

    /// Starts a file in a folder, and removes what killed processes left there.
    pub fn new(folder: &Path) -> io::Result<PartialFile> {
        let mut register = register();
        if register.swept.insert(folder.into()) {
            sweep(folder)?;
        }
        let file = locked(folder)?;
        register.partials.insert(file.path().into());
        Ok(PartialFile(file))
    }

    /// Makes the file appear, to survive a loss of power; one that is already there is replaced.
    pub fn publish(mut self, path: &Path) -> io::Result<()> {
        self.0.as_file().sync_all()?;
        self.rename(path)
    }

    /// Like [`PartialFile::publish`], but gives the file back where there is one of that name already.
    pub fn publish_new(mut self, path: &Path) -> io::Result<Option<PartialFile>> {
        self.0.as_file().sync_all()?;
        match File::create_new(path) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => return Ok(Some(self)),
            claimed => drop(claimed?),
        }
        let renamed = self.rename(path);
        if renamed.is_err() {
            let _ = fs::remove_file(path);
        }
        renamed.map(|()| None)
    }

    fn rename(&mut self, path: &Path) -> io::Result<()> {
        fs::rename(self.0.path(), path)?;
        self.0.disable_cleanup(true);
        Ok(())
    }
}

impl Write for PartialFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.as_file().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.as_file().flush()
    }
}

impl Drop for PartialFile {
    fn drop(&mut self) {
        let mut register = register();
        register.partials.remove(self.0.path());
        // What was published is no longer there.
        let _ = fs::remove_file(self.0.path());
    }
}

/// The folder that a path names a file in.
pub(crate) fn parent(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn locked(folder: &Path) -> io::Result<NamedTempFile> {
    let mut builder = tempfile::Builder::new();
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644));
    loop {
        let file = builder.prefix(FILE[0]).suffix(FILE[1]).tempfile_in(folder)?;
        // Without locks leftovers stay.
        let _ = file.as_file().lock();
        // Before it was locked, another process may have taken it for a leftover.
        if file.path().exists() {
            return Ok(file);
        }
    }
}

/// Removes the files under construction in a folder whose makers are gone.
pub(crate) fn sweep(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let is_partial = name.starts_with(FILE[0]) && name.ends_with(FILE[1]) && entry.file_type()?.is_file();
        if is_partial
            && let Ok(file) = File::options().write(true).open(entry.path())
            && file.try_lock().is_ok()
        {
            // One that cannot be removed harms nobody.
            let _ = fs::remove_file(entry.path());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).expect("a folder");
        entries.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned()).collect()
    }

    #[test]
    fn leftovers_go_and_what_is_being_written_stays() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut mine = PartialFile::new(folder.path()).expect("a file");
        let (left, other) = (folder.path().join(".kiln-abc.tmp"), folder.path().join(".other.tmp"));
        fs::write(&left, "half").and_then(|()| fs::write(&other, "half")).expect("files");
        sweep(folder.path()).expect("swept");
        assert_eq!((left.exists(), other.exists(), names(folder.path()).len()), (false, true, 2));
        mine.write_all(b"whole").expect("written");
        mine.publish(&other).expect("published");
        assert_eq!(names(folder.path()), [".other.tmp"]);
        assert_eq!(fs::read(other).expect("a file"), b"whole");
    }

    #[test]
    fn a_new_file_replaces_none() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("picture");
        let publish = |file: PartialFile| file.publish_new(&path).expect("published");
        assert!(publish(PartialFile::new(folder.path()).expect("a file")).is_none());
        let other = publish(PartialFile::new(folder.path()).expect("a file"));
        assert_eq!(names(folder.path()).len(), 2);
        drop(other.expect("it is given back"));
        assert_eq!(names(folder.path()), ["picture"]);
    }
}
