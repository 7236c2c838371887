//! A bundle that draws.

use std::ffi::CString;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use kiln_bundle::{Precision, Target};
use kiln_compile::{Checkpoint, EngineCache, TargetSpec};
use kiln_runtime::image::RgbImage;
use kiln_runtime::ndarray::ArrayD;
use kiln_runtime::{
    Bundle, Control, Device, Error, ErrorKind, Event, Init, Libraries, Library, LoraFile, MemoryOptions,
    Output, Pipeline, Request, SharedPipeline, Watch,
};
use pyo3::exceptions::PyUserWarning;
use pyo3::prelude::*;
use pyo3::types::PyBytes;
use serde::de::DeserializeOwned;

use crate::failure::{Failure, detached};

/// Width, height and bytes.
type Picture<'py> = (u32, u32, Bound<'py, PyBytes>);
/// The same without Python.
type Raw = (u32, u32, Vec<u8>);
/// Sizes and little-endian f32.
type Latents<'py> = (Vec<usize>, Bound<'py, PyBytes>);
/// Pictures, seconds until the first step, of all steps and of decoding, and latents.
type Drawn<'py> = (Vec<Picture<'py>>, (f64, f64, f64), Latents<'py>);

/// A bundle that draws; calls from several threads wait for each other.
#[pyclass(frozen, module = "kiln._kiln")]
pub(crate) struct Engine {
    pipeline: SharedPipeline,
    path: String,
    notices: Vec<String>,
}

/// Reads JSON that was written in Python: what is wrong is a value, and named by its field.
fn json<T: DeserializeOwned>(text: &str) -> Result<T, Failure> {
    serde_path_to_error::deserialize(&mut serde_json::Deserializer::from_str(text)).map_err(|error| {
        let reason = error.inner().to_string();
        let reason = reason.split(" at line ").next().unwrap_or_default();
        Failure::request(format!("{}: {reason}", error.path()))
    })
}

fn image(name: &str, (width, height, data): Raw) -> Result<RgbImage, Failure> {
    RgbImage::from_raw(width, height, data).map_err(|error| Failure::request(format!("{name}: {error}")))
}

fn raw(picture: &Picture<'_>) -> Raw {
    (picture.0, picture.1, picture.2.as_bytes().to_vec())
}

fn bytes_of(latents: &ArrayD<f32>) -> (Vec<usize>, Vec<u8>) {
    (latents.shape().to_vec(), latents.iter().flat_map(|x| x.to_le_bytes()).collect())
}

#[pymethods]
impl Engine {
    /// Opens a bundle's folder.
    #[new]
    #[pyo3(signature = (path, device=None, threads=None, onnxruntime=None))]
    fn new(
        py: Python<'_>,
        path: &str,
        device: Option<&str>,
        threads: Option<usize>,
        onnxruntime: Option<&str>,
    ) -> PyResult<Engine> {
        detached(py, || {
            let mut libraries = Libraries::new().from_environment();
            if let Some(path) = onnxruntime {
                libraries = libraries.with_path(Library::OnnxRuntimeCpu, path);
            }
            let mut builder = Pipeline::builder(Bundle::open(path)?).libraries(libraries).threads(threads);
            if let Some(device) = device {
                let wrong = |reason| Failure::request(format!("device: {device:?} is none: {reason}"));
                builder = builder.device(device.parse::<Device>().map_err(wrong)?);
            }
            let pipeline = builder.build()?;
            let notices = pipeline.notices().iter().map(ToString::to_string).collect();
            Ok(Engine { pipeline: SharedPipeline::new(pipeline), path: path.into(), notices })
        })
    }

    /// The bundle's folder.
    #[getter]
    fn path(&self) -> &str {
        &self.path
    }

    /// What took the place of something better, and why.
    #[getter]
    fn notices(&self) -> Vec<String> {
        self.notices.clone()
    }

    /// Draws. `on_step` is given the evaluations done, the timestep that the last one left, and the latents; what it returns says whether to go on.
    #[pyo3(signature = (request, init=None, mask=None, strength=None, controls=Vec::new(), on_step=None))]
    #[expect(clippy::too_many_arguments, reason = "Python has them by name")]
    fn generate<'py>(
        &self,
        py: Python<'py>,
        request: &str,
        init: Option<Picture<'py>>,
        mask: Option<Picture<'py>>,
        strength: Option<f64>,
        controls: Vec<(Picture<'py>, Option<f32>, f64, f64)>,
        on_step: Option<Py<PyAny>>,
    ) -> PyResult<Drawn<'py>> {
        let (init, mask) = (init.as_ref().map(raw), mask.as_ref().map(raw));
        let controls: Vec<_> =
            controls.iter().map(|(picture, scale, start, end)| (raw(picture), *scale, *start, *end)).collect();
        let output = detached(py, || {
            let mut request: Request = json(request)?;
            if let Some(picture) = init {
                let mut init = Init::new(image("image", picture)?).strength(strength);
                if let Some(mask) = mask {
                    init = init.mask(image("mask_image", mask)?);
                }
                request.init = Some(init);
            }
            for (picture, scale, start, end) in controls {
                let control = Control::new(image("control_image", picture)?);
                request.controls.push(control.scale(scale).between(start, end));
            }
            let mut held = self.pipeline.hold()?;
            match on_step {
                Some(on_step) => draw_stepwise(&mut held, &request, &on_step),
                None => draw(&mut held, &request),
            }
        })?;
        let picture = |image: &RgbImage| (image.width(), image.height(), PyBytes::new(py, image.data()));
        let timings = output.timings;
        let seconds = (timings.start.as_secs_f64(), timings.steps.as_secs_f64(), timings.decode.as_secs_f64());
        let (shape, latents) = bytes_of(&output.latents);
        Ok((output.images.iter().map(picture).collect(), seconds, (shape, PyBytes::new(py, &latents))))
    }

    /// The fastest way to draw within so many bytes, as JSON.
    #[pyo3(signature = (request, budget=None))]
    fn plan(&self, py: Python<'_>, request: &str, budget: Option<u64>) -> PyResult<String> {
        detached(py, || {
            let request: Request = json(request)?;
            let held = self.pipeline.hold()?;
            let unmeasured =
                || Failure::new(ErrorKind::Input, "the bundle has no figures", Some("kiln measure makes them"));
            let figures = held.bundle().figures()?.ok_or_else(unmeasured)?;
            let choice = held.plan(&request, &figures)?.within(budget.unwrap_or(u64::MAX))?;
            serde_json::to_string(&choice).map_err(Failure::request)
        })
    }

    /// Spends memory as JSON says.
    fn set_memory(&self, py: Python<'_>, options: &str) -> PyResult<()> {
        detached(py, || {
            let options: MemoryOptions = json(options)?;
            options.validate()?;
            Ok(self.pipeline.hold()?.set_memory(options)?)
        })
    }

    /// Draws with LoRAs, files with their weights, from now on; gives what of them is left out.
    fn set_loras(&self, py: Python<'_>, loras: Vec<(String, f32)>) -> PyResult<Vec<String>> {
        detached(py, || {
            let open = |(path, weight): (String, f32)| {
                Ok((Arc::new(LoraFile::open(path).map_err(Error::from)?), weight))
            };
            let loras = loras.into_iter().map(open).collect::<Result<Vec<_>, Failure>>()?;
            Ok(self.pipeline.hold()?.set_loras(&loras)?)
        })
    }

    /// Adds a ControlNet, a bundle's folder.
    fn add_controlnet(&self, py: Python<'_>, path: &str) -> PyResult<()> {
        detached(py, || Ok(self.pipeline.hold()?.add_controlnet(Bundle::open(path)?)?))
    }

    /// Adds a textual inversion, and gives the token that names it.
    #[pyo3(signature = (path, token=None))]
    fn add_embedding(&self, py: Python<'_>, path: &str, token: Option<&str>) -> PyResult<String> {
        detached(py, || Ok(self.pipeline.hold()?.add_embedding(path, token)?))
    }

    /// Gives back all engines.
    fn release(&self, py: Python<'_>) -> PyResult<()> {
        detached(py, || {
            self.pipeline.hold()?.release();
            Ok(())
        })
    }
}

/// Hands notices to Python as warnings, and keeps what Python raises: an interrupt, or a warning that is an error.
fn heed(event: &Event, raised: &mut Option<PyErr>) -> ControlFlow<()> {
    let heeded = Python::attach(|py| {
        if let Some(notice) = event.notice() {
            let notice = CString::new(notice).unwrap_or_default();
            PyErr::warn(py, &py.get_type::<PyUserWarning>(), &notice, 1)?;
        }
        py.check_signals()
    });
    match heeded {
        Ok(()) => ControlFlow::Continue(()),
        Err(error) => {
            *raised = Some(error);
            ControlFlow::Break(())
        }
    }
}

/// What a run gave, unless Python raised something in it.
fn unless<T>(raised: Option<PyErr>, result: Result<T, Error>) -> Result<T, Failure> {
    match raised {
        Some(error) => Err(error.into()),
        None => Ok(result?),
    }
}

/// Draws, and stops for signals.
fn draw(pipeline: &mut Pipeline, request: &Request) -> Result<Output, Failure> {
    let mut raised = None;
    let mut on_event = |event: Event| heed(&event, &mut raised);
    let drawn = pipeline.generate_with(request, Watch::new().on_event(&mut on_event));
    unless(raised, drawn)
}

/// Draws step by step, and tells of each.
fn draw_stepwise(pipeline: &mut Pipeline, request: &Request, on_step: &Py<PyAny>) -> Result<Output, Failure> {
    let mut session = pipeline.session();
    let mut raised = None;
    let mut on_event = |event: Event| heed(&event, &mut raised);
    let begun = session.begin(request, Watch::new().on_event(&mut on_event));
    let mut drawing = unless(raised, begun)?;
    while !drawing.is_denoised() {
        let timestep = drawing.timestep();
        session.advance(&mut [&mut drawing]).into_iter().collect::<Result<(), _>>()?;
        let (shape, latents) = bytes_of(drawing.latents());
        let goes_on = Python::attach(|py| {
            py.check_signals()?;
            let latents = (shape, PyBytes::new(py, &latents));
            on_step.call1(py, (drawing.step(), timestep, latents))?.is_truthy(py)
        })?;
        if !goes_on {
            break;
        }
    }
    Ok(session.finish(drawing, Watch::new())?)
}

/// Compiles a checkpoint, or finds its bundle in the cache.
pub(crate) fn compile(
    checkpoint: &str,
    target: &str,
    precision: Option<&str>,
    engine_cache: Option<&str>,
) -> Result<String, Failure> {
    let wrong = |name: &'static str| move |reason: String| Failure::request(format!("{name}: {reason}"));
    let target: Target = target.parse().map_err(wrong("target"))?;
    if target != Target::Cpu {
        return Err(Failure::request(format!("target: {target} is compiled by the kiln command")));
    }
    let mut spec = TargetSpec::new(target);
    let precision = precision.map(str::parse::<Precision>).transpose().map_err(wrong("precision"))?;
    spec.networks_mut().precision.compute = precision;
    let root = match engine_cache {
        Some(folder) => folder.into(),
        None => kiln_native::cache_dir().map_err(Error::from)?.join("engines"),
    };
    let checkpoint = Checkpoint::open(Path::new(checkpoint))?;
    let options = spec.build_options(&checkpoint, Vec::new(), |_| {
        Err::<_, Failure>(Failure::request("no engines are built here"))
    })?;
    let compiled = EngineCache::new(root).compile(&checkpoint, &options, &mut |_| {})?;
    Ok(compiled.bundle.root().display().to_string())
}
