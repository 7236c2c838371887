//! Packed weights: plain bytes that are written once and mapped later.
//!
//! ```text
//! offset  bytes  content, little-endian
//!      0      8  "KILNPACK"
//!      8      4  version, 1
//!     12      4  element: 1 is f32, 2 is bf16
//!     16      8  n, output features or channels
//!     24      8  k, input features, or input channels x kernel height x kernel width in this order
//!     32     32  zero
//!     64         panels
//! ```
//!
//! A panel has 32 of the `n` outputs; `panel[step][column]` is a 4-byte word. In f32, a step is one `k`, and the word
//! its weight. In bf16, a step is two `k`, and the word both weights, the first in its lower half. Columns past `n` and
//! the second half of an odd `k`'s last step are zero. Panels follow one another without a gap; each begins at a
//! multiple of 128 bytes from the first.
//!
//! All algorithms and instruction sets read this one layout. Winograd's transformed weights would take 1.8 to 4 times
//! its bytes, which from memory costs more time than transforming a block where it is used.

use crate::error::{check_length, product, sum};
use crate::{AlignedBytes, Error, bf16};

/// Outputs of a panel.
pub(crate) const PANEL: usize = 32;
/// Bytes ahead of the panels, and what packed weights are aligned to.
const HEADER: usize = 64;
const MAGIC: &[u8; 8] = b"KILNPACK";
const VERSION: u32 = 1;

/// How products are computed; sums are always f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Element {
    /// Exact f32.
    F32,
    /// Both factors rounded to bf16.
    Bf16,
}

impl Element {
    fn code(self) -> u32 {
        match self {
            Element::F32 => 1,
            Element::Bf16 => 2,
        }
    }

    /// Values of a 4-byte word.
    pub(crate) fn per_word(self) -> usize {
        match self {
            Element::F32 => 1,
            Element::Bf16 => 2,
        }
    }
}

/// A view of packed weights.
#[derive(Clone, Copy, Debug)]
pub struct PackedWeights<'a> {
    words: &'a [u8],
    element: Element,
    n: usize,
    k: usize,
}

impl<'a> PackedWeights<'a> {
    /// Reads the header. `bytes` must be aligned to 64 bytes and have the length that [`packed_len`] says.
    pub fn from_bytes(bytes: &'a [u8]) -> Result<Self, Error> {
        if bytes.as_ptr().align_offset(HEADER) != 0 {
            return Err(Error::Packed("not aligned to 64 bytes".into()));
        }
        let (header, words) =
            bytes.split_at_checked(HEADER).ok_or_else(|| Error::Packed("no header".into()))?;
        let (element, n, k) = read_header(header)?;
        check_length("packed weights", packed_len(element, n, k)?, bytes.len())?;
        Ok(Self { words, element, n, k })
    }

    /// What the weights are stored as, and products computed in.
    pub fn element(&self) -> Element {
        self.element
    }

    /// Output features or channels.
    pub fn n(&self) -> usize {
        self.n
    }

    /// Input features, or input channels x kernel height x kernel width.
    pub fn k(&self) -> usize {
        self.k
    }

    /// `Ok` where they have `k` input and `n` output features.
    pub(crate) fn check(&self, k: usize, n: usize) -> Result<(), Error> {
        check_length("k of the weights", k, self.k)?;
        check_length("n of the weights", n, self.n)
    }

    /// Words of panel `index`.
    pub(crate) fn panel(&self, index: usize) -> &'a [u8] {
        let bytes = self.k.div_ceil(self.element.per_word()) * PANEL * 4;
        &self.words[index * bytes..][..bytes]
    }
}

/// Bytes of packed weights.
pub fn packed_len(element: Element, n: usize, k: usize) -> Result<usize, Error> {
    if n == 0 || k == 0 {
        return Err(Error::Packed(format!("{n} x {k} weights")));
    }
    let words = product(&[n.div_ceil(PANEL), k.div_ceil(element.per_word()), PANEL])?;
    sum(&[product(&[words, 4])?, HEADER])
}

/// Packs `weights`, `[n][k]` as checkpoints store linear layers and (with `k` = input channels x kernel) convolutions.
pub fn pack(element: Element, n: usize, k: usize, weights: &[f32]) -> Result<AlignedBytes, Error> {
    let len = packed_len(element, n, k)?;
    check_length("weights", product(&[n, k])?, weights.len())?;
    let mut bytes = AlignedBytes::zeroed(len)?;
    let (header, words) = bytes.split_at_mut(HEADER);
    write_header(header, element, n, k);
    let panel = k.div_ceil(element.per_word()) * PANEL * 4;
    for (index, words) in words.chunks_exact_mut(panel).enumerate() {
        pack_panel(element, k, &weights[index * PANEL * k..n.min((index + 1) * PANEL) * k], words);
    }
    Ok(bytes)
}

/// `rows` are up to 32 rows of `k` weights.
fn pack_panel(element: Element, k: usize, rows: &[f32], words: &mut [u8]) {
    for (column, row) in rows.chunks_exact(k).enumerate() {
        for (step, values) in row.chunks(element.per_word()).enumerate() {
            let word = match element {
                Element::F32 => values[0].to_bits(),
                Element::Bf16 => bf16::pair(values[0], values.get(1).copied().unwrap_or(0.0)),
            };
            words[(step * PANEL + column) * 4..][..4].copy_from_slice(&word.to_le_bytes());
        }
    }
}

fn write_header(header: &mut [u8], element: Element, n: usize, k: usize) {
    header[..8].copy_from_slice(MAGIC);
    header[8..12].copy_from_slice(&VERSION.to_le_bytes());
    header[12..16].copy_from_slice(&element.code().to_le_bytes());
    header[16..24].copy_from_slice(&(n as u64).to_le_bytes());
    header[24..32].copy_from_slice(&(k as u64).to_le_bytes());
}

fn read_header(header: &[u8]) -> Result<(Element, usize, usize), Error> {
    let number = |at: usize, len: usize| (0..len).fold(0u64, |n, i| n | u64::from(header[at + i]) << (8 * i));
    if &header[..8] != MAGIC {
        return Err(Error::Packed("no magic number".into()));
    }
    if number(8, 4) != u64::from(VERSION) {
        return Err(Error::Packed(format!("version {}, not {VERSION}", number(8, 4))));
    }
    let element =
        [Element::F32, Element::Bf16].into_iter().find(|element| u64::from(element.code()) == number(12, 4));
    let element = element.ok_or_else(|| Error::Packed(format!("unknown element {}", number(12, 4))))?;
    let size = |at| usize::try_from(number(at, 8)).map_err(|_| Error::TooLarge);
    Ok((element, size(16)?, size(24)?))
}

#[cfg(target_endian = "big")]
compile_error!("packed weights are little-endian words that kernels read as they lie");
