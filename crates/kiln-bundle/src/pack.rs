//! A bundle as one file: a tar archive, compressed with zstd, whose first member is the manifest.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use crate::copy::walk;
use crate::fs::{PartialFile, follow};
use crate::manifest::{FileEntry, MAX_BYTES, Manifest, stays_inside};
use crate::{Bundle, BundleError, MANIFEST, OutputFolder};

/// Writes a bundle, whose every digest is checked, to a new file.
///
/// The file appears when it is whole; one that is there already is replaced, and a link is followed.
pub fn pack(bundle: &Bundle, file: &Path, level: i32) -> Result<(), BundleError> {
    let refuse = |e: io::Error| BundleError::io(file, &e);
    let target = follow(file).map_err(refuse)?;
    let mut partial = PartialFile::beside(&target).map_err(refuse)?;
    let encoder = zstd::Encoder::new(BufWriter::new(&mut partial), level).map_err(refuse)?;
    let mut archive = tar::Builder::new(encoder);
    walk(bundle, "", &mut |name, path| append(&mut archive, name, path, file))?;
    let finish = || archive.into_inner()?.finish()?.into_inner().map_err(|e| e.into_error()).map(drop);
    finish().and_then(|()| partial.publish(&target)).map_err(refuse)
}

fn append<W: Write>(
    archive: &mut tar::Builder<W>,
    name: &str,
    path: &Path,
    file: &Path,
) -> Result<(), BundleError> {
    let mut source = File::open(path).map_err(|e| BundleError::io(path, &e))?;
    let mut header = tar::Header::new_ustar();
    header.set_size(source.metadata().map_err(|e| BundleError::io(path, &e))?.len());
    header.set_mode(0o644);
    header.set_path(name).map_err(|e| BundleError::io(file, &e))?;
    header.set_cksum();
    archive.append(&header, &mut source).map_err(|e| BundleError::io(file, &e))
}

/// Makes a bundle from a packed file in a folder that does not exist or is empty.
///
/// Every member must be one that a manifest before it lists, with the size and digest that it says: nothing else is
/// written, and nothing outside the folder.
pub fn unpack(file: &Path, folder: &Path) -> Result<Bundle, BundleError> {
    let refuse = |reason: String| BundleError::Packed { path: file.into(), reason };
    let source = File::open(file).map_err(|e| BundleError::io(file, &e))?;
    let unreadable = |e: io::Error| refuse(format!("is not a packed bundle: {e}"));
    let decoder = zstd::Decoder::new(BufReader::new(source)).map_err(unreadable)?;
    let mut archive = tar::Archive::new(decoder);
    let output = OutputFolder::open(folder)?;
    let mut expected: BTreeMap<String, Option<FileEntry>> = BTreeMap::from([(MANIFEST.to_owned(), None)]);
    // Raw members: what extension headers say of names and sizes is never read into memory.
    for member in archive.entries().map_err(unreadable)?.raw(true) {
        let mut member = member.map_err(unreadable)?;
        let name = String::from_utf8_lossy(&member.path_bytes()).into_owned();
        let Some(listed) = expected.remove(&name).filter(|_| stays_inside(&name)) else {
            return Err(refuse(format!("holds '{name}', which no manifest before it lists")));
        };
        if !member.header().entry_type().is_file() {
            return Err(refuse(format!("holds '{name}', which is not a regular file")));
        }
        let size = listed.as_ref().map_or(MAX_BYTES, |entry| entry.size);
        let path = output.path().join(&name);
        let digest = write(&mut member, size, &path).map_err(|e| match e {
            Written::Source(e) => unreadable(e),
            Written::Target(e) => BundleError::io(&path, &e),
            Written::TooLong => refuse(format!("'{name}' has more than {size} bytes")),
        })?;
        if let Some(entry) = listed
            && (entry.blake3 != digest.blake3 || entry.size != digest.size)
        {
            return Err(refuse(format!("'{name}' does not match the digest in the manifest")));
        }
        if let Some(prefix) = name.strip_suffix(MANIFEST).filter(|p| p.is_empty() || p.ends_with('/')) {
            let manifest = Manifest::read(&path)?;
            expected.extend(
                manifest.files.into_iter().map(|(file, entry)| (format!("{prefix}{file}"), Some(entry))),
            );
        }
    }
    if let Some(name) = expected.keys().next() {
        return Err(refuse(format!("lacks '{name}'")));
    }
    if has_more(archive.into_inner()).map_err(unreadable)? {
        return Err(refuse("goes on after its end".into()));
    }
    Bundle::open(&output.publish()?)
}

/// Most zeros behind an archive's end, which is filled up to a whole block of a tape.
const MAX_PADDING: u64 = 1 << 20;

/// Whether anything follows but the zeros of a block.
fn has_more(rest: impl Read) -> io::Result<bool> {
    let mut padding = Vec::new();
    rest.take(MAX_PADDING + 1).read_to_end(&mut padding)?;
    Ok(padding.len() as u64 > MAX_PADDING || padding.iter().any(|byte| *byte != 0))
}

enum Written {
    Source(io::Error),
    Target(io::Error),
    TooLong,
}

/// Writes at most `limit` bytes to a new file.
fn write(source: &mut impl Read, limit: u64, path: &PathBuf) -> Result<FileEntry, Written> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(Written::Target)?;
    }
    let mut target = File::create_new(path).map_err(Written::Target)?;
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; 1 << 18];
    let mut size = 0;
    loop {
        let n = source.read(&mut buffer).map_err(Written::Source)?;
        if n == 0 {
            target.sync_all().map_err(Written::Target)?;
            return Ok(FileEntry { size, blake3: hasher.finalize().to_hex().to_string() });
        }
        size += n as u64;
        if size > limit {
            return Err(Written::TooLong);
        }
        hasher.update(&buffer[..n]);
        target.write_all(&buffer[..n]).map_err(Written::Target)?;
    }
}
