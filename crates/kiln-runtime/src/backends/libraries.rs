use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use kiln_native::{Found, Library, library_in, locate};

use crate::Error;

type Fetch = dyn Fn(Library) -> Result<PathBuf, Error> + Send + Sync;

/// Where native libraries come from: nowhere, unless it is said.
///
/// A path that was given comes first, then what the environment says, then what is fetched.
#[derive(Clone, Default)]
pub struct Libraries {
    paths: Vec<(Library, PathBuf)>,
    environment: bool,
    fetch: Option<Arc<Fetch>>,
}

/// A library file.
pub(crate) struct Located {
    pub(crate) path: PathBuf,
    /// Whether somebody named it, so that nothing else may take its place.
    #[cfg_attr(not(feature = "onnxruntime"), expect(dead_code, reason = "nothing takes the place of another"))]
    pub(crate) is_named: bool,
}

impl Libraries {
    /// From nowhere.
    pub fn new() -> Libraries {
        Libraries::default()
    }

    /// A library from a file, or from the folder that it lies in.
    #[must_use]
    pub fn with_path(mut self, library: Library, path: impl AsRef<Path>) -> Libraries {
        self.paths.retain(|(other, _)| *other != library);
        let path = path.as_ref();
        self.paths.push((library, library_in(path, library).unwrap_or_else(|| path.into())));
        self
    }

    /// Also what the `KILN_*` variables name, what lies beside the program, and what is installed in kiln's cache folder.
    #[must_use]
    pub fn from_environment(self) -> Libraries {
        Libraries { environment: true, ..self }
    }

    /// Also what `fetch` gets, which is called for each library that is needed and not found.
    #[must_use]
    pub fn fetch_with(
        self,
        fetch: impl Fn(Library) -> Result<PathBuf, Error> + Send + Sync + 'static,
    ) -> Libraries {
        Libraries { fetch: Some(Arc::new(fetch)), ..self }
    }

    /// The library's file, fetched if need be.
    pub fn find(&self, library: Library) -> Result<PathBuf, Error> {
        match self.locate(library)? {
            Some(located) => Ok(located.path),
            None => self.fetch(library),
        }
    }

    /// The library's file, where it is on this machine.
    pub fn path(&self, library: Library) -> Result<Option<PathBuf>, Error> {
        Ok(self.locate(library)?.map(|located| located.path))
    }

    /// Whether a library that is not found is fetched.
    pub fn fetches(&self, library: Library) -> bool {
        self.fetch.is_some() && library.can_be_fetched()
    }

    /// Which of kiln's kernels compute on the processor: the fastest, unless the environment says otherwise.
    #[cfg(feature = "onnxruntime")]
    pub(crate) fn kernels(&self) -> Result<kiln_engine::Kernels, Error> {
        use kiln_native::env::KILN_KERNELS;

        let asked = std::env::var(KILN_KERNELS).ok().filter(|asked| self.environment && !asked.is_empty());
        let kernels = asked.map(|asked| asked.parse()).transpose();
        Ok(kernels.map_err(|reason| Error::Request { key: KILN_KERNELS, reason })?.unwrap_or_default())
    }

    /// What kiln's kernels multiply faster than f32 on this processor, as far as the environment lets them.
    #[cfg(feature = "onnxruntime")]
    pub fn fast_precisions(&self) -> Result<Vec<kiln_types::Precision>, Error> {
        use kiln_types::Precision;

        let kernels = self.kernels()?;
        let known = [(Precision::Bf16, kernels.multiply_bf16()), (Precision::Int8, kernels.multiply_int8())];
        Ok(known.into_iter().filter(|(_, is_fast)| *is_fast).map(|(precision, _)| precision).collect())
    }

    /// Where ONNX Runtime's profiles go, if the environment says so.
    #[cfg(feature = "onnxruntime")]
    pub(crate) fn profiles(&self) -> Result<Option<PathBuf>, Error> {
        use kiln_native::env::KILN_PROFILES;

        let folder = std::env::var_os(KILN_PROFILES).map(PathBuf::from);
        match folder.filter(|folder| self.environment && !folder.as_os_str().is_empty()) {
            Some(folder) if !folder.is_dir() => Err(Error::Request {
                key: KILN_PROFILES,
                reason: format!("{} is not a folder", folder.display()),
            }),
            folder => Ok(folder),
        }
    }

    pub(crate) fn locate(&self, library: Library) -> Result<Option<Located>, Error> {
        if let Some((_, path)) = self.paths.iter().find(|(other, _)| *other == library) {
            return Ok(Some(Located { path: path.clone(), is_named: true }));
        }
        if !self.environment {
            return Ok(None);
        }
        let located = |found: Found| Located { is_named: found.is_explicit(), path: found.path };
        Ok(locate(library)?.map(located))
    }

    pub(crate) fn fetch(&self, library: Library) -> Result<PathBuf, Error> {
        self.fetch.as_ref().map_or(Err(Error::NotInstalled(library)), |fetch| fetch(library))
    }
}

impl fmt::Debug for Libraries {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Libraries")
            .field("paths", &self.paths)
            .field("environment", &self.environment)
            .field("fetches", &self.fetch.is_some())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_found_unless_it_is_said() {
        let nowhere = Libraries::new();
        assert!(nowhere.path(Library::OnnxRuntimeCpu).expect("no path").is_none());
        let error = nowhere.find(Library::OnnxRuntimeCpu).expect_err("no library");
        assert!(matches!(error, Error::NotInstalled(Library::OnnxRuntimeCpu)), "{error}");
    }

    #[test]
    fn a_path_comes_before_what_is_fetched() {
        let fetched = Libraries::new().fetch_with(|_| Ok("fetched.so".into()));
        assert_eq!(fetched.find(Library::TensorrtRtx).expect("a library"), Path::new("fetched.so"));
        let named = fetched.with_path(Library::TensorrtRtx, "named.so");
        assert_eq!(named.find(Library::TensorrtRtx).expect("a library"), Path::new("named.so"));
        assert_eq!(named.find(Library::OnnxRuntimeCpu).expect("a library"), Path::new("fetched.so"));
    }
}
