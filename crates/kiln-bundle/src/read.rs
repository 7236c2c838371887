//! Reading files that people bring: regular ones alone, and no more of them than makes sense.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use serde::de::DeserializeOwned;

/// Why a file cannot be read.
#[derive(Debug)]
pub enum ReadError {
    /// The operating system refuses.
    System(io::Error),
    /// The file is not what it should be: the reason, without its path.
    Content(String),
}

impl From<io::Error> for ReadError {
    fn from(error: io::Error) -> ReadError {
        ReadError::System(error)
    }
}

impl ReadError {
    /// As an error of the caller's own kind.
    pub fn map<E>(self, system: impl FnOnce(&io::Error) -> E, content: impl FnOnce(String) -> E) -> E {
        match self {
            ReadError::System(error) => system(&error),
            ReadError::Content(reason) => content(reason),
        }
    }
}

/// Opens a regular file and tells its size in bytes; never waits, as opening a pipe would.
pub fn open(path: &Path) -> Result<(File, u64), ReadError> {
    let mut options = File::options();
    options.read(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::custom_flags(
        &mut options,
        (rustix::fs::OFlags::NONBLOCK | rustix::fs::OFlags::NOCTTY).bits() as i32,
    );
    let file = options.open(path)?;
    let metadata = file.metadata()?;
    match metadata.is_file() {
        true => Ok((file, metadata.len())),
        false => Err(ReadError::Content("is not a regular file".into())),
    }
}

/// The bytes of a regular file, of which there are at most `most`; `what` names what is never larger.
pub fn bytes(path: &Path, most: u64, what: &str) -> Result<Vec<u8>, ReadError> {
    let too_many = |size: u64| ReadError::Content(format!("has {size} bytes, more than any {what}"));
    let (file, size) = open(path)?;
    if size > most {
        return Err(too_many(size));
    }
    let mut bytes = Vec::with_capacity(size as usize);
    // What grows meanwhile is not read to its end.
    file.take(most + 1).read_to_end(&mut bytes)?;
    match bytes.len() as u64 {
        size if size > most => Err(too_many(size)),
        _ => Ok(bytes),
    }
}

/// The text of a regular file without a byte order mark, like [`bytes`].
pub fn text(path: &Path, most: u64, what: &str) -> Result<String, ReadError> {
    let bytes = bytes(path, most, what)?;
    if let Some(other) = stands_for(&bytes) {
        return Err(ReadError::Content(other.into()));
    }
    let text = match bytes.as_slice() {
        [0xff, 0xfe, ..] | [0xfe, 0xff, ..] => Err("is UTF-16 text, and UTF-8 is expected"),
        _ => String::from_utf8(bytes).map_err(|_| "is not UTF-8 text"),
    };
    let text = text.map_err(|reason| ReadError::Content(reason.into()))?;
    Ok(match text.strip_prefix('\u{feff}') {
        Some(rest) => rest.into(),
        None => text,
    })
}

/// What a regular file of JSON holds, like [`text`]; serde_json limits its depth.
pub fn json<T: DeserializeOwned>(path: &Path, most: u64, what: &str) -> Result<T, ReadError> {
    let text = text(path, most, what)?;
    serde_json::from_str(&text).map_err(|e| {
        let begins_with_letter = text.trim_start().starts_with(|c: char| c.is_ascii_alphabetic());
        ReadError::Content(match first_line(text.as_bytes()) {
            None => "is empty".into(),
            Some(line) if begins_with_letter => format!("is not JSON: it begins '{line}'"),
            Some(_) => e.to_string(),
        })
    })
}

/// Most directives of a YAML text, each of which the reader compares with all before.
const MAX_DIRECTIVES: usize = 16;

/// Most bytes of a YAML text, times the brackets in it: at each byte, the reader looks at all brackets that are open.
const MAX_NESTED: usize = 1 << 28;

/// What YAML text says.
///
/// # Errors
///
/// The reason, also where the text would take long to be read.
pub fn yaml<T: DeserializeOwned>(text: &str) -> Result<T, String> {
    let lines = text.split(['\n', '\r', '\u{85}', '\u{2028}', '\u{2029}']);
    let n_directives = lines.filter(|line| line.starts_with('%')).count();
    if n_directives > MAX_DIRECTIVES {
        return Err(format!("has {n_directives} directives, more than {MAX_DIRECTIVES}"));
    }
    let n_brackets = text.bytes().filter(|byte| b"[{".contains(byte)).count();
    if n_brackets.saturating_mul(text.len()) > MAX_NESTED {
        return Err(format!("has {n_brackets} brackets in {} bytes, too many to be read", text.len()));
    }
    serde_yaml::from_str(text).map_err(|e| e.to_string())
}

/// How files begin that lie in place of others, or are of other formats.
const STAND_INS: [(&[u8], &str); 16] = [
    (b"version https://git-lfs", "is a Git LFS pointer, not the file itself, which `git lfs pull` fetches"),
    (
        b"# xet version",
        "is a Git Xet pointer, not the file itself, which Hugging Face's command line (hf download) fetches",
    ),
    (b"/annex/objects/", "is a git-annex pointer, not the file itself, which `git annex get` fetches"),
    (b"../.git/annex/objects/", "is a git-annex pointer, not the file itself, which `git annex get` fetches"),
    (b"PK\x03\x04", "is a ZIP archive, as torch writes pickled weights, and kiln reads safetensors"),
    (b"GGUF", "is a GGUF file, and kiln reads safetensors"),
    (b"\x89HDF", "is an HDF5 file, as Keras writes weights, and kiln reads safetensors"),
    (b"\x1f\x8b", "is a gzip archive, which has to be unpacked first"),
    (b"\x28\xb5\x2f\xfd", "is a zstd archive, which has to be unpacked first"),
    (b"7z\xbc\xaf\x27\x1c", "is a 7z archive, which has to be unpacked first"),
    (b"Rar!\x1a\x07", "is a RAR archive, which has to be unpacked first"),
    (b"\xfd7zXZ\0", "is an xz archive, which has to be unpacked first"),
    (b"BZh", "is a bzip2 archive, which has to be unpacked first"),
    (b"\x89PNG\r\n\x1a\n", "is a picture"),
    (b"\xff\xd8\xff", "is a picture"),
    (b"%PDF-", "is a PDF document"),
];

/// What lies in place of a file, if its first bytes show that.
pub fn stands_for(head: &[u8]) -> Option<&'static str> {
    let begins =
        |text: &[u8], with: &[u8]| text.get(..with.len()).is_some_and(|t| t.eq_ignore_ascii_case(with));
    let text = head.trim_ascii_start();
    if [&b"<!doctype"[..], b"<html", b"<?xml"].iter().any(|tag| begins(text, tag)) {
        return Some("is a web page, saved in place of the file itself");
    }
    STAND_INS.iter().find(|(with, _)| begins(head, with)).map(|(_, what)| *what)
}

/// The first line of what is text, as messages show it.
pub(crate) fn first_line(head: &[u8]) -> Option<String> {
    const SHOWN: usize = 40;
    let is_text = |text: &&str| !text.contains(|c: char| c.is_control() && !c.is_ascii_whitespace());
    let text = std::str::from_utf8(head).ok().filter(is_text)?;
    let line = text.trim_start().lines().next()?;
    Some(line.chars().take(SHOWN).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(bytes: &[u8]) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), bytes).expect("bytes");
        file
    }

    #[track_caller]
    fn refuses(result: Result<impl std::fmt::Debug, ReadError>, with: &str) {
        match result {
            Err(ReadError::Content(reason)) => assert!(reason.contains(with), "{reason}"),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn no_more_than_allowed_is_read() {
        let long = file(b"12345");
        assert_eq!(bytes(long.path(), 5, "note").expect("five bytes"), b"12345");
        refuses(bytes(long.path(), 4, "note"), "has 5 bytes, more than any note");
        assert!(matches!(bytes(&long.path().join("none"), 5, "note"), Err(ReadError::System(_))));
    }

    #[cfg(unix)]
    #[test]
    fn pipes_devices_and_folders_are_refused_at_once() {
        let folder = tempfile::tempdir().expect("a folder");
        let pipe = folder.path().join("pipe");
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, 0o600.into(), 0)
            .expect("a pipe");
        for path in [pipe.as_path(), Path::new("/dev/zero"), folder.path()] {
            refuses(bytes(path, 5, "note"), "is not a regular file");
        }
    }

    #[test]
    fn a_byte_order_mark_is_passed_over_and_other_encodings_are_named() {
        assert_eq!(text(file("\u{feff}{}".as_bytes()).path(), 9, "note").expect("text"), "{}");
        refuses(text(file(b"\xff\xfe{\0}\0").path(), 9, "note"), "UTF-16");
        refuses(text(file(b"\xc3(").path(), 9, "note"), "is not UTF-8 text");
    }

    #[test]
    fn yaml_that_would_take_long_is_refused() {
        let read = |text: &str| yaml::<serde_json::Value>(text).expect_err("refused");
        assert!(read(&"[".repeat(1 << 20)).starts_with("has 1048576 brackets in 1048576 bytes, "));
        assert!(read(&format!("{}{}", "{".repeat(1 << 10), "a,".repeat(1 << 20))).contains(" brackets in "));
        let tags: String = (0..1 << 17).map(|i| format!("%TAG !{i}! x\u{85}")).collect();
        assert_eq!(read(&tags), "has 131072 directives, more than 16");
        let rows = "- [1, 2]\n".repeat(1 << 10);
        let found: Vec<[u8; 2]> = yaml(&format!("%YAML 1.2\n---\n{rows}")).expect("lists");
        assert_eq!(found, [[1, 2]; 1 << 10]);
    }

    #[test]
    fn what_stands_for_a_file_is_named() {
        let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12345\n";
        refuses(json::<serde_json::Value>(file(pointer).path(), 999, "note"), "git lfs pull");
        refuses(text(file(b"\n <!DOCTYPE html><html>").path(), 999, "note"), "is a web page");
        assert_eq!(stands_for(b"{\"a\": 1}"), None);
        for (bytes, what) in [
            (&b"# xet version 0\nfilesize = 1\n"[..], "is a Git Xet pointer"),
            (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "is a web page"),
            (b"/annex/objects/MD5E-s1--0\n", "is a git-annex pointer"),
            (b"Entry not found", "is not JSON: it begins 'Entry not found'"),
            (b" \n", "is empty"),
            (b"", "is empty"),
        ] {
            refuses(json::<serde_json::Value>(file(bytes).path(), 999, "note"), what);
        }
    }
}
