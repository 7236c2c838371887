//! Files that a user names.

use std::fs::{self, File};
use std::io;
use std::path::Path;

/// Opens a regular file for reading; anything else, such as a pipe, is refused at once.
pub(super) fn open(path: &Path) -> io::Result<File> {
    check(&fs::metadata(path)?)?;
    let file = options().open(path)?;
    // What was looked at need not be what was opened.
    check(&file.metadata()?)?;
    Ok(file)
}

fn check(metadata: &fs::Metadata) -> io::Result<()> {
    match metadata.is_file() {
        true => Ok(()),
        false => Err(io::Error::new(io::ErrorKind::InvalidInput, "is no regular file")),
    }
}

/// Opening waits for nobody.
#[cfg(unix)]
fn options() -> fs::OpenOptions {
    use rustix::fs::OFlags;
    use std::os::unix::fs::OpenOptionsExt;
    let mut options = File::options();
    options.read(true).custom_flags((OFlags::NONBLOCK | OFlags::NOCTTY).bits() as i32);
    options
}

#[cfg(not(unix))]
fn options() -> fs::OpenOptions {
    let mut options = File::options();
    options.read(true);
    options
}
