//! Weights on disk: safetensors headers going in, one safetensors file per engine going out.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use kiln_bundle::{FileStamp, TensorFile, TensorInfo};
use kiln_graph::{
    ElementType, EmittedModel, ExternalData, StoredWeight, WeightCatalog, WeightInfo, WeightLayout,
};
use kiln_lora::{LoraError, WeightChanges};

use crate::CompileError;
use crate::files::{self, Found, Network};
use crate::stored::{Scales, Stored};

/// Elements converted at a time.
const CHUNK: usize = 1 << 18;

/// Most bytes of a matrix that is stored transposed: it is the one kind that is held in memory.
pub(crate) const MAX_TRANSPOSED: u64 = 1 << 28;

/// The weights of one network: what they are called and where their bytes lie.
#[derive(Debug)]
pub(crate) struct WeightFiles {
    files: Vec<PathBuf>,
    is_variant: bool,
    places: BTreeMap<String, Place>,
    /// What the files were like when they were opened.
    stamps: Vec<Option<FileStamp>>,
    /// What lies beside them and is not read.
    remark: Option<String>,
}

/// Where a weight's bytes lie: a tensor of a file, or consecutive rows of one.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    /// Index into the files.
    pub(crate) file: usize,
    /// First byte in the file.
    pub(crate) offset: u64,
    /// The weight as a network reads it.
    pub(crate) info: WeightInfo,
    /// How the file stores its numbers.
    pub(crate) stored: Stored,
    /// What they are multiplied by.
    pub(crate) scale: Option<f32>,
    /// Whether the file holds the matrix with rows and columns exchanged; at most [`MAX_TRANSPOSED`] bytes then.
    pub(crate) is_transposed: bool,
    /// What the file calls the tensor, where that is another name.
    pub(crate) key: Option<String>,
}

impl Place {
    /// A tensor of a file.
    pub(crate) fn of_tensor(
        file: usize,
        path: &Path,
        key: &str,
        tensor: &TensorInfo,
        scales: &Scales,
    ) -> Result<Place, CompileError> {
        let Some(stored) = Stored::of(tensor.dtype) else {
            let reason = format!(
                "weight '{key}' is stored as {:?}; supported: F32, F16, BF16, F64, F8_E4M3, F8_E5M2",
                tensor.dtype
            );
            return Err(CompileError::checkpoint(path, reason));
        };
        let scale = scales.of(key);
        let shape = tensor.shape.iter().map(|&n| n as u64).collect();
        let info = WeightInfo { dtype: stored.element_type(scale), shape };
        Ok(Place { file, offset: tensor.offset, info, stored, scale, is_transposed: false, key: None })
    }

    /// Bytes in the file.
    pub(crate) fn n_bytes(&self) -> u64 {
        self.info.shape.iter().product::<u64>() * self.stored.n_bytes()
    }
}

impl WeightFiles {
    pub(crate) fn open(
        folder: &Path,
        network: Network,
        variant: Option<&str>,
    ) -> Result<WeightFiles, CompileError> {
        let Found { files, is_variant, remark } = files::find(folder, network, variant)?;
        Ok(WeightFiles { is_variant, remark, ..WeightFiles::of_files(files, network)? })
    }

    /// Weights of these files, by today's names.
    pub(crate) fn of_files(files: Vec<PathBuf>, network: Network) -> Result<WeightFiles, CompileError> {
        let mut places = BTreeMap::new();
        let stamps = stamps(&files);
        for (file, path) in files.iter().enumerate() {
            let tensors = TensorFile::open(path)?;
            let scales = Scales::read(&tensors)?;
            for (key, tensor) in tensors.tensors().iter().filter(|(key, _)| !scales.has(key)) {
                let Some(name) = network.canonical(key) else { continue };
                let place = Place::of_tensor(file, path, key, tensor, &scales)?;
                if places.insert(name.clone(), place).is_some() {
                    return Err(CompileError::checkpoint(path, format!("weight '{name}' exists twice")));
                }
            }
        }
        Ok(WeightFiles { files, is_variant: false, places, stamps, remark: None })
    }

    /// Weights that lie in one file, by the names that networks ask for.
    pub(crate) fn in_file(path: &Path, places: BTreeMap<String, Place>) -> WeightFiles {
        let files = vec![path.into()];
        WeightFiles { stamps: stamps(&files), files, is_variant: false, places, remark: None }
    }

    /// Names and places of all weights.
    pub(crate) fn places(&self) -> impl Iterator<Item = (&str, &Place)> {
        self.places.iter().map(|(name, place)| (name.as_str(), place))
    }

    /// The same weights by other names.
    pub(crate) fn renamed(&self, name: impl Fn(&str) -> String) -> WeightFiles {
        let places = self.places.iter().map(|(old, place)| (name(old), place.clone())).collect();
        let (files, stamps) = (self.files.clone(), self.stamps.clone());
        WeightFiles { files, is_variant: self.is_variant, places, stamps, remark: None }
    }

    pub(crate) fn files(&self) -> &[PathBuf] {
        &self.files
    }

    pub(crate) fn is_variant(&self) -> bool {
        self.is_variant
    }

    pub(crate) fn remark(&self) -> Option<&str> {
        self.remark.as_deref()
    }

    pub(crate) fn catalog(&self) -> WeightCatalog {
        let mut catalog = WeightCatalog::new(self.files[0].display().to_string());
        for (name, place) in &self.places {
            match &place.key {
                Some(key) => catalog.insert_alias(name.clone(), key.clone(), place.info.clone()),
                None => catalog.insert(name.clone(), place.info.clone()),
            }
        }
        catalog
    }

    /// Number of weights, parameters and bytes, and the types they are stored in.
    pub(crate) fn summary(&self) -> (usize, u64, u64, Vec<ElementType>) {
        let infos = || self.places.values().map(|place| &place.info);
        let parameters = |info: &WeightInfo| info.shape.iter().product::<u64>();
        let dtypes: BTreeSet<ElementType> = infos().map(|info| info.dtype).collect();
        (
            self.places.len(),
            infos().map(parameters).sum(),
            infos().map(|info| parameters(info) * info.dtype.n_bytes() as u64).sum(),
            dtypes.into_iter().collect(),
        )
    }

    /// BLAKE3 digest over names, types, shapes and values of the given weights, wherever they lie; read in the order of
    /// the files.
    pub(crate) fn content_digest<'a>(
        &self,
        names: impl Iterator<Item = &'a str>,
    ) -> Result<String, CompileError> {
        let mut wanted: Vec<(&str, &Place)> =
            names.filter_map(|name| self.places.get_key_value(name)).map(|(n, p)| (n.as_str(), p)).collect();
        wanted.sort_by_key(|(_, place)| (place.file, place.offset));
        let mut digests = BTreeMap::new();
        let mut opened: Option<(usize, File)> = None;
        for (name, place) in wanted {
            let path = &self.files[place.file];
            let refuse = |e: io::Error| CompileError::io(path, &e);
            if opened.as_ref().is_none_or(|(file, _)| *file != place.file) {
                opened = Some((place.file, File::open(path).map_err(refuse)?));
            }
            let Some((_, file)) = &mut opened else { continue };
            file.seek(SeekFrom::Start(place.offset)).map_err(refuse)?;
            let length = place.n_bytes();
            let mut hasher = blake3::Hasher::new();
            hasher.update_reader(file.take(length)).map_err(refuse)?;
            let info = &place.info;
            let shape: Vec<String> = info.shape.iter().map(u64::to_string).collect();
            let mut header = format!("{name} {} {} {}", info.dtype, shape.join("x"), place.is_transposed);
            if !place.stored.is(info.dtype) {
                header += &format!(" {:?} {:?}", place.stored, place.scale.map(f32::to_bits));
            }
            digests.insert(header, hasher.finalize());
        }
        let mut hasher = blake3::Hasher::new();
        for (header, digest) in digests {
            hasher.update(header.as_bytes());
            hasher.update(digest.as_bytes());
        }
        Ok(hasher.finalize().to_hex().to_string())
    }

    /// Writes the given weights, as LoRAs change them, to a safetensors file and says where each one lies.
    pub(crate) fn write(
        &self,
        path: &Path,
        weights: &[&StoredWeight],
        changes: Option<&WeightChanges>,
        progress: &mut dyn FnMut(u64),
    ) -> Result<WeightLayout, CompileError> {
        let mut weights = weights.to_vec();
        weights.sort_by_key(|w| (!w.n_bytes().is_multiple_of(64), w.name.as_str()));
        let (header, layout) = header_and_layout(path, &weights);
        let refuse = |e: io::Error| CompileError::io(path, &e);
        let mut out = File::create(path).map_err(refuse)?;
        out.write_all(&header).map_err(refuse)?;
        let mut sources = self.open_files()?;
        for weight in weights {
            self.copy(&mut sources, weight, changes, path, &mut out)?;
            progress(weight.n_bytes());
        }
        self.check_unchanged()?;
        Ok(layout)
    }

    /// Writes a model that holds its weights, as LoRAs change them; none of it but a changed weight is held in memory.
    pub(crate) fn write_inside(
        &self,
        path: &Path,
        model: &EmittedModel,
        changes: Option<&WeightChanges>,
        progress: &mut dyn FnMut(u64),
    ) -> Result<(), CompileError> {
        let refuse = |e: io::Error| CompileError::io(path, &e);
        let around = model.to_onnx_around_weights();
        let mut out = BufWriter::new(File::create(path).map_err(refuse)?);
        out.write_all(&around.head).map_err(refuse)?;
        let mut sources = self.open_files()?;
        for (weight, before) in model.weights.iter().zip(&around.weights) {
            out.write_all(before).map_err(refuse)?;
            self.copy(&mut sources, weight, changes, path, &mut out)?;
            progress(weight.n_bytes());
        }
        out.flush().map_err(refuse)?;
        self.check_unchanged()
    }

    /// Refuses files that have changed since they were opened: what was written is neither what they were nor what they are.
    fn check_unchanged(&self) -> Result<(), CompileError> {
        let now = stamps(&self.files);
        match self.files.iter().zip(self.stamps.iter().zip(&now)).find(|(_, (then, now))| then != now) {
            Some((file, _)) => Err(CompileError::checkpoint(file, "has changed while it was read")
                .with_hint("run the command again")),
            None => Ok(()),
        }
    }

    fn open_files(&self) -> Result<Vec<File>, CompileError> {
        let open = |file: &PathBuf| File::open(file).map_err(|e| CompileError::io(file, &e));
        self.files.iter().map(open).collect()
    }

    /// Writes a weight's bytes to the file `path`.
    fn copy(
        &self,
        sources: &mut [File],
        weight: &StoredWeight,
        changes: Option<&WeightChanges>,
        path: &Path,
        out: &mut impl Write,
    ) -> Result<(), CompileError> {
        let Some(place) = self.places.get(&weight.name) else {
            let reason = format!("missing weight '{}'", weight.name);
            return Err(CompileError::checkpoint(&self.files[0], reason));
        };
        let (from, source) = (&self.files[place.file], &mut sources[place.file]);
        let copied = match changes.filter(|changes| changes.contains(&weight.name)) {
            None => copy(source, place, weight, out),
            Some(changes) => change(source, place, weight, changes, out),
        };
        let holds = |value: f32, what: String| {
            CompileError::checkpoint(from, format!("weight '{}' holds {value}, which {what}", weight.name))
        };
        copied.map_err(|e| match e {
            CopyError::Source(e) => self.check_unchanged().err().unwrap_or_else(|| CompileError::io(from, &e)),
            CopyError::Target(e) => CompileError::io(path, &e),
            CopyError::Overflow(value) => holds(value, format!("overflows {}", weight.dtype)),
            CopyError::NotFinite(value) => holds(value, "is not a finite number".into()),
            CopyError::Lora(e) => e.into(),
        })
    }
}

fn stamps(files: &[PathBuf]) -> Vec<Option<FileStamp>> {
    files.iter().map(|file| FileStamp::of(file).ok()).collect()
}

/// The head of a safetensors file that holds the weights in the given order, and where each will lie.
pub(crate) fn header_and_layout(path: &Path, weights: &[&StoredWeight]) -> (Vec<u8>, WeightLayout) {
    let mut entries = serde_json::Map::new();
    entries.insert("__metadata__".into(), serde_json::json!({ "format": "pt" }));
    let mut end = 0;
    for weight in weights {
        let start = end;
        end += weight.n_bytes();
        let dtype = match weight.dtype {
            ElementType::F32 => "F32",
            ElementType::F16 => "F16",
            ElementType::Bf16 => "BF16",
            ElementType::I64 => "I64",
        };
        let entry = serde_json::json!({ "dtype": dtype, "shape": weight.dims, "data_offsets": [start, end] });
        entries.insert(weight.name.clone(), entry);
    }
    let mut json = serde_json::Value::Object(entries).to_string().into_bytes();
    json.resize((json.len() + 8).next_multiple_of(64) - 8, b' ');
    let mut header = (json.len() as u64).to_le_bytes().to_vec();
    header.append(&mut json);

    let location = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let mut offset = header.len() as u64;
    let mut layout = WeightLayout::default();
    for weight in weights {
        let length = weight.n_bytes();
        layout.insert(weight.name.clone(), ExternalData { location: location.clone(), offset, length });
        offset += length;
    }
    (header, layout)
}

pub(crate) enum CopyError {
    Source(io::Error),
    Target(io::Error),
    Overflow(f32),
    NotFinite(f32),
    Lora(LoraError),
}

/// Writes a weight that LoRAs change, which is held in memory as a whole.
fn change(
    source: &mut File,
    place: &Place,
    weight: &StoredWeight,
    changes: &WeightChanges,
    out: &mut impl Write,
) -> Result<(), CopyError> {
    let mut bytes = vec![0; place.n_bytes() as usize];
    read(source, place, |reader| reader.read_exact(&mut bytes).map_err(CopyError::Source))?;
    let mut floats = Vec::new();
    place.stored.decode(&bytes, place.scale, &mut floats);
    changes.apply(&weight.name, &mut floats).map_err(CopyError::Lora)?;
    out.write_all(&encode(&floats, weight.dtype)?).map_err(CopyError::Target)
}

fn copy(
    source: &mut File,
    place: &Place,
    weight: &StoredWeight,
    out: &mut impl Write,
) -> Result<(), CopyError> {
    read(source, place, |reader| copy_from(reader, place, weight, out))
}

/// Gives `take` the weight's bytes in the order in which networks read them.
fn read(
    source: &mut File,
    place: &Place,
    take: impl FnOnce(&mut dyn Read) -> Result<(), CopyError>,
) -> Result<(), CopyError> {
    source.seek(SeekFrom::Start(place.offset)).map_err(CopyError::Source)?;
    match place.is_transposed {
        false => take(source),
        true => take(&mut transposed(source, place)?.as_slice()),
    }
}

/// Reads the columns of a matrix and gives its rows.
fn transposed(source: &mut File, matrix: &Place) -> Result<Vec<u8>, CopyError> {
    let [rows, columns] = [matrix.info.shape[0], matrix.info.shape[1]].map(|n| n as usize);
    let size = matrix.stored.n_bytes() as usize;
    let mut bytes = vec![0; rows * columns * size];
    source.read_exact(&mut bytes).map_err(CopyError::Source)?;
    let element = |row: usize, column: usize| &bytes[(column * rows + row) * size..][..size];
    let cells = (0..rows).flat_map(|row| (0..columns).map(move |column| (row, column)));
    Ok(cells.flat_map(|(row, column)| element(row, column)).copied().collect())
}

fn copy_from(
    source: &mut dyn Read,
    place: &Place,
    weight: &StoredWeight,
    out: &mut impl Write,
) -> Result<(), CopyError> {
    if place.stored.is(weight.dtype) && place.scale.is_none() {
        let length = weight.n_bytes();
        let copied = io::copy(&mut source.take(length), out).map_err(CopyError::Target)?;
        return match copied == length {
            true => Ok(()),
            false => Err(CopyError::Source(io::ErrorKind::UnexpectedEof.into())),
        };
    }
    let mut remaining = weight.dims.iter().product::<u64>();
    let mut floats = Vec::new();
    while remaining > 0 {
        let n = remaining.min(CHUNK as u64) as usize;
        let mut bytes = vec![0; n * place.stored.n_bytes() as usize];
        source.read_exact(&mut bytes).map_err(CopyError::Source)?;
        place.stored.decode(&bytes, place.scale, &mut floats);
        out.write_all(&encode(&floats, weight.dtype)?).map_err(CopyError::Target)?;
        remaining -= n as u64;
    }
    Ok(())
}

pub(crate) fn encode(floats: &[f32], dtype: ElementType) -> Result<Vec<u8>, CopyError> {
    let narrows = matches!(dtype, ElementType::F16 | ElementType::Bf16);
    if let Some(value) = floats.iter().find(|v| narrows && !v.is_finite()) {
        return Err(CopyError::NotFinite(*value));
    }
    Ok(match dtype {
        ElementType::F16 => {
            if let Some(value) = floats.iter().find(|v| f16::from_f32(**v).is_infinite()) {
                return Err(CopyError::Overflow(*value));
            }
            floats.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect()
        }
        ElementType::Bf16 => floats.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect(),
        ElementType::F32 | ElementType::I64 => floats.iter().flat_map(|v| v.to_le_bytes()).collect(),
    })
}
