//! Instruction sets, found at run time.

use std::fmt;
use std::str::FromStr;

use crate::Error;

/// Which instructions kernels use. Every one computes the same sums; their orders and roundings differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Isa {
    /// No intrinsics: for tests, and for processors without any of the others.
    Portable,
    /// AArch64's vectors of four.
    Neon,
    /// AVX2 and FMA: vectors of eight.
    Avx2,
    /// AVX-512F and BW: vectors of sixteen.
    Avx512,
    /// The same and VNNI: products of four int8 in one instruction.
    Avx512Vnni,
    /// The same and BF16: products of bf16 pairs in one instruction.
    Avx512Bf16,
    /// The same, with products of bf16 and int8 in tiles by AMX, which Linux lets the process use.
    Amx,
}

impl Isa {
    /// All of them, the slowest first.
    pub const ALL: [Isa; 7] =
        [Isa::Portable, Isa::Neon, Isa::Avx2, Isa::Avx512, Isa::Avx512Vnni, Isa::Avx512Bf16, Isa::Amx];

    /// The fastest that this processor and its operating system have.
    pub fn best() -> Isa {
        Self::ALL.into_iter().rev().find(|isa| isa.is_available()).unwrap_or(Isa::Portable)
    }

    /// Whether this processor and its operating system have it.
    pub fn is_available(self) -> bool {
        match self {
            Isa::Portable => true,
            other => available(other),
        }
    }

    /// Its name, as [`FromStr`] reads it.
    pub fn name(self) -> &'static str {
        match self {
            Isa::Portable => "portable",
            Isa::Neon => "neon",
            Isa::Avx2 => "avx2",
            Isa::Avx512 => "avx512",
            Isa::Avx512Vnni => "avx512-vnni",
            Isa::Avx512Bf16 => "avx512-bf16",
            Isa::Amx => "amx",
        }
    }

    /// `self` where the processor has it.
    pub(crate) fn checked(self) -> Result<Isa, Error> {
        if self.is_available() { Ok(self) } else { Err(Error::Isa(self)) }
    }
}

#[cfg(all(target_arch = "x86_64", not(miri)))]
fn available(isa: Isa) -> bool {
    let avx512 = is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("fma");
    let vnni = avx512 && is_x86_feature_detected!("avx512vnni");
    let bf16 = vnni && is_x86_feature_detected!("avx512bf16");
    match isa {
        Isa::Avx2 => is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma"),
        Isa::Avx512 => avx512,
        Isa::Avx512Vnni => vnni,
        Isa::Avx512Bf16 => bf16,
        Isa::Amx => bf16 && crate::simd::amx::is_available(),
        _ => false,
    }
}

#[cfg(all(target_arch = "aarch64", not(miri)))]
fn available(isa: Isa) -> bool {
    isa == Isa::Neon && std::arch::is_aarch64_feature_detected!("neon")
}

#[cfg(any(miri, not(any(target_arch = "x86_64", target_arch = "aarch64"))))]
fn available(_: Isa) -> bool {
    false
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Isa {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self, Error> {
        Self::ALL.into_iter().find(|isa| isa.name() == name).ok_or_else(|| Error::IsaName(name.to_owned()))
    }
}
