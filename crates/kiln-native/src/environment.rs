//! What the crate learns from the process it runs in.

use std::collections::BTreeMap;
use std::env::consts::OS;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf, absolute};

use crate::env;
use crate::error::{Error, ErrorKind};
use crate::wheel::Wheel;

#[derive(Clone, Debug, Default)]
pub(crate) struct Environment {
    pub(crate) variables: BTreeMap<&'static str, OsString>,
    /// The folder that holds the program.
    pub(crate) program: Option<PathBuf>,
}

impl Environment {
    pub(crate) fn of_process() -> Environment {
        let variables = env::ALL.into_iter().filter_map(|name| Some((name, std::env::var_os(name)?))).collect();
        let program = std::env::current_exe().ok().and_then(|file| file.parent().map(Path::to_path_buf));
        Environment { variables, program }
    }

    pub(crate) fn variable(&self, name: &str) -> Option<&OsStr> {
        self.variables.get(name).map(OsString::as_os_str)
    }

    pub(crate) fn path(&self, name: &str) -> Option<PathBuf> {
        self.variable(name).filter(|value| !value.is_empty()).map(PathBuf::from)
    }

    pub(crate) fn cache_dir(&self) -> Result<PathBuf, Error> {
        self.cache_dir_on(OS).ok_or_else(|| {
            let home = if OS == "windows" { env::LOCALAPPDATA } else { env::HOME };
            let reason = format!("neither {home} nor {} is set", env::KILN_CACHE_DIR);
            Error::new(ErrorKind::Cache, "cache folder", reason).with_hint(Error::MOVE_CACHE)
        })
    }

    fn cache_dir_on(&self, os: &str) -> Option<PathBuf> {
        if let Some(folder) = self.path(env::KILN_CACHE_DIR) {
            return Some(absolute(&folder).unwrap_or(folder));
        }
        let in_home = |folder: &str| self.path(env::HOME).map(|home| home.join(folder));
        let base = match os {
            "windows" => self.path(env::LOCALAPPDATA),
            "macos" => in_home("Library/Caches"),
            _ => {
                let xdg = self.path(env::XDG_CACHE_HOME).filter(|folder| folder.is_absolute());
                xdg.or_else(|| in_home(".cache"))
            }
        };
        Some(base?.join("kiln"))
    }

    pub(crate) fn native_dir(&self) -> Result<PathBuf, Error> {
        Ok(self.cache_dir()?.join("native"))
    }

    pub(crate) fn install_dir(&self, wheel: &Wheel) -> Result<PathBuf, Error> {
        Ok(self.native_dir()?.join(format!("{}-{}", wheel.package, wheel.release)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(os: &str, variables: &[(&'static str, &str)], expected: Option<&str>) {
        let variables = variables.iter().map(|&(name, value)| (name, value.into())).collect();
        let environment = Environment { variables, program: None };
        assert_eq!(environment.cache_dir_on(os).as_deref(), expected.map(Path::new));
    }

    #[test]
    fn the_cache_folder_is_the_platforms_unless_named() {
        check("linux", &[(env::HOME, "/home/a")], Some("/home/a/.cache/kiln"));
        check("macos", &[(env::HOME, "/Users/a")], Some("/Users/a/Library/Caches/kiln"));
        check("windows", &[(env::LOCALAPPDATA, "/local")], Some("/local/kiln"));
        check("windows", &[(env::HOME, "/home/a")], None);
        check("linux", &[(env::HOME, "")], None);
    }

    #[cfg(unix)]
    #[test]
    fn a_named_cache_folder_wins_and_a_relative_xdg_folder_is_ignored() {
        check("linux", &[(env::HOME, "/home/a"), (env::KILN_CACHE_DIR, "/x")], Some("/x"));
        check("linux", &[(env::HOME, "/home/a"), (env::KILN_CACHE_DIR, "")], Some("/home/a/.cache/kiln"));
        check("linux", &[(env::HOME, "/home/a"), (env::XDG_CACHE_HOME, "/xdg")], Some("/xdg/kiln"));
        check("linux", &[(env::HOME, "/home/a"), (env::XDG_CACHE_HOME, "xdg")], Some("/home/a/.cache/kiln"));
    }

    #[test]
    fn without_a_home_the_error_says_what_to_set() {
        let error = Environment::default().cache_dir().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Cache);
        assert!(error.to_string().contains(env::KILN_CACHE_DIR), "{error}");
        assert!(error.hint().is_some());
    }
}
