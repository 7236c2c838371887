//! What happens when memory that is a file cannot be read: the file was cut, or its disk failed, while it was mapped.
#![expect(unsafe_code, reason = "signal handlers are set and run by C")]

use std::mem::zeroed;
use std::ptr;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::failure::Exit;

/// From now on the process says which file it was, and ends with [`Exit::Input`].
pub(crate) fn watch() {
    // SAFETY: all zeros is a valid `sigaction`, and `handle` calls nothing but what signal handlers may call.
    unsafe {
        let mut action: libc::sigaction = zeroed();
        action.sa_sigaction = handle as *const () as libc::sighandler_t;
        action.sa_flags = libc::SA_SIGINFO;
        libc::sigaction(libc::SIGBUS, &raw const action, ptr::null_mut());
    }
}

/// Whether the process was started with a signal ignored.
pub(crate) fn is_ignored(signal: libc::c_int) -> bool {
    // SAFETY: all zeros is a valid `sigaction`, which the call fills; no action is set.
    unsafe {
        let mut action: libc::sigaction = zeroed();
        libc::sigaction(signal, ptr::null(), &raw mut action) == 0 && action.sa_sigaction == libc::SIG_IGN
    }
}

/// Longest path that is told, with the numbers before it.
const MAX_LINE: usize = 8192;

extern "C" fn handle(signal: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    static IS_TOLD: AtomicBool = AtomicBool::new(false);
    // SAFETY: the operating system hands over a valid `info`; every call is one that POSIX allows in a signal handler.
    unsafe {
        if (*info).si_code != libc::BUS_ADRERR {
            // Not about a file: it ends as it would without this handler.
            libc::signal(signal, libc::SIG_DFL);
            libc::raise(signal);
            return;
        }
        if IS_TOLD.swap(true, Ordering::SeqCst) {
            // Another thread is telling.
            loop {
                libc::pause();
            }
        }
        let mut line = [0; MAX_LINE];
        let path = mapped_file((*info).si_addr() as usize, &mut line).unwrap_or(b"a file of the model");
        for part in [&b"error: "[..], path, b": was cut, or its disk failed, while it was in use\n"] {
            libc::write(libc::STDERR_FILENO, part.as_ptr().cast(), part.len());
        }
        libc::_exit(Exit::Input as i32);
    }
}

/// The file that an address is mapped to, as Linux lists them; neither allocates nor locks.
fn mapped_file(address: usize, line: &mut [u8; MAX_LINE]) -> Option<&[u8]> {
    // SAFETY: the path ends with a zero, and `byte` is as large as what is read into it.
    let next = |file| unsafe {
        let mut byte = 0_u8;
        (libc::read(file, (&raw mut byte).cast(), 1) == 1).then_some(byte)
    };
    // SAFETY: as above.
    let maps = unsafe { libc::open(c"/proc/self/maps".as_ptr(), libc::O_RDONLY) };
    let mut length = 0;
    loop {
        match next(maps)? {
            b'\n' if holds(&line[..length], address) => break,
            b'\n' => length = 0,
            byte if length < MAX_LINE => {
                line[length] = if byte.is_ascii_control() { b'?' } else { byte };
                length += 1;
            }
            _ => {}
        }
    }
    let start = line[..length].iter().position(|byte| *byte == b'/')?;
    Some(&line[start..length])
}

/// Whether a line of the list is about the address: it begins with two hexadecimal numbers, the second exclusive.
fn holds(line: &[u8], address: usize) -> bool {
    let mut ends = [0_usize; 2];
    let mut i = 0;
    for byte in line {
        match (*byte as char).to_digit(16) {
            Some(digit) => ends[i] = ends[i] << 4 | digit as usize,
            None if i == 0 => i = 1,
            None => break,
        }
    }
    (ends[0]..ends[1]).contains(&address)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_holds_addresses_between_its_ends() {
        let line = b"7f3a00001000-7f3a00003000 r--s 00000000 08:01 42   /cache/unet.data";
        for (address, expected) in [
            (0x7f3a_0000_0fff, false),
            (0x7f3a_0000_1000, true),
            (0x7f3a_0000_2fff, true),
            (0x7f3a_0000_3000, false),
        ] {
            assert_eq!(holds(line, address), expected, "{address:x}");
        }
        assert!(!holds(b"", 0));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn code_is_mapped_to_this_program() {
        let program = std::env::current_exe().expect("a path");
        let mut line = [0; MAX_LINE];
        let found = mapped_file(holds as *const () as usize, &mut line).expect("a file");
        assert_eq!(found, program.as_os_str().as_encoded_bytes());
    }
}
