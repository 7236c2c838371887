//! Telling shared libraries for this machine from other files by their headers.

use std::env::consts::{ARCH, OS};
use std::fs::File;
use std::io::Read;
use std::path::Path;

use crate::error::io_reason;

/// More than any linker puts before the header of a PE file.
const HEAD: u64 = 4096;

/// Refuses a file that does not start like a 64-bit shared library for this machine.
pub(crate) fn check(path: &Path) -> Result<(), String> {
    let mut head = Vec::new();
    File::open(path).and_then(|file| file.take(HEAD).read_to_end(&mut head)).map_err(|e| io_reason(&e))?;
    check_head(&head, OS, ARCH).map_err(|reason| format!("is not a shared library for this machine: {reason}"))
}

fn check_head(head: &[u8], os: &str, arch: &str) -> Result<(), String> {
    let (format, header) = match os {
        "windows" => ("PE", pe(head)),
        "macos" => ("Mach-O", mach_o(head, arch)),
        _ => ("ELF", elf(head)),
    };
    let Some(header) = header else {
        return Err(format!("it has no {format} header"));
    };
    if !header.is_64_bit {
        return Err("it is not 64-bit".into());
    }
    if header.arch != arch && is_known(os, arch) {
        return Err(format!("it is for {}, this is {arch}", header.arch));
    }
    match header.is_library {
        true => Ok(()),
        false => Err(format!("it is another kind of {format} file")),
    }
}

struct Header {
    is_64_bit: bool,
    is_library: bool,
    arch: String,
}

const ELF_MACHINES: &[(&str, u32)] = &[("x86_64", 0x3e), ("aarch64", 0xb7), ("riscv64", 0xf3)];
const MACH_O_MACHINES: &[(&str, u32)] = &[("x86_64", 0x0100_0007), ("aarch64", 0x0100_000c)];
const PE_MACHINES: &[(&str, u32)] = &[("x86_64", 0x8664), ("aarch64", 0xaa64)];

fn is_known(os: &str, arch: &str) -> bool {
    let machines = match os {
        "windows" => PE_MACHINES,
        "macos" => MACH_O_MACHINES,
        _ => ELF_MACHINES,
    };
    machines.iter().any(|&(name, _)| name == arch)
}

fn arch_of(machines: &[(&str, u32)], machine: u32) -> String {
    let known = machines.iter().find(|&&(_, number)| number == machine);
    known.map_or_else(|| format!("machine {machine:#x}"), |&(name, _)| name.to_owned())
}

fn bytes<const N: usize>(head: &[u8], at: usize) -> Option<[u8; N]> {
    head.get(at..)?.first_chunk().copied()
}

fn elf(head: &[u8]) -> Option<Header> {
    const ET_DYN: u16 = 3;
    let [0x7f, b'E', b'L', b'F', class, order] = bytes(head, 0)? else { return None };
    let word = |at| {
        Some(if order == 2 {
            u16::from_be_bytes(bytes(head, at)?)
        } else {
            u16::from_le_bytes(bytes(head, at)?)
        })
    };
    Some(Header {
        is_64_bit: class == 2,
        is_library: word(16)? == ET_DYN,
        arch: arch_of(ELF_MACHINES, word(18)?.into()),
    })
}

fn mach_o(head: &[u8], arch: &str) -> Option<Header> {
    const MH_DYLIB: u32 = 6;
    const MH_BUNDLE: u32 = 8;
    let little = |at| Some(u32::from_le_bytes(bytes(head, at)?));
    match u32::from_be_bytes(bytes(head, 0)?) {
        magic @ (0xcffa_edfe | 0xcefa_edfe) => Some(Header {
            is_64_bit: magic == 0xcffa_edfe,
            is_library: matches!(little(12)?, MH_DYLIB | MH_BUNDLE),
            arch: arch_of(MACH_O_MACHINES, little(4)?),
        }),
        0xcafe_babe => universal(head, arch, 20),
        0xcafe_babf => universal(head, arch, 32),
        _ => None,
    }
}

/// A file with one library for each machine, listed in entries of `size` bytes.
fn universal(head: &[u8], arch: &str, size: usize) -> Option<Header> {
    let big = |at| Some(u32::from_be_bytes(bytes(head, at)?));
    // Class files of Java start with the same magic and a version that is far above any number of machines.
    let n_machines = usize::try_from(big(4)?).ok().filter(|n| (1..=16).contains(n))?;
    let machines = (0..n_machines).map(|i| Some(arch_of(MACH_O_MACHINES, big(8 + i * size)?)));
    let machines: Vec<String> = machines.collect::<Option<_>>()?;
    let arch = match machines.iter().any(|machine| machine == arch) {
        true => arch.to_owned(),
        false => machines.join(" and "),
    };
    Some(Header { is_64_bit: true, is_library: true, arch })
}

fn pe(head: &[u8]) -> Option<Header> {
    const PE32_PLUS: u16 = 0x20b;
    const DLL: u16 = 0x2000;
    let b"MZ" = &bytes::<2>(head, 0)? else { return None };
    let header = head.get(usize::try_from(u32::from_le_bytes(bytes(head, 0x3c)?)).ok()?..)?;
    let b"PE\0\0" = &bytes::<4>(header, 0)? else { return None };
    let word = |at| Some(u16::from_le_bytes(bytes(header, at)?));
    Some(Header {
        is_64_bit: word(24)? == PE32_PLUS,
        is_library: word(22)? & DLL != 0,
        arch: arch_of(PE_MACHINES, word(4)?.into()),
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// The header of a library for a platform, followed by zeros.
    pub(crate) fn library(os: &str, arch: &str) -> Vec<u8> {
        let mut head = vec![0; 256];
        let mut put = |at: usize, bytes: &[u8]| head[at..at + bytes.len()].copy_from_slice(bytes);
        let machine = |machines: &[(&str, u32)]| machines.iter().find(|m| m.0 == arch).unwrap().1;
        match os {
            "windows" => {
                put(0, b"MZ");
                put(0x3c, &[0x80]);
                put(0x80, b"PE\0\0");
                put(0x84, &machine(PE_MACHINES).to_le_bytes()[..2]);
                put(0x96, &0x2022u16.to_le_bytes());
                put(0x98, &0x20bu16.to_le_bytes());
            }
            "macos" => {
                put(0, &[0xcf, 0xfa, 0xed, 0xfe]);
                put(4, &machine(MACH_O_MACHINES).to_le_bytes());
                put(12, &[6]);
            }
            _ => {
                put(0, b"\x7fELF\x02\x01\x01");
                put(16, &[3]);
                put(18, &machine(ELF_MACHINES).to_le_bytes()[..2]);
            }
        }
        head
    }

    #[track_caller]
    fn check(head: &[u8], platform: (&str, &str), expected: Result<(), &str>) {
        assert_eq!(check_head(head, platform.0, platform.1), expected.map_err(str::to_owned));
    }

    #[test]
    fn libraries_pass_on_their_platform_only() {
        for os in ["linux", "macos", "windows"] {
            check(&library(os, "x86_64"), (os, "x86_64"), Ok(()));
            check(&library(os, "aarch64"), (os, "aarch64"), Ok(()));
            check(&library(os, "x86_64"), (os, "aarch64"), Err("it is for x86_64, this is aarch64"));
        }
        check(&library("windows", "x86_64"), ("linux", "x86_64"), Err("it has no ELF header"));
        check(&library("linux", "x86_64"), ("macos", "x86_64"), Err("it has no Mach-O header"));
        check(&library("linux", "x86_64"), ("windows", "x86_64"), Err("it has no PE header"));
        check(&library("linux", "x86_64"), ("linux", "powerpc64"), Ok(()));
    }

    #[test]
    fn programs_and_32_bit_libraries_are_refused() {
        let spoil = |os, at: usize, byte| {
            let mut head = library(os, "x86_64");
            head[at] = byte;
            head
        };
        check(&spoil("linux", 4, 1), ("linux", "x86_64"), Err("it is not 64-bit"));
        check(&spoil("linux", 16, 1), ("linux", "x86_64"), Err("it is another kind of ELF file"));
        check(&spoil("macos", 0, 0xce), ("macos", "x86_64"), Err("it is not 64-bit"));
        check(&spoil("macos", 12, 2), ("macos", "x86_64"), Err("it is another kind of Mach-O file"));
        check(&spoil("windows", 0x99, 1), ("windows", "x86_64"), Err("it is not 64-bit"));
        check(&spoil("windows", 0x97, 0), ("windows", "x86_64"), Err("it is another kind of PE file"));
    }

    #[test]
    fn short_and_wild_headers_are_refused() {
        for os in ["linux", "macos", "windows"] {
            let head = library(os, "x86_64");
            (0..16).for_each(|n| assert!(check_head(&head[..n], os, "x86_64").is_err(), "{os} {n}"));
        }
        let mut head = library("windows", "x86_64");
        head[0x3c..0x40].fill(0xff);
        check(&head, ("windows", "x86_64"), Err("it has no PE header"));
    }

    #[test]
    fn a_universal_library_passes_if_it_has_a_part_for_this_machine() {
        let mut head = vec![0; 64];
        head[..8].copy_from_slice(&[0xca, 0xfe, 0xba, 0xbe, 0, 0, 0, 2]);
        head[8..12].copy_from_slice(&0x0100_0007u32.to_be_bytes());
        head[28..32].copy_from_slice(&0x0100_000cu32.to_be_bytes());
        check(&head, ("macos", "aarch64"), Ok(()));
        head[28] = 9;
        let error = "it is for x86_64 and machine 0x900000c, this is aarch64";
        check(&head, ("macos", "aarch64"), Err(error));
        head[7] = 52;
        check(&head, ("macos", "aarch64"), Err("it has no Mach-O header"));
    }
}
