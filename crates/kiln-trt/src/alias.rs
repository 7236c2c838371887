//! A second name for a library that is loaded: an empty shared library of that name which needs it.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use crate::TrtError;
use crate::error::TrtErrorKind;

/// `Elf64_Half e_machine` of the ELF format, for what NVIDIA builds TensorRT for.
const MACHINE: u16 = if cfg!(target_arch = "aarch64") { 183 } else { 62 };

const HEADER_SIZE: usize = 64;
const SEGMENT_SIZE: usize = 56;
const N_SEGMENTS: usize = 3;
const DYNAMIC_AT: usize = HEADER_SIZE + N_SEGMENTS * SEGMENT_SIZE;
const N_DYNAMIC: usize = 7;
const SYMBOLS_AT: usize = DYNAMIC_AT + N_DYNAMIC * 16;
const SYMBOL_SIZE: usize = 24;
const STRINGS_AT: usize = SYMBOLS_AT + SYMBOL_SIZE;

/// Lets the dynamic loader find the library at `path` as `name`, as long as what this returns lives.
pub(crate) fn load(path: &Path, name: &str) -> Result<libloading::Library, TrtError> {
    let refuse = |reason: String| {
        TrtError::new(TrtErrorKind::Library, format!("{}: cannot be named {name}: {reason}", path.display()))
    };
    let path = fs::canonicalize(path).map_err(|e| refuse(e.to_string()))?;
    let (file, mut own) = temporary(name).map_err(|e| refuse(e.to_string()))?;
    let written = own.write_all(&shared_library(name, path.as_os_str().as_encoded_bytes()));
    let loaded = written.map_err(|e| e.to_string()).and_then(|()| {
        // SAFETY: the library has no code, and nobody else can write its file.
        unsafe { libloading::Library::new(&file) }.map_err(|e| e.to_string())
    });
    // What is loaded stays when its file goes.
    let _ = fs::remove_file(&file);
    loaded.map_err(refuse)
}

/// A new file that is ours alone.
fn temporary(name: &str) -> io::Result<(PathBuf, File)> {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    loop {
        let unique = format!("{}-{}-{name}", std::process::id(), COUNT.fetch_add(1, Relaxed));
        let path = std::env::temp_dir().join(unique);
        match private().open(&path) {
            Err(e) if e.kind() == ErrorKind::AlreadyExists => {}
            other => return other.map(|file| (path, file)),
        }
    }
}

/// How a new file is opened that its owner alone may touch.
fn private() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options
}

/// An ELF file with a `DT_SONAME` and a `DT_NEEDED`, and nothing else that a loader asks for.
fn shared_library(name: &str, needed: &[u8]) -> Vec<u8> {
    let strings = [&[0], name.as_bytes(), &[0], needed, &[0]].concat();
    let (name_at, needed_at) = (1, name.len() + 2);
    let size = STRINGS_AT + strings.len();
    let mut file = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    const SHARED: u16 = 3;
    half(&mut file, &[SHARED, MACHINE]);
    word(&mut file, &[1]);
    long(&mut file, &[0, HEADER_SIZE, 0]);
    word(&mut file, &[0]);
    half(&mut file, &[HEADER_SIZE as u16, SEGMENT_SIZE as u16, N_SEGMENTS as u16, 64, 0, 0]);
    const READ_WRITE: u32 = 6;
    let dynamic_size = N_DYNAMIC * 16;
    const LARGEST_PAGE: usize = 0x1_0000;
    for (kind, at, size, align) in [
        (1_u32, 0, size, LARGEST_PAGE),
        (2, DYNAMIC_AT, dynamic_size, 8),
        // The stack, which needs not be executable.
        (0x6474_e551, 0, 0, 16),
    ] {
        word(&mut file, &[kind, READ_WRITE]);
        long(&mut file, &[at, at, at, size, size, align]);
    }
    let [needed_tag, strtab, symtab, strsz, syment, soname] = [1, 5, 6, 10, 11, 14];
    for entry in [
        [soname, name_at],
        [needed_tag, needed_at],
        [strtab, STRINGS_AT],
        [strsz, strings.len()],
        [symtab, SYMBOLS_AT],
        [syment, SYMBOL_SIZE],
        [0, 0],
    ] {
        long(&mut file, &entry);
    }
    file.resize(STRINGS_AT, 0);
    file.extend(strings);
    file
}

fn half(file: &mut Vec<u8>, values: &[u16]) {
    file.extend(values.iter().flat_map(|value| value.to_le_bytes()));
}

fn word(file: &mut Vec<u8>, values: &[u32]) {
    file.extend(values.iter().flat_map(|value| value.to_le_bytes()));
}

fn long(file: &mut Vec<u8>, values: &[usize]) {
    file.extend(values.iter().flat_map(|value| (*value as u64).to_le_bytes()));
}
