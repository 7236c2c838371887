//! A bundle that draws.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, ThreadId};

use kiln_bundle::{Precision, Target};
use kiln_compile::{Checkpoint, EngineCache, TargetSpec};
use kiln_runtime::image::RgbImage;
use kiln_runtime::ndarray::ArrayD;
use kiln_runtime::{
    Bundle, Control, Device, Error, Event, Init, Libraries, Library, LoraFile, MemoryOptions, Output, Pipeline,
    Request, Watch,
};
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
    pipeline: Mutex<Pipeline>,
    /// The thread whose call runs.
    holder: Mutex<Option<ThreadId>>,
    path: String,
    notices: Vec<String>,
}

/// The pipeline while a call has it.
struct Held<'a> {
    pipeline: MutexGuard<'a, Pipeline>,
    holder: &'a Mutex<Option<ThreadId>>,
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        *self.holder.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

impl Engine {
    /// Waits for other threads; a callback cannot wait for the call that it is part of.
    fn hold(&self) -> Result<Held<'_>, Failure> {
        let holder = || self.holder.lock().unwrap_or_else(PoisonError::into_inner);
        if *holder() == Some(thread::current().id()) {
            return Err(Failure::request("a callback cannot use the pipeline that calls it"));
        }
        let pipeline = self.pipeline.lock().unwrap_or_else(PoisonError::into_inner);
        *holder() = Some(thread::current().id());
        Ok(Held { pipeline, holder: &self.holder })
    }
}

fn json<T: DeserializeOwned>(what: &str, text: &str) -> Result<T, Failure> {
    serde_json::from_str(text).map_err(|error| Failure::request(format!("{what}: {error}")))
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
            Ok(Engine { pipeline: Mutex::new(pipeline), holder: Mutex::new(None), path: path.into(), notices })
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
            let mut request: Request = json("request", request)?;
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
            let mut held = self.hold()?;
            match on_step {
                Some(on_step) => draw_stepwise(&mut held.pipeline, &request, &on_step),
                None => draw(&mut held.pipeline, &request),
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
            let request: Request = json("request", request)?;
            let held = self.hold()?;
            let unmeasured = || Failure::request("the bundle has no figures: kiln measure makes them");
            let figures = held.pipeline.bundle().figures()?.ok_or_else(unmeasured)?;
            let choice = held.pipeline.plan(&request, &figures)?.within(budget.unwrap_or(u64::MAX))?;
            serde_json::to_string(&choice).map_err(Failure::request)
        })
    }

    /// Spends memory as JSON says.
    fn set_memory(&self, py: Python<'_>, options: &str) -> PyResult<()> {
        detached(py, || {
            let options: MemoryOptions = json("memory", options)?;
            options.validate()?;
            Ok(self.hold()?.pipeline.set_memory(options)?)
        })
    }

    /// Draws with LoRAs, files with their weights, from now on; gives what of them is left out.
    fn set_loras(&self, py: Python<'_>, loras: Vec<(String, f32)>) -> PyResult<Vec<String>> {
        detached(py, || {
            let open = |(path, weight): (String, f32)| {
                Ok((Arc::new(LoraFile::open(path).map_err(Error::from)?), weight))
            };
            let loras = loras.into_iter().map(open).collect::<Result<Vec<_>, Failure>>()?;
            Ok(self.hold()?.pipeline.set_loras(&loras)?)
        })
    }

    /// Adds a ControlNet, a bundle's folder.
    fn add_controlnet(&self, py: Python<'_>, path: &str) -> PyResult<()> {
        detached(py, || Ok(self.hold()?.pipeline.add_controlnet(Bundle::open(path)?)?))
    }

    /// Adds a textual inversion, and gives the token that names it.
    #[pyo3(signature = (path, token=None))]
    fn add_embedding(&self, py: Python<'_>, path: &str, token: Option<&str>) -> PyResult<String> {
        detached(py, || Ok(self.hold()?.pipeline.add_embedding(path, token)?))
    }

    /// Gives back all engines.
    fn release(&self, py: Python<'_>) -> PyResult<()> {
        detached(py, || {
            self.hold()?.pipeline.release();
            Ok(())
        })
    }
}

/// Draws, and stops for signals.
fn draw(pipeline: &mut Pipeline, request: &Request) -> Result<Output, Failure> {
    let mut raised = None;
    let mut on_event = |_: Event| match Python::attach(|py| py.check_signals()) {
        Ok(()) => ControlFlow::Continue(()),
        Err(error) => {
            raised = Some(error);
            ControlFlow::Break(())
        }
    };
    let drawn = pipeline.generate_with(request, Watch::new().on_event(&mut on_event));
    match raised {
        Some(error) => Err(error.into()),
        None => Ok(drawn?),
    }
}

/// Draws step by step, and tells of each.
fn draw_stepwise(pipeline: &mut Pipeline, request: &Request, on_step: &Py<PyAny>) -> Result<Output, Failure> {
    let mut session = pipeline.session();
    let mut drawing = session.begin(request, Watch::new())?;
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
