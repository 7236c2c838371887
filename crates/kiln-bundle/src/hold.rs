//! Folders that are in use.

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::Path;
use std::thread;
use std::time::Duration;

/// How often, and after how long each time, a folder is tried again that somebody is about to remove.
const TRIES: u32 = 50;
const MOMENT: Duration = Duration::from_millis(20);

/// A folder that nobody removes who asks by [`Claim::take`], in any process, until this is dropped.
#[derive(Debug)]
pub struct Hold {
    _lock: File,
}

impl Hold {
    /// Holds a folder; `None` where that has gone, or its file system knows no locks.
    pub fn take(folder: &Path) -> Option<Hold> {
        let lock = File::open(folder).ok()?;
        for _ in 0..TRIES {
            match lock.try_lock_shared() {
                Ok(()) => return is_at(&lock, folder).then_some(Hold { _lock: lock }),
                Err(TryLockError::WouldBlock) => thread::sleep(MOMENT),
                Err(TryLockError::Error(_)) => return None,
            }
        }
        None
    }
}

/// A folder that nobody holds, until this is dropped.
#[derive(Debug)]
pub struct Claim {
    _lock: Option<File>,
}

impl Claim {
    /// Claims a folder; `None` where somebody holds it.
    pub fn take(folder: &Path) -> io::Result<Option<Claim>> {
        let lock = File::open(folder)?;
        match lock.try_lock() {
            Ok(()) => Ok(Some(Claim { _lock: Some(lock) })),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(_)) => Ok(Some(Claim { _lock: None })),
        }
    }
}

/// Whether the folder that was opened is still the one of that name.
#[cfg(unix)]
fn is_at(opened: &File, folder: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let identity = |metadata: fs::Metadata| (metadata.dev(), metadata.ino());
    let opened = opened.metadata().map(identity);
    opened.is_ok_and(|opened| fs::metadata(folder).map(identity).is_ok_and(|found| found == opened))
}

#[cfg(not(unix))]
fn is_at(_opened: &File, folder: &Path) -> bool {
    fs::metadata(folder).is_ok()
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    #[test]
    fn who_holds_a_folder_keeps_it() {
        let folder = tempfile::tempdir().expect("a folder");
        let holds = [Hold::take(folder.path()).expect("a hold"), Hold::take(folder.path()).expect("another")];
        assert!(Claim::take(folder.path()).expect("an answer").is_none());
        drop(holds);
        let claim = Claim::take(folder.path()).expect("an answer").expect("nobody holds it");
        fs::remove_dir(folder.path()).expect("removed");
        drop(claim);
        assert!(Hold::take(folder.path()).is_none());
    }
}
