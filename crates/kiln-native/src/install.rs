use std::fs;
use std::path::Path;

use kiln_bundle::Staging;
use kiln_bundle::fs::{Lock, create_folder};

use crate::error::{Error, ErrorKind};
use crate::locate::{Found, Origin, cache_dir, install_dir, locate};
use crate::pip::Pip;
use crate::unpack::unpack;
use crate::wheel::{Library, Platform};

/// What an installation is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Progress {
    /// pip is fetching the wheel.
    Fetching {
        /// Bytes so far.
        done: u64,
        /// Bytes of the wheel.
        total: u64,
    },
    /// The wheel's hash is checked.
    Verifying,
    /// The library is unpacked.
    Unpacking,
}

/// Fetches a library as its pinned wheel with pip, checks the hash and unpacks it into kiln's cache folder.
///
/// A library that is already there is returned at once. Processes that install at once fetch it once; an interrupted
/// installation leaves nothing that would be found.
pub fn install(library: Library, progress: &mut dyn FnMut(Progress)) -> Result<Found, Error> {
    let wheel = library.wheel();
    let Some(platform) = wheel.for_this_platform() else {
        let here = format!("{} on {}", std::env::consts::OS, std::env::consts::ARCH);
        return Err(Error::new(ErrorKind::Platform, library.to_string(), format!("has no wheel for {here}")));
    };
    let target = install_dir(library)?;
    let installed = || Ok(locate(library)?.filter(|found| found.origin == Origin::Installed));
    if let Some(found) = installed()? {
        return Ok(found);
    }
    let native = cache_dir()?.join("native");
    create_folder(&native).map_err(cache)?;
    let _lock = Lock::acquire(&native.join(format!(".{}.lock", wheel.package))).map_err(cache)?;
    if let Some(found) = installed()? {
        return Ok(found);
    }
    let staging = Staging::new(&target).map_err(cache)?;
    fetch_and_unpack(library, platform, staging.path(), progress)?;
    staging.publish().map_err(cache)?;
    locate_in(&target, library)
}

fn cache(error: kiln_bundle::BundleError) -> Error {
    Error::new(ErrorKind::Cache, "cache folder", error.to_string())
        .with_hint(format!("set {} to a folder that kiln may write", crate::env::KILN_CACHE_DIR))
}

fn locate_in(folder: &Path, library: Library) -> Result<Found, Error> {
    let path = library.file_names().into_iter().map(|name| folder.join(name)).find(|path| path.is_file());
    path.map(|path| Found { path, origin: Origin::Installed })
        .ok_or_else(|| Error::at(ErrorKind::Wheel, folder, "the wheel holds no library"))
}

fn fetch_and_unpack(
    library: Library,
    platform: &Platform,
    folder: &Path,
    progress: &mut dyn FnMut(Progress),
) -> Result<(), Error> {
    let wheel = library.wheel();
    let download = folder.join("download");
    fs::create_dir(&download).map_err(|e| Error::io(&download, &e))?;
    let file = Pip::find()?.download(wheel, platform, &download, &mut |done| {
        progress(Progress::Fetching { done, total: platform.bytes });
    })?;
    progress(Progress::Verifying);
    let found = sha256(&file)?;
    if found != platform.sha256 {
        let reason = format!("has sha256 {found}, expected {}", platform.sha256);
        return Err(Error::at(ErrorKind::Wheel, &file, reason));
    }
    progress(Progress::Unpacking);
    unpack(&file, platform.members, folder)?;
    fs::remove_dir_all(&download).map_err(|e| Error::io(&download, &e))?;
    let origin =
        format!("{} {} ({})\nsha256 {}\n", wheel.package, wheel.version, platform.tag, platform.sha256);
    let path = folder.join("ORIGIN.txt");
    fs::write(&path, origin).map_err(|e| Error::io(&path, &e))
}

fn sha256(path: &Path) -> Result<String, Error> {
    use sha2::{Digest, Sha256};
    let mut hasher = Sha256::new();
    let bytes = fs::read(path).map_err(|e| Error::io(path, &e))?;
    hasher.update(&bytes);
    Ok(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}
