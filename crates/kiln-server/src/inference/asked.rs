//! Tensors and parameters, turned into what is to be drawn.

use std::collections::BTreeMap;
use std::time::Duration;

use axum::body::Bytes;
use kiln_runtime::image::RgbImage;
use kiln_runtime::{Init, Request};

use super::describe::Input;
use super::picture;
use super::results::Output;
use super::tensor::{Source, Tensor, Values};
use crate::fault::shown;
use crate::http::error::ApiError;
use crate::http::{bound, new_seed};
use crate::{ModelCard, Spec};

/// Largest seed: what INT64 can give back.
const MAX_SEED: u64 = i64::MAX as u64;

/// What a request asks for.
#[derive(Debug)]
pub(crate) struct Asked {
    pub(crate) spec: Spec,
    pub(crate) outputs: Vec<Output>,
    /// How long the client waits.
    pub(crate) time: Option<Duration>,
}

/// A request's parameter.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Parameter {
    Truth(bool),
    Integer(i128),
    Float(f64),
    Text(String),
}

/// Gathers what a request says.
pub(crate) struct Reader {
    card: ModelCard,
    tensors: BTreeMap<&'static str, Tensor>,
    outputs: Vec<Output>,
    time: Option<Duration>,
}

impl Reader {
    /// Of a request to a model.
    pub(crate) fn new(card: ModelCard) -> Reader {
        Reader { card, tensors: BTreeMap::new(), outputs: Vec::new(), time: None }
    }

    /// Takes an input.
    pub(crate) fn input(
        &mut self,
        name: &str,
        datatype: &str,
        shape: &[i64],
        source: Source,
    ) -> Result<(), ApiError> {
        let input = self.open(name, "input")?;
        self.tensors.insert(input.name, Tensor::read(input, datatype, shape, source)?);
        Ok(())
    }

    /// Takes a parameter: an input of one element, or the time that the client waits.
    pub(crate) fn parameter(&mut self, name: &str, value: Parameter) -> Result<(), ApiError> {
        if name == "timeout" {
            let Parameter::Integer(time) = value else {
                return Err(invalid(name, "is not a number of microseconds"));
            };
            let time = u64::try_from(time).ok().filter(|time| *time > 0);
            let time = time.ok_or_else(|| invalid(name, "is not a number of microseconds"))?;
            self.limit_time(Duration::from_micros(time));
            return Ok(());
        }
        let input = self.open(name, "parameter")?;
        let values = of_parameter(input, value).map_err(|reason| invalid(input.name, reason))?;
        self.tensors.insert(input.name, Tensor { shape: vec![1], values });
        Ok(())
    }

    /// Takes an output that is asked for.
    pub(crate) fn output(&mut self, name: &str, is_binary: bool) -> Result<(), ApiError> {
        let output = Output::named(name, is_binary)
            .ok_or_else(|| invalid("outputs", format!("'{}' is no output of this model", shown(name))))?;
        if self.outputs.iter().any(|other| other.name == output.name) {
            return Err(invalid(output.name, "is asked for twice"));
        }
        self.outputs.push(output);
        Ok(())
    }

    /// The client waits no longer than this.
    pub(crate) fn limit_time(&mut self, time: Duration) {
        self.time = Some(self.time.map_or(time, |other| other.min(time)));
    }

    /// What to draw; `is_binary` is how outputs are given that the request does not name.
    pub(crate) fn finish(mut self, is_binary: bool) -> Result<Asked, ApiError> {
        if self.outputs.is_empty() {
            self.outputs = Output::by_default(is_binary);
        }
        let mut request = self.request()?;
        bound(&mut request, &self.card)?;
        let spec = Spec { model: self.card.name, loras: Vec::new(), request };
        Ok(Asked { spec, outputs: self.outputs, time: self.time })
    }

    fn open(&self, name: &str, what: &str) -> Result<&'static Input, ApiError> {
        let input = Input::named(name)
            .ok_or_else(|| invalid("inputs", format!("'{}' is no {what} of this model", shown(name))))?;
        match self.tensors.contains_key(input.name) {
            true => Err(invalid(input.name, "is given twice")),
            false => Ok(input),
        }
    }

    fn request(&self) -> Result<Request, ApiError> {
        let limits = self.card.limits;
        let prompts = self.texts("prompt")?.ok_or_else(|| invalid("prompt", "is missing"))?;
        let seeds = self.seeds()?;
        let n = match (prompts.len(), &seeds) {
            (1, Some(seeds)) => seeds.len(),
            (n, _) => n,
        };
        if n > limits.pictures {
            let name = if prompts.len() > 1 { "prompt" } else { "seed" };
            return Err(invalid(name, format!("{n} pictures, the limit is {}", limits.pictures)));
        }
        let side = |name| -> Result<Option<u32>, ApiError> {
            Ok(self.integer(name, limits.side.into())?.map(|side| side as u32))
        };
        let mut request = Request::new("")
            .prompts(repeated(prompts, n))
            .seeds(spread(seeds, n)?)
            .steps(self.integer("steps", limits.steps as u64)?.map(|steps| steps as usize))
            .guidance_scale(self.guidance_scale()?);
        (request.width, request.height) = (side("width")?, side("height")?);
        request.scheduler = self.texts("scheduler")?.and_then(|names| names.into_iter().next());
        if let Some(texts) = self.texts("negative_prompt")? {
            if texts.len() != 1 && texts.len() != n {
                return Err(invalid("negative_prompt", format!("{} texts for {n} pictures", texts.len())));
            }
            // Many empty texts say as little as none.
            request.negative_prompts = if texts.iter().all(String::is_empty) { Vec::new() } else { texts };
        }
        request.init = self.init()?;
        Ok(request)
    }

    fn init(&self) -> Result<Option<Init>, ApiError> {
        let Some(image) = self.picture("init_image", false)? else {
            let alone = ["mask", "strength"].into_iter().find(|name| self.tensors.contains_key(name));
            return alone.map_or(Ok(None), |name| Err(invalid(name, "has no init_image")));
        };
        let mut init = Init::new(image);
        init.strength = self.float("strength")?;
        init.mask = self.picture("mask", true)?.map(Into::into);
        Ok(Some(init))
    }

    fn picture(&self, name: &str, allows_grey: bool) -> Result<Option<RgbImage>, ApiError> {
        let picture = self.tensors.get(name).map(|tensor| picture::read(tensor, allows_grey));
        picture.transpose().map_err(|reason| invalid(name, reason))
    }

    fn texts(&self, name: &str) -> Result<Option<Vec<String>>, ApiError> {
        let Some(Tensor { shape, values: Values::Texts(texts) }) = self.tensors.get(name) else {
            return Ok(None);
        };
        check_row(shape).map_err(|reason| invalid(name, reason))?;
        let limit = self.card.limits.prompt_bytes;
        let text = |text: &Bytes| match std::str::from_utf8(text) {
            _ if text.len() > limit => Err(format!("{} bytes, the limit is {limit}", text.len())),
            Ok(text) if text.contains('\0') => Err("holds NUL".into()),
            Ok(text) => Ok(text.to_owned()),
            Err(_) => Err("is not UTF-8".to_owned()),
        };
        texts.iter().map(text).collect::<Result<_, _>>().map(Some).map_err(|reason| invalid(name, reason))
    }

    fn seeds(&self) -> Result<Option<Vec<u64>>, ApiError> {
        let Some(Tensor { shape, values: Values::Integers(seeds) }) = self.tensors.get("seed") else {
            return Ok(None);
        };
        check_row(shape).map_err(|reason| invalid("seed", reason))?;
        seeds.iter().map(|seed| within("seed", *seed, 0, MAX_SEED)).collect::<Result<_, _>>().map(Some)
    }

    fn integer(&self, name: &str, max: u64) -> Result<Option<u64>, ApiError> {
        match self.tensors.get(name).map(|tensor| &tensor.values) {
            Some(Values::Integers(integers)) => integers.first().map(|x| within(name, *x, 1, max)).transpose(),
            _ => Ok(None),
        }
    }

    fn float(&self, name: &str) -> Result<Option<f64>, ApiError> {
        match self.tensors.get(name).map(|tensor| &tensor.values) {
            Some(Values::Floats(floats)) => match floats.first() {
                Some(x) if !x.is_finite() => Err(invalid(name, format!("{x} is not a finite number"))),
                first => Ok(first.copied()),
            },
            _ => Ok(None),
        }
    }

    fn guidance_scale(&self) -> Result<Option<f32>, ApiError> {
        let Some(scale) = self.float("guidance_scale")? else { return Ok(None) };
        match (scale as f32).is_finite() {
            true => Ok(Some(scale as f32)),
            false => Err(invalid("guidance_scale", format!("{scale:e} is too large"))),
        }
    }
}

/// A refusal that names a tensor.
pub(super) fn invalid(name: &str, reason: impl std::fmt::Display) -> ApiError {
    let name = shown(name);
    ApiError::invalid(&name, format!("{name}: {reason}"))
}

fn of_parameter(input: &Input, value: Parameter) -> Result<Values, String> {
    let wants = input.datatypes[input.datatypes.len() - 1];
    Ok(match (wants.is_float(), wants.bounds(), value) {
        (true, _, Parameter::Integer(x)) => Values::Floats(vec![x as f64]),
        (true, _, Parameter::Float(x)) => Values::Floats(vec![x]),
        (false, Some(_), Parameter::Integer(x)) => Values::Integers(vec![x]),
        (false, None, Parameter::Text(text)) => Values::Texts(vec![text.into()]),
        (true, ..) => return Err("is not a number".into()),
        (false, Some(_), _) => return Err("is not an integer".into()),
        (false, None, _) => return Err("is not a text".into()),
    })
}

/// Elements stand in a row: one side at most is more than one.
fn check_row(shape: &[u64]) -> Result<(), String> {
    match shape.iter().filter(|side| **side > 1).count() {
        0 | 1 => Ok(()),
        _ => Err(format!("shape {shape:?} is not [n]")),
    }
}

fn within(name: &str, x: i128, min: u64, max: u64) -> Result<u64, ApiError> {
    let inside = u64::try_from(x).ok().filter(|x| (min..=max).contains(x));
    inside.ok_or_else(|| invalid(name, format!("{x} is not from {min} to {max}")))
}

fn repeated(mut prompts: Vec<String>, n: usize) -> Vec<String> {
    if let [prompt] = &prompts[..] {
        prompts = vec![prompt.clone(); n];
    }
    prompts
}

/// A seed per picture; those that are not given follow the first one.
fn spread(seeds: Option<Vec<u64>>, n: usize) -> Result<Vec<u64>, ApiError> {
    let first = match seeds {
        Some(seeds) if seeds.len() == n => return Ok(seeds),
        Some(seeds) if seeds.len() > 1 => {
            return Err(invalid("seed", format!("{} seeds for {n} pictures", seeds.len())));
        }
        Some(seeds) => seeds.first().copied().unwrap_or_default(),
        None => new_seed(),
    };
    let last = first.checked_add(n as u64 - 1).filter(|last| *last <= MAX_SEED);
    let last = last.ok_or_else(|| invalid("seed", format!("{first} has no {n} seeds behind it")))?;
    Ok((first..=last).collect())
}
