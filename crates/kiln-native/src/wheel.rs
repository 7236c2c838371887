//! The pinned wheels.

#[cfg(feature = "install")]
use std::env::consts::ARCH;
use std::env::consts::OS;
use std::fmt;

/// A native library that kiln can use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Library {
    /// ONNX Runtime with its CPU provider.
    OnnxRuntimeCpu,
    /// TensorRT-RTX and its ONNX parser.
    TensorrtRtx,
}

impl Library {
    /// Every library.
    pub const ALL: [Library; 2] = [Library::OnnxRuntimeCpu, Library::TensorrtRtx];

    /// Name for `kiln runtime install`.
    pub fn name(self) -> &'static str {
        match self {
            Library::OnnxRuntimeCpu => "cpu",
            Library::TensorrtRtx => "tensorrt-rtx",
        }
    }

    /// Version that is fetched.
    pub fn version(self) -> &'static str {
        self.wheel().version
    }

    pub(crate) fn wheel(self) -> &'static Wheel {
        match self {
            Library::OnnxRuntimeCpu => &ONNXRUNTIME,
            Library::TensorrtRtx => &TENSORRT_RTX,
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
    /// Version of the library.
    pub(crate) version: &'static str,
    /// Version of the package.
    pub(crate) release: &'static str,
    /// ABI tag of the package; the libraries inside do not depend on it.
    #[cfg_attr(not(feature = "install"), expect(dead_code, reason = "what is only looked for is not fetched"))]
    pub(crate) abi: &'static str,
    #[cfg_attr(not(feature = "install"), expect(dead_code, reason = "what is only looked for is not fetched"))]
    pub(crate) platforms: &'static [Platform],
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
    /// The file for this platform; a program that is linked with musl can not open libraries for glibc.
    #[cfg(feature = "install")]
    pub(crate) fn for_this_platform(&self) -> Option<&'static Platform> {
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

const LICENSE: (&str, u64) = ("onnxruntime/LICENSE", 1 << 20);
const NOTICES: (&str, u64) = ("onnxruntime/ThirdPartyNotices.txt", 4 << 20);

static ONNXRUNTIME: Wheel = Wheel {
    title: "ONNX Runtime",
    variable: crate::env::KILN_ONNXRUNTIME,
    stem: "onnxruntime",
    package: "onnxruntime",
    version: "1.32.0",
    release: "1.32.0",
    abi: "cp312",
    platforms: &[
        Platform {
            os: "linux",
            arch: "x86_64",
            tag: "manylinux_2_28_x86_64",
            bytes: 27_780_211,
            sha256: "99e1074c4b2197accd5073052a465361be17b89c093b8ffb6e6bd8f986c52df8",
            members: &[
                ("onnxruntime/capi/libonnxruntime.so.1.32.0", 128 << 20),
                ("onnxruntime/capi/libonnxruntime_providers_shared.so", 16 << 20),
                LICENSE,
                NOTICES,
            ],
        },
        Platform {
            os: "linux",
            arch: "aarch64",
            tag: "manylinux_2_28_aarch64",
            bytes: 23_196_724,
            sha256: "e36c187006e7a7c8b8d6d57f1a209dd63f52430dca6c282b177718ad6b841054",
            members: &[
                ("onnxruntime/capi/libonnxruntime.so.1.32.0", 128 << 20),
                ("onnxruntime/capi/libonnxruntime_providers_shared.so", 16 << 20),
                LICENSE,
                NOTICES,
            ],
        },
        Platform {
            os: "macos",
            arch: "aarch64",
            tag: "macosx_14_0_arm64",
            bytes: 22_519_308,
            sha256: "d52510bbbcc880c13b826f7d75cdf33ac5cf0bb864d960000fc29ce73f0cb83e",
            members: &[("onnxruntime/capi/libonnxruntime.1.32.0.dylib", 128 << 20), LICENSE, NOTICES],
        },
        Platform {
            os: "windows",
            arch: "x86_64",
            tag: "win_amd64",
            bytes: 16_698_767,
            sha256: "efe7456952c243a05a53d5b8732953625144642c2f3989094277f6217f0c0c40",
            members: &[
                ("onnxruntime/capi/onnxruntime.dll", 128 << 20),
                ("onnxruntime/capi/onnxruntime_providers_shared.dll", 16 << 20),
                LICENSE,
                NOTICES,
            ],
        },
    ],
};

static TENSORRT_RTX: Wheel = Wheel {
    title: "TensorRT-RTX",
    variable: crate::env::KILN_TENSORRT_RTX,
    stem: "tensorrt_rtx",
    package: "onnxruntime-ep-nv-tensorrt-rtx-cu13",
    version: "1.7.1",
    release: "0.5.0",
    abi: "none",
    platforms: &[Platform {
        os: "linux",
        arch: "x86_64",
        tag: "manylinux_2_28_x86_64",
        bytes: 146_476_965,
        sha256: "32f575c633d171b4edf4b53d3bb22b72a6c9c0a850d2982ce9a788a5d40d3298",
        members: &[
            ("onnxruntime_ep_nv_tensorrt_rtx/libtensorrt_rtx.so.1.7.1", 512 << 20),
            ("onnxruntime_ep_nv_tensorrt_rtx/libtensorrt_onnxparser_rtx.so.1.7.1", 32 << 20),
            ("onnxruntime_ep_nv_tensorrt_rtx/README.txt", 1 << 20),
            ("onnxruntime_ep_nv_tensorrt_rtx/Acknowledgements.txt", 4 << 20),
        ],
    }],
};

#[cfg(all(test, feature = "install"))]
mod tests {
    use super::*;

    #[test]
    fn every_wheel_is_pinned_and_holds_its_library() {
        for wheel in Library::ALL.map(Library::wheel) {
            for platform in wheel.platforms {
                assert_eq!(platform.sha256.len(), 64, "{}", platform.tag);
                assert!(platform.sha256.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')));
                let preferred = &wheel.file_names_on(platform.os)[0];
                let mut names: Vec<&str> = platform.members.iter().map(|member| bare_name(member.0)).collect();
                assert!(names.contains(&preferred.as_str()), "{}: no {preferred}", platform.tag);
                names.sort_unstable();
                names.dedup();
                assert_eq!(names.len(), platform.members.len(), "{}: names collide", platform.tag);
            }
        }
    }
}
