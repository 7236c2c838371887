use kiln_bundle::{Bundle, Target};

use super::{Backends, Device, Gpu, Notice, Runner};
use crate::Error;

/// Where engines run, and the target that they are built for.
#[derive(Clone, Debug)]
pub struct Place {
    target: Target,
    gpu: Option<Gpu>,
    notices: Vec<Notice>,
}

impl Place {
    fn host(target: Target) -> Place {
        Place { target, gpu: None, notices: Vec::new() }
    }

    /// What engines are built for that run here.
    pub fn target(&self) -> Target {
        self.target
    }

    /// The GPU, where it is one.
    pub fn gpu(&self) -> Option<&Gpu> {
        self.gpu.as_ref()
    }

    /// Major and minor compute capability of the GPU, where it is one.
    pub fn compute_capability(&self) -> Option<[u32; 2]> {
        self.gpu.as_ref().map(Gpu::compute_capability)
    }

    /// Why it is no better place.
    pub fn notices(&self) -> &[Notice] {
        &self.notices
    }

    /// The same place for engines of another target, which must run on the same device.
    #[must_use]
    pub fn with_target(&self, target: Target) -> Place {
        Place { target, ..self.clone() }
    }
}

impl Backends {
    /// Where the engines of a target run.
    ///
    /// Fails where that is not the device or the backend that was asked for, and where the machine lacks it.
    pub fn place(&self, target: Target) -> Result<Place, Error> {
        match (self.device, target.is_for_gpus()) {
            (Device::Cpu, true) | (Device::Cuda(_), false) => Err(Error::Request {
                key: "device",
                reason: format!("{}: {}", self.device, misplaced_reason(target)),
            }),
            (device, true) => self.on_gpu(device.ordinal(), target),
            (_, false) if target == Target::Onnx => Err(misplaced(target)),
            (_, false) => Ok(Place::host(target)),
        }
    }

    /// Where the engines of a bundle run, like [`Backends::place`].
    pub fn place_for(&self, bundle: &Bundle) -> Result<Place, Error> {
        match bundle.manifest().target {
            Target::Onnx => {
                let (path, target) = (bundle.root().into(), Target::Onnx);
                Err(Error::Target { path, target, reason: "engines are built from it".into() })
            }
            target => self.place(target),
        }
    }

    /// Where the engines of a checkpoint run that is still to be compiled, and so what it is compiled for.
    ///
    /// The device that was asked for decides, or else whether there is a GPU that TensorRT-RTX can use; what `on_host`
    /// says keeps the engines on the processor then. A GPU that is there and not used comes with a notice.
    pub fn choose(&self, on_host: Option<&str>) -> Result<Place, Error> {
        match (self.device, self.runner) {
            (Device::Cuda(ordinal), Runner::OnnxRuntime) => self.on_gpu(ordinal, Target::Cuda),
            (Device::Cuda(ordinal), _) => self.on_gpu(ordinal, Target::TensorrtRtx),
            (Device::Auto, Runner::Auto) => self.best(on_host),
            (Device::Auto | Device::Cpu, _) => Ok(Place::host(Target::Cpu)),
        }
    }

    fn best(&self, on_host: Option<&str>) -> Result<Place, Error> {
        let target = Target::TensorrtRtx;
        if !Gpu::is_present() {
            return Ok(Place::host(Target::Cpu));
        }
        let reason = match on_host {
            Some(reason) => Gpu::check(0, target).ok().map(|()| reason.to_owned()),
            None => match self.on_gpu(0, target) {
                Ok(place) => return Ok(place),
                Err(error) => Some(error.to_string()),
            },
        };
        let notices = reason.map(|reason| Notice::Processor { reason }).into_iter().collect();
        Ok(Place { notices, ..Place::host(Target::Cpu) })
    }

    fn on_gpu(&self, ordinal: usize, target: Target) -> Result<Place, Error> {
        let refuse = |reason: String| Err(Error::Request { key: "backend", reason });
        match (self.runner, target) {
            (Runner::Auto, _) | (Runner::OnnxRuntime, Target::Cuda) => {}
            (Runner::OnnxRuntime, _) => {
                return refuse(format!("onnxruntime does not run engines for {target}"));
            }
            (Runner::Rten, _) => return refuse("rten runs on the processor alone".into()),
        }
        let gpu = Gpu::open(ordinal, target)?;
        Ok(Place { target, gpu: Some(gpu), notices: Vec::new() })
    }
}

/// What engines of a target run on.
fn misplaced_reason(target: Target) -> String {
    let needed = match target {
        Target::Cpu => "which run on the processor",
        Target::Onnx => "from which others are built",
        _ => "which run on a GPU",
    };
    format!("the engines are for {target}, {needed}")
}

pub(super) fn misplaced(target: Target) -> Error {
    Error::Request { key: "target", reason: misplaced_reason(target) }
}
