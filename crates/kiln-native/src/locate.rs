use std::env;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use crate::env::KILN_CACHE_DIR;
use crate::error::{Error, ErrorKind, named_by};
use crate::wheel::Library;

/// A library that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// The library file.
    pub path: PathBuf,
    /// Where it was found.
    pub origin: Origin,
}

impl Found {
    /// Whether the user named it.
    pub fn is_explicit(&self) -> bool {
        matches!(self.origin, Origin::Variable(_))
    }
}

/// Where a library was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// An environment variable names it.
    Variable(&'static str),
    /// It lies beside the program.
    Program,
    /// `kiln runtime install` put it there.
    Installed,
}

/// Looks for a library; `None` where there is none.
///
/// A variable that names no usable library is an error, never passed over.
pub fn locate(library: Library) -> Result<Option<Found>, Error> {
    let variable = library.variable();
    if let Some(path) = env::var_os(variable).filter(|value| !value.is_empty()).map(PathBuf::from) {
        let subject = named_by(variable, &path);
        let refuse = |reason: &str| Err(Error::new(ErrorKind::NotALibrary, subject.clone(), reason));
        let file = match path.is_dir() {
            true => find_in(&path, library),
            false => path.is_file().then(|| path.clone()),
        };
        return match file {
            None if path.is_dir() => refuse(&format!("holds no {}", library.file_names().join(" or "))),
            None => refuse("no such file"),
            Some(file) if !is_shared_library(&file) => refuse("is not a shared library for this machine"),
            Some(path) => Ok(Some(Found { path, origin: Origin::Variable(variable) })),
        };
    }
    let beside = env::current_exe().ok().and_then(|exe| Some(exe.parent()?.to_path_buf()));
    let installed = install_dir(library).ok();
    let places = [(beside, Origin::Program), (installed, Origin::Installed)];
    Ok(places.into_iter().find_map(|(folder, origin)| {
        let path = find_in(&folder?, library).filter(|path| is_shared_library(path))?;
        Some(Found { path, origin })
    }))
}

fn find_in(folder: &Path, library: Library) -> Option<PathBuf> {
    library.file_names().into_iter().map(|name| folder.join(name)).find(|path| path.is_file())
}

/// Folder for everything that kiln downloads: `KILN_CACHE_DIR`, else `kiln` in the platform's cache folder.
pub fn cache_dir() -> Result<PathBuf, Error> {
    let var = |name: &str| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    if let Some(folder) = var(KILN_CACHE_DIR) {
        return Ok(folder);
    }
    let base = match env::consts::OS {
        "windows" => var("LOCALAPPDATA"),
        "macos" => var("HOME").map(|home| home.join("Library/Caches")),
        _ => var("XDG_CACHE_HOME").filter(|p| p.is_absolute()).or(var("HOME").map(|home| home.join(".cache"))),
    };
    base.map(|base| base.join("kiln")).ok_or_else(|| {
        Error::new(ErrorKind::Cache, "cache folder", "neither HOME nor KILN_CACHE_DIR is set")
            .with_hint(format!("set {KILN_CACHE_DIR} to a folder that kiln may write"))
    })
}

/// Folder that a fetched library is unpacked into.
pub fn install_dir(library: Library) -> Result<PathBuf, Error> {
    let wheel = library.wheel();
    Ok(cache_dir()?.join("native").join(format!("{}-{}", wheel.package, wheel.version)))
}

/// Whether a file starts like a 64-bit shared library for this machine.
fn is_shared_library(path: &Path) -> bool {
    let mut head = [0; 20];
    let read = File::open(path).and_then(|mut file| file.read_exact(&mut head));
    read.is_ok() && is_library_head(&head, env::consts::OS, env::consts::ARCH)
}

fn is_library_head(head: &[u8; 20], os: &str, arch: &str) -> bool {
    match os {
        "windows" => head.starts_with(b"MZ"),
        "macos" => head.starts_with(&[0xcf, 0xfa, 0xed, 0xfe]) || head.starts_with(&[0xca, 0xfe, 0xba, 0xbe]),
        _ => {
            let is_elf64 = head.starts_with(b"\x7fELF\x02");
            let machine = u16::from_le_bytes([head[18], head[19]]);
            let expected = match arch {
                "x86_64" => 0x3e,
                "aarch64" => 0xb7,
                _ => machine,
            };
            is_elf64 && machine == expected
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_libraries_for_this_machine_pass() {
        let mut elf = *b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x03\0\x3e\0";
        assert!(is_library_head(&elf, "linux", "x86_64"));
        assert!(!is_library_head(&elf, "linux", "aarch64"));
        elf[4] = 1;
        assert!(!is_library_head(&elf, "linux", "x86_64"));
        assert!(!is_library_head(b"#!/bin/sh\necho hello", "linux", "x86_64"));
    }
}
