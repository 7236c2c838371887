//! kiln's own kernels within ONNX Runtime's graphs.
//!
//! A model file stays standard ONNX, which every runtime reads. When it is loaded, operators that a kernel computes faster
//! than ONNX Runtime's own are exchanged for operators of kiln's domain; they run on ONNX Runtime's threads and read
//! weights where they lie.

mod attention;
mod conv;
mod linear;
mod norm;
mod rewrite;
mod wire;

use std::path::Path;
use std::str::FromStr;
use std::sync::{Mutex, PoisonError};

use half::slice::HalfFloatSliceExt;
use kiln_kernels::{Element, Isa, Values};
use ort::operator::{ComputeContext, OperatorDomain, OperatorInput};
use ort::session::Session;
use ort::session::builder::SessionBuilder;
use ort::value::TensorElementType::Float32;
use ort::value::{DynValueTypeMarker, TensorElementType, ValueRef, ValueRefMut};

use crate::Placement;
use crate::heap::Room;
use rewrite::Gains;

/// The domain of kiln's operators.
const DOMAIN: &str = "kiln";

/// Largest model file that is read as a whole: larger ones hold their weights, which kiln's do not.
const MAX_MODEL: u64 = 64 << 20;

/// Which of kiln's kernels compute within ONNX Runtime's graphs on the host; by default, those for the fastest
/// instructions of this processor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kernels {
    isa: Option<Isa>,
}

impl Kernels {
    /// None: ONNX Runtime's own operators compute everything.
    pub const OFF: Kernels = Kernels { isa: None };

    /// The name of their instructions; none where there are none.
    pub fn name(self) -> Option<&'static str> {
        self.isa.map(Isa::name)
    }

    /// Whether they multiply int8 faster than bf16 and f32.
    pub fn multiply_int8(self) -> bool {
        self.isa.is_some_and(multiplies_int8)
    }

    /// Whether they multiply bf16 faster than f32.
    pub fn multiply_bf16(self) -> bool {
        self.isa.is_some_and(multiplies_bf16)
    }
}

impl Default for Kernels {
    /// None where the processor has no vectors that kiln knows.
    fn default() -> Kernels {
        Kernels { isa: Some(Isa::best()).filter(|isa| *isa != Isa::Portable) }
    }
}

impl FromStr for Kernels {
    type Err = String;

    /// `off`, `auto` for the fastest, or instructions that this processor has.
    fn from_str(name: &str) -> Result<Kernels, String> {
        let known = Isa::ALL.into_iter().filter(|isa| isa.is_available());
        match (name, known.clone().find(|isa| isa.name() == name)) {
            ("off", _) => Ok(Kernels::OFF),
            ("auto", _) => Ok(Kernels::default()),
            (_, Some(isa)) => Ok(Kernels { isa: Some(isa) }),
            _ => {
                let known: Vec<&str> = known.map(Isa::name).collect();
                Err(format!("'{}' is not off, auto or one of {}", name.escape_debug(), known.join(", ")))
            }
        }
    }
}

/// The model with kernels of kiln in place of operators that they compute, if there are any.
pub(super) fn rewritten(model: &Path, kernels: Kernels, placement: Placement) -> Option<Vec<u8>> {
    let isa = kernels.isa?;
    if model.metadata().ok()?.len() > MAX_MODEL {
        return None;
    }
    let gains = Gains {
        bf16: multiplies_bf16(isa),
        int8: multiplies_int8(isa),
        linear_f32: placement == Placement::Mapped,
    };
    rewrite::model(&std::fs::read(model).ok()?, gains)
}

/// Whether instructions multiply bf16 faster than f32.
fn multiplies_bf16(isa: Isa) -> bool {
    matches!(isa, Isa::Avx512Bf16 | Isa::Amx)
}

/// Whether instructions multiply int8 faster than bf16 and f32.
fn multiplies_int8(isa: Isa) -> bool {
    matches!(isa, Isa::Avx512Vnni | Isa::Avx512Bf16 | Isa::Amx)
}

/// Whether ONNX Runtime knows the domain.
static IS_KNOWN: Mutex<bool> = Mutex::new(false);

/// A session of a rewritten model, whose weights lie in `folder`.
pub(super) fn open(builder: SessionBuilder, model: &[u8], folder: &Path, work: Work) -> ort::Result<Session> {
    let mut domain = OperatorDomain::new(DOMAIN)?
        .add(conv::Conv::new(work, Stored::F32))?
        .add(conv::Conv::new(work, Stored::Bf16))?
        .add(norm::GroupNorm::new(work))?
        .add(attention::Attention::new(work, Stored::F32))?
        .add(attention::Attention::new(work, Stored::Bf16))?;
    for form in linear::Form::ALL {
        domain = domain.add(linear::Linear::new(work, form))?;
    }
    let folder = folder.to_string_lossy();
    let builder = builder.with_operators(domain)?;
    let mut builder =
        builder.with_config_entry("session.model_external_initializers_file_folder_path", &*folder)?;
    // Two sessions at once that are the first to have a domain fail: each adds it to one list of the process.
    let mut is_known = IS_KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    if *is_known {
        drop(is_known);
        return builder.commit_from_memory(model);
    }
    let session = builder.commit_from_memory(model)?;
    *is_known = true;
    Ok(session)
}

/// How the kernels of a session work.
#[derive(Clone, Copy, Debug)]
pub(super) struct Work {
    isa: Isa,
    threads: usize,
}

impl Work {
    pub(super) fn new(kernels: Kernels, threads: usize) -> Work {
        Work { isa: kernels.isa.unwrap_or(Isa::Portable), threads }
    }
}

/// Type of an operator's weights; bf16 is that of models whose products are of bf16 or int8, too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stored {
    F32,
    Bf16,
}

impl Stored {
    fn element_type(self) -> TensorElementType {
        match self {
            Stored::F32 => Float32,
            Stored::Bf16 => TensorElementType::Bfloat16,
        }
    }

    /// What factors are rounded to.
    fn products(self, isa: Isa) -> Element {
        match self {
            Stored::Bf16 if multiplies_bf16(isa) => Element::Bf16,
            Stored::F32 | Stored::Bf16 => Element::F32,
        }
    }

    /// Shape and numbers of weights.
    fn numbers<'v>(self, weights: &'v Value<'_>) -> ort::Result<(&'v [i64], Values<'v>)> {
        Ok(match self {
            Stored::F32 => {
                let (shape, values) = weights.try_extract_tensor::<f32>()?;
                (shape, Values::F32(values))
            }
            Stored::Bf16 => {
                let (shape, values) = weights.try_extract_tensor::<half::bf16>()?;
                (shape, Values::Bf16(values.reinterpret_cast()))
            }
        })
    }
}

/// An operator's input.
type Value<'a> = ValueRef<'a, DynValueTypeMarker>;

/// Its output.
type Output<'a> = ValueRefMut<'a, DynValueTypeMarker>;

/// Inputs of a product whose weights are of this type: input, weights, and perhaps bias and residual.
fn inputs(weights: Stored) -> [OperatorInput; 4] {
    let weights = OperatorInput::required(weights.element_type());
    let [bias, residual] = [Float32; 2].map(OperatorInput::optional);
    [OperatorInput::required(Float32), weights, bias, residual]
}

/// The numbers of an input, if there is one.
fn numbers<'v>(input: &'v Option<Value<'_>>) -> ort::Result<Option<&'v [f32]>> {
    input.as_ref().map(|input| Ok(input.try_extract_tensor::<f32>()?.1)).transpose()
}

/// An input that there must be.
fn given<'a>(context: &'a ComputeContext, at: usize) -> ort::Result<Value<'a>> {
    context.input(at)?.ok_or_else(|| failed("an input is missing"))
}

/// The output, of a shape.
fn output<'a>(context: &'a ComputeContext, sizes: &[usize]) -> ort::Result<Output<'a>> {
    let sizes: Vec<i64> = sizes.iter().map(|&n| n as i64).collect();
    context.output(0, sizes)?.ok_or_else(|| failed("the output is missing"))
}

/// Room for as many intermediate results as a kernel asks for.
fn room(len: Result<usize, kiln_kernels::Error>) -> ort::Result<Room> {
    Room::new(len.map_err(failed)?).ok_or_else(|| failed("no memory for intermediate results"))
}

/// Sizes of a shape.
fn all_sizes(shape: &[i64]) -> ort::Result<Vec<usize>> {
    shape.iter().map(|&n| usize::try_from(n)).collect::<Result<_, _>>().map_err(failed)
}

/// Sizes of a shape with so many axes.
fn sizes<const N: usize>(shape: &[i64]) -> ort::Result<[usize; N]> {
    all_sizes(shape)?.try_into().map_err(|_| failed(format!("a shape of {} axes, not {N}", shape.len())))
}

/// ONNX Runtime's threads.
struct Pool<'a> {
    context: &'a ComputeContext,
    threads: usize,
}

impl kiln_kernels::Parallel for Pool<'_> {
    fn lanes(&self) -> usize {
        self.threads
    }

    fn run(&self, n: usize, task: &(dyn Fn() + Sync)) {
        // What is not called here the caller does itself.
        let _ = self.context.par_for(n, n, |_| task());
    }
}

fn failed(error: impl std::fmt::Display) -> ort::Error {
    ort::Error::new(error.to_string())
}
