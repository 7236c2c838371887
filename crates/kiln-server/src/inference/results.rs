//! Pictures, turned into the tensors that a request asks for.

use std::io;
use std::sync::Arc;

use axum::body::Bytes;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde::ser::SerializeSeq;
use serde::{Serialize, Serializer};

use super::raw;
use crate::Finished;
use crate::http::png;

/// Names of outputs; `png` is a short one.
pub(crate) const OUTPUT_NAMES: [&str; 5] = ["images", "encoded_image", "png", "seed", "info"];

/// An output that is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Output {
    /// As the request calls it.
    pub(crate) name: &'static str,
    pub(crate) kind: OutputKind,
    /// Whether it stands behind the message.
    pub(crate) is_binary: bool,
}

/// What an output holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OutputKind {
    /// Pixels, `UINT8 [n, height, width, 3]`.
    Images,
    /// PNG files, `BYTES [n]`; in JSON as base64.
    Encoded,
    /// `INT64 [n]`
    Seed,
    /// How each picture was made, `BYTES [n]`.
    Info,
}

impl Output {
    /// The output of a name.
    pub(crate) fn named(name: &str, is_binary: bool) -> Option<Output> {
        let name = OUTPUT_NAMES.into_iter().find(|known| *known == name)?;
        let kind = match name {
            "images" => OutputKind::Images,
            "seed" => OutputKind::Seed,
            "info" => OutputKind::Info,
            _ => OutputKind::Encoded,
        };
        Some(Output { name, kind, is_binary })
    }

    /// What is given where nothing is named.
    pub(crate) fn by_default(is_binary: bool) -> Vec<Output> {
        ["images", "seed", "info"].into_iter().filter_map(|name| Output::named(name, is_binary)).collect()
    }
}

impl OutputKind {
    pub(crate) fn datatype(self) -> &'static str {
        match self {
            OutputKind::Images => "UINT8",
            OutputKind::Seed => "INT64",
            OutputKind::Encoded | OutputKind::Info => "BYTES",
        }
    }
}

/// What was drawn.
#[derive(Clone, Debug)]
pub(crate) struct Results {
    drawn: Arc<Finished>,
    seeds: Vec<i64>,
    files: Vec<Vec<u8>>,
}

impl Results {
    /// Pictures and the seeds of each.
    pub(super) fn new(drawn: Arc<Finished>, seeds: Vec<u64>) -> Results {
        Results { drawn, seeds: seeds.into_iter().map(|seed| seed as i64).collect(), files: Vec::new() }
    }

    /// Makes the files that outputs ask for, which takes time.
    pub(crate) fn encode(&mut self, outputs: &[Output]) -> io::Result<()> {
        if outputs.iter().any(|output| output.kind == OutputKind::Encoded) && self.files.is_empty() {
            let pictures = self.drawn.images.iter().zip(&self.drawn.infotexts);
            self.files = pictures.map(|(image, text)| png(image, text)).collect::<Result<_, _>>()?;
        }
        Ok(())
    }

    /// The shape of a tensor.
    pub(crate) fn shape(&self, kind: OutputKind) -> Vec<i64> {
        let n = self.drawn.images.len() as i64;
        match (kind, self.drawn.images.first()) {
            (OutputKind::Images, Some(first)) => vec![n, first.height().into(), first.width().into(), 3],
            _ => vec![n],
        }
    }

    /// The elements of a tensor in their binary form.
    pub(crate) fn raw(&self, kind: OutputKind) -> Bytes {
        match kind {
            OutputKind::Images => {
                let mut data =
                    Vec::with_capacity(self.drawn.images.iter().map(|image| image.data().len()).sum());
                self.drawn.images.iter().for_each(|image| data.extend(image.data()));
                data.into()
            }
            OutputKind::Encoded => raw::write_texts(&self.files).into(),
            OutputKind::Seed => self.seeds.iter().flat_map(|seed| seed.to_le_bytes()).collect(),
            OutputKind::Info => raw::write_texts(&self.drawn.infotexts).into(),
        }
    }

    /// The elements of a tensor as JSON.
    pub(crate) fn json(&self, kind: OutputKind) -> Elements<'_> {
        Elements { results: self, kind }
    }
}

/// Elements that serde writes one after another.
pub(crate) struct Elements<'a> {
    results: &'a Results,
    kind: OutputKind,
}

impl Serialize for Elements<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Results { drawn, seeds, files } = self.results;
        let mut elements = serializer.serialize_seq(None)?;
        match self.kind {
            OutputKind::Images => {
                let mut pixels = drawn.images.iter().flat_map(|image| image.data());
                pixels.try_for_each(|x| elements.serialize_element(x))?;
            }
            OutputKind::Encoded => {
                let mut files = files.iter().map(|file| BASE64_STANDARD.encode(file));
                files.try_for_each(|file| elements.serialize_element(&file))?;
            }
            OutputKind::Seed => seeds.iter().try_for_each(|seed| elements.serialize_element(seed))?,
            OutputKind::Info => drawn.infotexts.iter().try_for_each(|text| elements.serialize_element(text))?,
        }
        elements.end()
    }
}
