//! Drivers, which come with the machine and are never fetched.

use std::path::Path;

/// Whether NVIDIA's kernel driver is loaded; on systems other than Linux it is taken to be.
pub fn has_nvidia_driver() -> bool {
    !cfg!(target_os = "linux")
        || ["/proc/driver/nvidia/version", "/dev/nvidiactl", "/dev/dxg"]
            .iter()
            .any(|path| Path::new(path).exists())
}
