//! Pictures as files: those that jobs start from, and those that they come to.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use kiln_runtime::image::RgbImage;
use kiln_runtime::{Picture, Request};
use ndarray::Array3;

use super::StoreError;
use crate::JobId;

/// Ending of a file that is not whole.
const PART: &str = "part";

/// A folder of pictures, each named after its job.
pub(super) struct Files {
    folder: PathBuf,
}

impl Files {
    pub(super) fn open(folder: PathBuf) -> Result<Files, StoreError> {
        let files = Files { folder };
        fs::create_dir_all(&files.folder).map_err(|source| files.error("", source))?;
        Ok(files)
    }

    /// Moves a request's pictures to files, and leaves pictures without pixels in their places.
    pub(super) fn put_away(&self, id: &JobId, request: &mut Request) -> Result<(), StoreError> {
        let mut written = Vec::new();
        for (source, picture) in sources(request).filter(|(_, picture)| has_pixels(picture)) {
            let name = source.file(id);
            let bytes = to_bytes(picture).map_err(|e| self.error(&name, e));
            written.push(name.clone());
            if let Err(error) = bytes.and_then(|bytes| self.write(&name, &bytes)) {
                self.remove(&written);
                return Err(error);
            }
            *picture = no_pixels();
        }
        Ok(())
    }

    /// Puts a request's pictures back into their places.
    pub(super) fn bring_back(&self, id: &JobId, request: &mut Request) -> Result<(), StoreError> {
        for (source, picture) in sources(request).filter(|(_, picture)| !has_pixels(picture)) {
            let name = source.file(id);
            let bytes = fs::read(self.folder.join(&name));
            *picture = bytes.and_then(|bytes| from_bytes(&bytes)).map_err(|e| self.error(&name, e))?;
        }
        Ok(())
    }

    /// Writes a file, whole or not at all; it is on disk afterwards.
    pub(super) fn write(&self, name: &str, bytes: &[u8]) -> Result<(), StoreError> {
        let path = self.folder.join(name);
        let half = path.with_added_extension(PART);
        let written = write_synced(&half, bytes).and_then(|()| fs::rename(&half, &path));
        written.and_then(|()| sync_folder(&self.folder)).map_err(|source| {
            let _ = fs::remove_file(&half);
            self.error(name, source)
        })
    }

    pub(super) fn read(&self, name: &str) -> Option<Vec<u8>> {
        fs::read(self.folder.join(name)).ok()
    }

    /// Bytes of a file, 0 where there is none.
    pub(super) fn size(&self, name: &str) -> u64 {
        fs::metadata(self.folder.join(name)).map_or(0, |file| file.len())
    }

    pub(super) fn remove(&self, names: &[String]) {
        names.iter().for_each(|name| drop(fs::remove_file(self.folder.join(name))));
    }

    /// Bytes of files.
    pub(super) fn sizes(&self, names: &[String]) -> u64 {
        names.iter().map(|name| self.size(name)).sum()
    }

    /// Removes all files of a job, whatever their names.
    pub(super) fn remove_all(&self, id: &JobId) {
        let entries = fs::read_dir(&self.folder).into_iter().flatten().flatten();
        let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
        let of_job = |name: &String| name.split_once('-').is_some_and(|(of, _)| of == id.as_str());
        self.remove(&names.filter(of_job).collect::<Vec<_>>());
    }

    /// Removes what belongs to none of the jobs that a crash has left, and gives the number of files. Files that no job has
    /// named stay.
    pub(super) fn sweep(&self, known: &HashSet<String>, spared: &HashSet<String>) -> Result<usize, StoreError> {
        let entries = fs::read_dir(&self.folder).map_err(|source| self.error("", source))?;
        let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
        let of_job = |name: &str| name.split_once('-').and_then(|(id, _)| JobId::parse(id));
        let is_left = |name: &String| {
            of_job(name).is_some_and(|id| !known.contains(name) && !spared.contains(id.as_str()))
        };
        let left: Vec<String> = names.filter(is_left).collect();
        self.remove(&left);
        Ok(left.len())
    }

    pub(super) fn error(&self, name: &str, source: io::Error) -> StoreError {
        StoreError::File { path: self.folder.join(name), source }
    }
}

/// The pictures that a request starts from.
pub fn sources(request: &mut Request) -> impl Iterator<Item = (Source, &mut Picture)> {
    let init = request.init.iter_mut().flat_map(|init| {
        let mask = init.mask.as_mut().map(|mask| (Source::Mask, mask));
        std::iter::once((Source::Init, &mut init.image)).chain(mask)
    });
    let controls = request.controls.iter_mut().enumerate();
    init.chain(controls.map(|(i, control)| (Source::Control(i), &mut control.image)))
}

/// A picture that a job starts from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The one that is changed.
    Init,
    /// Where to paint.
    Mask,
    /// A ControlNet's, by its index.
    Control(usize),
}

impl Source {
    /// The name of its file.
    pub fn file(self, id: &JobId) -> String {
        match self {
            Source::Init => format!("{id}-init"),
            Source::Mask => format!("{id}-mask"),
            Source::Control(i) => format!("{id}-control-{i}"),
        }
    }
}

/// What stands in the place of a picture that lies in a file.
pub fn no_pixels() -> Picture {
    Picture::Planar(Array3::zeros((0, 0, 0)))
}

/// Whether a picture is in its place, and not in a file.
pub fn has_pixels(picture: &Picture) -> bool {
    picture.size().area() > 0
}

/// PNG, or JSON where a picture has more than eight bits.
pub fn to_bytes(picture: &Picture) -> io::Result<Vec<u8>> {
    match picture {
        Picture::Rgb(image) => crate::http::png(image, ""),
        Picture::Planar(_) => serde_json::to_vec(picture).map_err(io::Error::other),
    }
}

/// The picture of such bytes.
pub fn from_bytes(bytes: &[u8]) -> io::Result<Picture> {
    match bytes.first() {
        Some(b'{') => serde_json::from_slice(bytes).map_err(io::Error::other),
        _ => RgbImage::from_bytes(bytes).map(Picture::Rgb).map_err(io::Error::other),
    }
}

fn write_synced(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = fs::File::create(path)?;
    io::Write::write_all(&mut file, bytes)?;
    file.sync_all()
}

/// Makes the names of a folder's files outlive a loss of power.
#[cfg(unix)]
fn sync_folder(folder: &Path) -> io::Result<()> {
    fs::File::open(folder)?.sync_all()
}

#[cfg(not(unix))]
fn sync_folder(_: &Path) -> io::Result<()> {
    Ok(())
}
