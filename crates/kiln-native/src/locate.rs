use std::path::{Path, PathBuf, absolute};

use crate::environment::Environment;
use crate::error::{Error, ErrorKind, io_reason, named_by};
use crate::format;
use crate::wheel::{Library, Wheel};

/// A library that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// The library file, as an absolute path.
    pub path: PathBuf,
    /// Where it was found.
    pub origin: Origin,
}

impl Found {
    /// Whether the user named it.
    pub fn is_explicit(&self) -> bool {
        matches!(self.origin, Origin::Variable(_))
    }
}

/// Where a library was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// An environment variable names it.
    Variable(&'static str),
    /// It lies beside the program.
    Program,
    /// `kiln runtime install` put it there.
    Installed,
}

/// Looks for a library; `None` where there is none.
///
/// A variable that names no usable library is an error, never passed over.
pub fn locate(library: Library) -> Result<Option<Found>, Error> {
    Environment::of_process().locate(library.wheel())
}

/// A library's file in a folder, by the names that it may have.
pub fn library_in(folder: &Path, library: Library) -> Option<PathBuf> {
    file_in(folder, library.wheel())
}

/// Folder for everything that kiln downloads: `KILN_CACHE_DIR`, else `kiln` in the platform's cache folder.
pub fn cache_dir() -> Result<PathBuf, Error> {
    Environment::of_process().cache_dir()
}

/// Folder that a fetched library is unpacked into.
pub fn install_dir(library: Library) -> Result<PathBuf, Error> {
    Environment::of_process().install_dir(library.wheel())
}

impl Environment {
    pub(crate) fn locate(&self, wheel: &Wheel) -> Result<Option<Found>, Error> {
        if let Some(path) = self.path(wheel.variable) {
            return named(wheel, &path).map(Some);
        }
        let beside = self.program.as_deref().and_then(|folder| usable_in(folder, wheel));
        let beside = beside.map(|path| Found { path, origin: Origin::Program });
        Ok(beside.or_else(|| self.installed(wheel)))
    }

    pub(crate) fn installed(&self, wheel: &Wheel) -> Option<Found> {
        if wheel.package.is_empty() {
            return None;
        }
        let path = usable_in(&self.install_dir(wheel).ok()?, wheel)?;
        Some(Found { path, origin: Origin::Installed })
    }
}

fn named(wheel: &Wheel, path: &Path) -> Result<Found, Error> {
    let refuse = |reason: String| {
        let hint = format!("name a {} library or its folder with {}, or unset it", wheel.title, wheel.variable);
        Error::new(ErrorKind::NotALibrary, named_by(wheel.variable, path), reason).with_hint(hint)
    };
    let metadata = path.metadata().map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound => refuse("no such file".into()),
        _ => refuse(io_reason(&e)),
    })?;
    let file = match metadata.is_dir() {
        true => file_in(path, wheel)
            .ok_or_else(|| refuse(format!("holds no {}", wheel.file_names().join(" or "))))?,
        false => path.into(),
    };
    format::check(&file).map_err(refuse)?;
    if let Some(missing) = wheel.beside.iter().find(|name| !file.with_file_name(name).is_file()) {
        return Err(refuse(format!("has no {missing} beside it")));
    }
    // A loader searches the system's folders for a bare file name, so the path has to be absolute.
    let path = absolute(&file).map_err(|e| refuse(io_reason(&e)))?;
    Ok(Found { path, origin: Origin::Variable(wheel.variable) })
}

pub(crate) fn file_in(folder: &Path, wheel: &Wheel) -> Option<PathBuf> {
    wheel.file_names().into_iter().map(|name| folder.join(name)).find(|path| path.is_file())
}

fn usable_in(folder: &Path, wheel: &Wheel) -> Option<PathBuf> {
    let file = file_in(folder, wheel).filter(|path| format::check(path).is_ok())?;
    wheel.beside.iter().all(|name| file.with_file_name(name).is_file()).then_some(file)
}

#[cfg(test)]
mod tests {
    use std::env::consts::{ARCH, OS};
    use std::fs;

    use tempfile::TempDir;

    use super::*;
    use crate::env::{KILN_CACHE_DIR, KILN_ONNXRUNTIME};

    struct Machine {
        folder: TempDir,
        environment: Environment,
    }

    fn wheel() -> &'static Wheel {
        Library::OnnxRuntimeCpu.wheel()
    }

    impl Machine {
        fn new() -> Machine {
            let folder = tempfile::tempdir().unwrap();
            let variables = [(KILN_CACHE_DIR, folder.path().join("cache").into())].into();
            let environment = Environment { variables, program: Some(folder.path().join("bin")) };
            Machine { folder, environment }
        }

        fn put(&self, folder: &Path, bytes: &[u8]) -> PathBuf {
            fs::create_dir_all(folder).unwrap();
            let path = folder.join(&wheel().file_names()[0]);
            fs::write(&path, bytes).unwrap();
            path
        }

        fn name(&mut self, path: &Path) {
            self.environment.variables.insert(KILN_ONNXRUNTIME, path.into());
        }

        #[track_caller]
        fn finds(&self, expected: Option<(&Path, Origin)>) {
            let found = self.environment.locate(wheel()).unwrap();
            assert_eq!(found.as_ref().map(|found| (found.path.as_path(), found.origin)), expected);
        }

        #[track_caller]
        fn refuses(&self, path: &Path, reason: &str) {
            let error = self.environment.locate(wheel()).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::NotALibrary);
            assert!(error.hint().is_some());
            let text = error.to_string();
            assert!(text.starts_with(&format!("KILN_ONNXRUNTIME={}: ", path.display())), "{text}");
            assert!(text.contains(reason), "{text}");
        }
    }

    fn good() -> Vec<u8> {
        format::tests::library(OS, ARCH)
    }

    #[test]
    fn the_variable_comes_before_the_program_and_the_program_before_the_cache() {
        let mut machine = Machine::new();
        machine.finds(None);
        let installed = machine.put(&machine.environment.install_dir(wheel()).unwrap(), &good());
        machine.finds(Some((&installed, Origin::Installed)));
        let beside = machine.put(&machine.folder.path().join("bin"), &good());
        machine.finds(Some((&beside, Origin::Program)));
        let named = machine.put(&machine.folder.path().join("own"), &good());
        machine.name(&named);
        machine.finds(Some((&named, Origin::Variable(KILN_ONNXRUNTIME))));
        machine.name(named.parent().unwrap());
        machine.finds(Some((&named, Origin::Variable(KILN_ONNXRUNTIME))));
    }

    #[test]
    fn a_wrong_variable_is_never_passed_over() {
        let mut machine = Machine::new();
        machine.put(&machine.folder.path().join("bin"), &good());
        let absent = machine.folder.path().join("absent.so");
        machine.name(&absent);
        machine.refuses(&absent, "no such file");
        let text = machine.folder.path().join("text.so");
        fs::write(&text, "hello").unwrap();
        machine.name(&text);
        machine.refuses(&text, "is not a shared library for this machine");
        let empty = machine.folder.path().join("empty");
        fs::create_dir(&empty).unwrap();
        machine.name(&empty);
        machine.refuses(&empty, &format!("holds no {}", wheel().file_names()[0]));
    }

    #[test]
    fn an_empty_variable_is_unset_and_an_unusable_neighbour_is_passed_over() {
        let mut machine = Machine::new();
        machine.name(Path::new(""));
        machine.put(&machine.folder.path().join("bin"), b"not a library");
        machine.finds(None);
    }

    #[test]
    fn a_relative_name_is_made_absolute() {
        let below = tempfile::tempdir_in(".").unwrap();
        let relative = Path::new(below.path().file_name().unwrap());
        let mut machine = Machine::new();
        machine.put(relative, &good());
        machine.name(relative);
        assert!(machine.environment.locate(wheel()).unwrap().unwrap().path.is_absolute());
    }
}
