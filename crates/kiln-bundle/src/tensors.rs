//! A safetensors file whose tensors are read one at a time.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use safetensors::Dtype;
use safetensors::tensor::Metadata;

use crate::float8;
use crate::read::{self, ReadError};

/// Largest safetensors header that is read. The format allows 100 MB; the largest of diffusion models have under 1 MB, and
/// a trainer's notes some more.
const MAX_HEADER: u64 = 32 << 20;

/// Most tensors of a file; the largest models have some thousands.
const MAX_TENSORS: usize = 100_000;

/// Tensors with less than a page between them are read together.
const PAGE: u64 = 4096;

#[cfg(any(target_os = "linux", target_os = "android"))]
fn read_ahead(file: &File, start: u64, length: u64) {
    let length = std::num::NonZeroU64::new(length);
    // Advice that is not taken costs time alone.
    let _ = rustix::fs::fadvise(file, start, length, rustix::fs::Advice::WillNeed);
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
fn read_ahead(_file: &File, _start: u64, _length: u64) {}

/// Why a safetensors file cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum TensorFileError {
    /// The file system refuses.
    #[error("{path}: {error}", path = path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What it says.
        error: io::Error,
    },
    /// The file is not what it says it is, or not what is asked for.
    #[error("{path}: {reason}", path = path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
}

impl TensorFileError {
    /// What is wrong, without the file's path.
    pub fn reason(&self) -> String {
        match self {
            TensorFileError::Io { error, .. } => error.to_string(),
            TensorFileError::Content { reason, .. } => reason.clone(),
        }
    }
}

/// Whether tensors of a stored type can be read as floats.
pub fn is_float(dtype: Dtype) -> bool {
    FLOATS.contains(&dtype)
}

/// What is wrong with a tensor of another type, and the types that can be read as floats.
pub fn not_floats(dtype: Dtype) -> String {
    let supported: Vec<String> = FLOATS.iter().map(|dtype| format!("{dtype:?}")).collect();
    format!("is stored as {dtype:?}; supported: {}", supported.join(", "))
}

const FLOATS: [Dtype; 6] = [Dtype::F64, Dtype::F32, Dtype::F16, Dtype::BF16, Dtype::F8_E4M3, Dtype::F8_E5M2];

/// Replaces `floats` by stored numbers, rounded where 32 bits do not hold them; whether they are [floats](is_float).
pub fn decode(dtype: Dtype, bytes: &[u8], floats: &mut Vec<f32>) -> bool {
    let halves = || bytes.as_chunks::<2>().0.iter().map(|&b| u16::from_le_bytes(b));
    floats.clear();
    match dtype {
        Dtype::F32 => floats.extend(bytes.as_chunks::<4>().0.iter().map(|&b| f32::from_le_bytes(b))),
        Dtype::F16 => {
            let halves: Vec<f16> = halves().map(f16::from_bits).collect();
            floats.resize(halves.len(), 0.0);
            halves.convert_to_f32_slice(floats);
        }
        Dtype::BF16 => floats.extend(halves().map(|bits| bf16::from_bits(bits).to_f32())),
        Dtype::F64 => floats.extend(bytes.as_chunks::<8>().0.iter().map(|&b| f64::from_le_bytes(b) as f32)),
        Dtype::F8_E4M3 => floats.extend(bytes.iter().map(|&b| float8::from_e4m3(b))),
        Dtype::F8_E5M2 => floats.extend(bytes.iter().map(|&b| float8::from_e5m2(b))),
        _ => return false,
    }
    true
}

/// The single number of a tensor that [`TensorFile::read_f32`] would round or does not read.
fn number(dtype: Dtype, bytes: &[u8]) -> Option<f64> {
    let four = || bytes.try_into().ok();
    let eight = || bytes.try_into().ok();
    match dtype {
        Dtype::F64 => eight().map(f64::from_le_bytes),
        Dtype::I64 => eight().map(|b| i64::from_le_bytes(b) as f64),
        Dtype::U64 => eight().map(|b| u64::from_le_bytes(b) as f64),
        Dtype::I32 => four().map(|b| f64::from(i32::from_le_bytes(b))),
        Dtype::U32 => four().map(|b| f64::from(u32::from_le_bytes(b))),
        Dtype::I16 => bytes.try_into().ok().map(|b| f64::from(i16::from_le_bytes(b))),
        Dtype::U16 => bytes.try_into().ok().map(|b| f64::from(u16::from_le_bytes(b))),
        Dtype::I8 => bytes.first().map(|&b| f64::from(b.cast_signed())),
        Dtype::U8 => bytes.first().map(|&b| f64::from(b)),
        _ => None,
    }
}

/// Why a file of so many bytes, which begins like this, has no header of so many.
fn not_a_header(length: u64, size: u64, head: &[u8]) -> String {
    if let Some(other) = read::stands_for(head) {
        return other.into();
    }
    if head.trim_ascii_start().first() == Some(&b'{') {
        return "is JSON where a safetensors file is expected".into();
    }
    if let Some(line) = read::first_line(head) {
        return format!("is text where a safetensors file is expected: it begins '{line}'");
    }
    match (length > size - 8, length > MAX_HEADER) {
        (true, true) => format!("says that its header has {length} bytes; the file has {size}"),
        (true, false) => {
            format!("says that its header has {length} bytes; the file has {size}, so it is cut off")
        }
        (false, _) => format!("has a header of {length} bytes, more than any model"),
    }
}

/// An opened safetensors file: its header, checked against the file's size.
#[derive(Debug)]
pub struct TensorFile {
    path: PathBuf,
    source: Source,
    tensors: BTreeMap<String, TensorInfo>,
    metadata: HashMap<String, String>,
}

/// Where the bytes are.
#[derive(Debug)]
enum Source {
    File(Mutex<File>),
    Memory(Arc<[u8]>),
}

impl Source {
    /// Fills a buffer with the bytes from an offset on.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        match self {
            Source::File(file) => {
                let mut file = file.lock().unwrap_or_else(PoisonError::into_inner);
                file.seek(SeekFrom::Start(offset))?;
                file.read_exact(buffer)
            }
            Source::Memory(bytes) => {
                let start = usize::try_from(offset).unwrap_or(usize::MAX);
                let end = start.saturating_add(buffer.len());
                let found = bytes.get(start..end).ok_or(io::ErrorKind::UnexpectedEof)?;
                buffer.copy_from_slice(found);
                Ok(())
            }
        }
    }
}

/// What the header says of one tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    /// Stored type.
    pub dtype: Dtype,
    /// Shape.
    pub shape: Vec<usize>,
    /// First byte in the file.
    pub offset: u64,
    /// Number of bytes.
    pub length: usize,
}

impl TensorFile {
    /// Asks the operating system to read some tensors into its page cache, without waiting for it.
    ///
    /// Tensors that lie together are asked for together; where the system has no such call, nothing happens.
    pub fn prefetch<'a>(&self, names: impl Iterator<Item = &'a str>) {
        let tensors = names.filter_map(|name| self.tensors.get(name));
        let mut spans: Vec<(u64, u64)> =
            tensors.map(|info| (info.offset, info.offset + info.length as u64)).collect();
        spans.sort_unstable();
        spans.dedup_by(|next, span| {
            let joins = next.0 <= span.1 + PAGE;
            span.1 = if joins { span.1.max(next.1) } else { span.1 };
            joins
        });
        if let Source::File(file) = &self.source {
            let file = file.lock().unwrap_or_else(PoisonError::into_inner);
            spans.into_iter().for_each(|(start, end)| read_ahead(&file, start, end - start));
        }
    }

    /// Reads and checks the header; nothing is allocated by a number that the file's size does not bear out.
    pub fn open(path: &Path) -> Result<TensorFile, TensorFileError> {
        let refuse = |error| TensorFileError::Io { path: path.into(), error };
        let lying = |reason: String| TensorFileError::Content { path: path.into(), reason };
        let (file, size) = read::open(path).map_err(|e| match e {
            ReadError::System(error) => refuse(error),
            ReadError::Content(reason) => lying(reason),
        })?;
        TensorFile::read_header(path, Source::File(Mutex::new(file)), size)
    }

    /// The same of a file's bytes, which errors call by `name`.
    pub fn from_bytes(
        name: impl Into<PathBuf>,
        bytes: impl Into<Arc<[u8]>>,
    ) -> Result<TensorFile, TensorFileError> {
        let bytes = bytes.into();
        let size = bytes.len() as u64;
        TensorFile::read_header(&name.into(), Source::Memory(bytes), size)
    }

    fn read_header(path: &Path, source: Source, size: u64) -> Result<TensorFile, TensorFileError> {
        let refuse = |error| TensorFileError::Io { path: path.into(), error };
        let lying = |reason: String| TensorFileError::Content { path: path.into(), reason };
        if size < 8 {
            let reason = || format!("has {size} bytes, too few for a safetensors header");
            return Err(lying(if size == 0 { "is empty".into() } else { reason() }));
        }
        let mut length = [0; 8];
        source.read_at(0, &mut length).map_err(refuse)?;
        let length = u64::from_le_bytes(length);
        if length > MAX_HEADER || length > size - 8 {
            let mut head = vec![0; size.min(64) as usize];
            source.read_at(0, &mut head).map_err(refuse)?;
            return Err(lying(not_a_header(length, size, &head)));
        }
        let mut json = vec![0; length as usize];
        source.read_at(8, &mut json).map_err(refuse)?;
        let header: Metadata =
            serde_json::from_slice(&json).map_err(|e| lying(format!("malformed header: {e}")))?;
        let tensors = header.tensors();
        if tensors.len() > MAX_TENSORS {
            return Err(lying(format!("holds {} tensors, more than any model", tensors.len())));
        }
        let (data, found) = (header.data_len() as u64, size - 8 - length);
        if data != found {
            let cut = if found < data { ", so it is cut off" } else { "" };
            return Err(lying(format!(
                "says that it holds {data} bytes of weights; the file has {found}{cut}"
            )));
        }
        let tensors = tensors.into_iter().map(|(name, tensor)| {
            let (start, end) = tensor.data_offsets;
            let (dtype, shape) = (tensor.dtype, tensor.shape.clone());
            (name, TensorInfo { dtype, shape, offset: 8 + length + start as u64, length: end - start })
        });
        Ok(TensorFile {
            tensors: tensors.collect(),
            metadata: header.metadata().clone().unwrap_or_default(),
            path: path.into(),
            source,
        })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The tensors by name.
    pub fn tensors(&self) -> &BTreeMap<String, TensorInfo> {
        &self.tensors
    }

    /// The header's free texts.
    pub fn metadata(&self) -> &HashMap<String, String> {
        &self.metadata
    }

    /// The elements of a tensor of floats, in row-major order; numbers that are not finite are refused.
    pub fn read_f32(&self, name: &str) -> Result<Vec<f32>, TensorFileError> {
        let refuse = |reason: String| self.content(reason);
        let (info, bytes) = self.read(name)?;
        let mut values = Vec::new();
        if !decode(info.dtype, &bytes, &mut values) {
            return Err(refuse(format!("'{name}' {}", not_floats(info.dtype))));
        }
        match values.iter().find(|value| !value.is_finite()) {
            None => Ok(values),
            Some(value) => Err(refuse(format!("'{name}' holds {value}"))),
        }
    }

    /// Names of the tensors of floats of which a number is not finite.
    pub fn not_finite(&self) -> Result<Vec<String>, TensorFileError> {
        let (mut names, mut values) = (Vec::new(), Vec::new());
        for name in self.tensors.keys() {
            let (info, bytes) = self.read(name)?;
            if decode(info.dtype, &bytes, &mut values) && !values.iter().all(|value| value.is_finite()) {
                names.push(name.clone());
            }
        }
        Ok(names)
    }

    /// The bytes of a tensor.
    pub fn read_bytes(&self, name: &str) -> Result<Vec<u8>, TensorFileError> {
        Ok(self.read(name)?.1)
    }

    /// The number of a tensor of one element, an integer or a float.
    pub fn read_number(&self, name: &str) -> Result<f64, TensorFileError> {
        let info = self.tensors.get(name).ok_or_else(|| self.content(format!("has no tensor '{name}'")))?;
        if info.shape.iter().any(|n| *n != 1) {
            return Err(self.content(format!("'{name}' has shape {:?}, not one number", info.shape)));
        }
        if is_float(info.dtype) && info.dtype != Dtype::F64 {
            return Ok(f64::from(self.read_f32(name)?[0]));
        }
        let (_, bytes) = self.read(name)?;
        match number(info.dtype, &bytes) {
            Some(number) if number.is_finite() => Ok(number),
            Some(number) => Err(self.content(format!("'{name}' holds {number}"))),
            None => Err(self.content(format!("'{name}' is stored as {:?}, not a number", info.dtype))),
        }
    }

    fn read(&self, name: &str) -> Result<(&TensorInfo, Vec<u8>), TensorFileError> {
        let refuse = |error| TensorFileError::Io { path: self.path.clone(), error };
        let info = self.tensors.get(name).ok_or_else(|| self.content(format!("has no tensor '{name}'")))?;
        let mut bytes = vec![0; info.length];
        self.source.read_at(info.offset, &mut bytes).map_err(refuse)?;
        Ok((info, bytes))
    }

    fn content(&self, reason: String) -> TensorFileError {
        TensorFileError::Content { path: self.path.clone(), reason }
    }
}
