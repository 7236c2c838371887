//! Where pictures go.

use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use kiln_bundle::BundleError;
use kiln_bundle::fs::PartialFile;
use kiln_runtime::image::RgbImage;

use crate::args::GenerateArgs;
use crate::failure::Failure;
use crate::paths;

/// The texts that go into the picture of an index.
type Text<'a> = dyn Fn(usize) -> [(&'static str, String); 2] + 'a;

/// The files that pictures will be.
pub(crate) enum Pictures {
    /// Files that the user named.
    Named(Vec<PathBuf>),
    /// Files in the working folder whose names begin with this and that are not there yet.
    Unused(String),
}

impl Pictures {
    /// Refuses files that could not be written once `n` pictures are drawn.
    pub(crate) fn check(args: &GenerateArgs, n: usize, seed: u64) -> Result<Pictures, Failure> {
        let trace = args.memory.memory_trace.as_slice();
        paths::check_outputs(trace)?;
        let stem = format!("kiln-{seed}");
        let Some(out) = &args.out else {
            paths::check_outputs(&numbered(&stem, 0, n))?;
            return Ok(Pictures::Unused(stem));
        };
        let base = png(out)?;
        let files: Vec<PathBuf> = (0..n).map(|i| of_batch(base, i, n)).collect();
        paths::check_outputs(&files)?;
        match files.iter().find(|file| trace.contains(file)) {
            Some(file) => {
                Err(Failure::usage(format!("{}: cannot be both a picture and a memory trace", file.display())))
            }
            None => Ok(Pictures::Named(files)),
        }
    }

    /// Writes one picture to each file, and says which files these are.
    pub(crate) fn save(self, images: &[RgbImage], text: &Text<'_>) -> Result<Vec<PathBuf>, Failure> {
        match self {
            Pictures::Named(files) => {
                for (i, (image, file)) in images.iter().zip(&files).enumerate() {
                    image.save_png(file, &text(i)).map_err(kiln_runtime::Error::from)?;
                }
                Ok(files)
            }
            Pictures::Unused(stem) => {
                let files = save_unused(images, text, &stem);
                files.map_err(|e| Failure::writing(BundleError::io(Path::new(&format!("{stem}.png")), &e)))
            }
        }
    }
}

/// Takes the first names that none of the files has: two processes that write at once take different ones.
fn save_unused(images: &[RgbImage], text: &Text<'_>, stem: &str) -> io::Result<Vec<PathBuf>> {
    let mut partials = Vec::new();
    for (i, image) in images.iter().enumerate() {
        let mut partial = PartialFile::new(Path::new("."))?;
        let mut out = BufWriter::new(&mut partial);
        image.write_png(&mut out, &text(i))?;
        out.flush()?;
        drop(out);
        partials.push(partial);
    }
    let mut partials = partials.into_iter();
    let Some(mut first) = partials.next() else { return Ok(Vec::new()) };
    let mut k = 0;
    let files = loop {
        let files = numbered(stem, k, images.len());
        k += 1;
        if files.iter().any(|file| file.symlink_metadata().is_ok()) {
            continue;
        }
        // Whoever has the first has them all.
        match first.publish_new(&files[0])? {
            None => break files,
            Some(partial) => first = partial,
        }
    };
    for (partial, file) in partials.zip(&files[1..]) {
        if partial.publish_new(file)?.is_some() {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
    }
    Ok(files)
}

/// The names of `n` pictures, at the `k`th try.
fn numbered(stem: &str, k: u64, n: usize) -> Vec<PathBuf> {
    let base = match k {
        0 => PathBuf::from(format!("{stem}.png")),
        k => PathBuf::from(format!("{stem}-v{}.png", k + 1)),
    };
    (0..n).map(|i| of_batch(&base, i, n)).collect()
}

/// The path, which must end in `.png` if it has an ending.
fn png(path: &Path) -> Result<&Path, Failure> {
    match path.extension() {
        Some(ending) if !ending.eq_ignore_ascii_case("png") => Err(Failure::usage(format!(
            "out: {} does not end in .png, and pictures are PNG files",
            path.display()
        ))),
        _ => Ok(path),
    }
}

fn of_batch(base: &Path, i: usize, n: usize) -> PathBuf {
    if n == 1 {
        return base.into();
    }
    let stem = base.file_stem().unwrap_or_default().to_string_lossy();
    let extension = base.extension().map_or("png".into(), |extension| extension.to_string_lossy());
    base.with_file_name(format!("{stem}-{i}.{extension}"))
}
