//! Taking single files out of a wheel.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use zip::ZipArchive;

use crate::error::{Error, ErrorKind};

/// Unpacks the named members, each up to its largest size, under their bare names into `folder`.
pub(crate) fn unpack(wheel: &Path, members: &[(&str, u64)], folder: &Path) -> Result<(), Error> {
    let refuse = |reason: String| Error::at(ErrorKind::Wheel, wheel, reason);
    let file = File::open(wheel).map_err(|e| Error::io(wheel, &e))?;
    let mut archive = ZipArchive::new(file).map_err(|e| refuse(e.to_string()))?;
    for &(name, max) in members {
        let member = archive.by_name(name).map_err(|e| refuse(format!("member '{name}': {e}")))?;
        let (_, bare) = name.rsplit_once('/').unwrap_or(("", name));
        let path = folder.join(bare);
        let mut out = File::create(&path).map_err(|e| Error::io(&path, &e))?;
        let copied = io::copy(&mut member.take(max + 1), &mut out)
            .map_err(|e| refuse(format!("member '{name}': {e}")))?;
        if copied > max {
            return Err(refuse(format!("member '{name}' has more than {max} bytes")));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use zip::write::SimpleFileOptions;

    use super::*;

    fn wheel(folder: &Path, members: &[(&str, &[u8])]) -> std::path::PathBuf {
        let path = folder.join("some.whl");
        let mut zip = zip::ZipWriter::new(File::create(&path).unwrap());
        for (name, bytes) in members {
            zip.start_file(*name, SimpleFileOptions::default()).unwrap();
            zip.write_all(bytes).unwrap();
        }
        zip.finish().unwrap();
        path
    }

    #[test]
    fn members_arrive_under_their_bare_names() {
        let folder = tempfile::tempdir().unwrap();
        let path = wheel(folder.path(), &[("a/b/lib.so", b"library"), ("../evil", b"evil")]);
        unpack(&path, &[("a/b/lib.so", 100)], folder.path()).unwrap();
        assert_eq!(std::fs::read(folder.path().join("lib.so")).unwrap(), b"library");
        assert!(!folder.path().join("../evil").exists());
    }

    #[test]
    fn a_member_that_is_too_large_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = wheel(folder.path(), &[("lib.so", &[0; 1000])]);
        let error = unpack(&path, &[("lib.so", 999)], folder.path()).unwrap_err();
        assert!(error.to_string().contains("member 'lib.so' has more than 999 bytes"), "{error}");
    }

    #[test]
    fn an_absent_member_and_a_broken_file_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = wheel(folder.path(), &[]);
        let error = unpack(&path, &[("lib.so", 1)], folder.path()).unwrap_err();
        assert!(error.to_string().contains("member 'lib.so'"), "{error}");
        std::fs::write(&path, b"not a zip").unwrap();
        assert!(unpack(&path, &[], folder.path()).is_err());
    }
}
