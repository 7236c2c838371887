//! What the denoising loop computes between two runs of the UNet.

use std::sync::Arc;

use cudarc::driver::{CudaContext, CudaFunction, DeviceRepr, LaunchConfig, PushKernelArg};
use cudarc::nvrtc::Ptx;

use crate::{CudaError, CudaErrorKind, Device, DeviceMemory};

/// `MOST_TERMS` of `kernels.cu`.
const MOST_TERMS: usize = 32;

/// Threads that sum up one row.
const PARTS: usize = 256;

const BLOCK: u32 = 256;

/// Blocks after which threads take several elements each.
const MOST_BLOCKS: u32 = 4096;

#[derive(Debug)]
pub(crate) struct Kernels {
    combine: CudaFunction,
    guide: CudaFunction,
    find_not_finite: CudaFunction,
    sum_squares: CudaFunction,
    rescale_spread: CudaFunction,
}

impl Kernels {
    pub(crate) fn load(context: &Arc<CudaContext>) -> Result<Kernels, CudaError> {
        let refuse = |e| CudaError::of_driver("the kernels cannot be loaded", e);
        let module = context.load_module(Ptx::from_src(include_str!("kernels.ptx"))).map_err(refuse)?;
        let function = |name: &str| module.load_function(name).map_err(refuse);
        Ok(Kernels {
            combine: function("combine")?,
            guide: function("guide")?,
            find_not_finite: function("find_not_finite")?,
            sum_squares: function("sum_squares")?,
            rescale_spread: function("rescale_spread")?,
        })
    }
}

/// Part of a sum: memory of 32-bit floats, and what they are multiplied by.
#[derive(Clone, Copy, Debug)]
pub struct Term<'a> {
    /// The factor.
    pub factor: f64,
    /// The floats.
    pub values: &'a DeviceMemory,
}

/// `Terms` of `kernels.cu`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Terms {
    values: [u64; MOST_TERMS],
    factors: [f64; MOST_TERMS],
    count: u64,
}

// SAFETY: the layout is that of `kernels.cu`, and all its bit patterns are valid.
unsafe impl DeviceRepr for Terms {}

impl Device {
    /// Writes the sum of `n` floats each times their factors; `out` may be one of the terms.
    pub fn combine(&self, out: &DeviceMemory, terms: &[Term<'_>], n: usize) -> Result<(), CudaError> {
        self.check_floats(out, n)?;
        terms.iter().try_for_each(|term| self.check_floats(term.values, n))?;
        // What is written first may not be read later.
        let (own, others): (Vec<Term<'_>>, Vec<Term<'_>>) =
            terms.iter().partition(|term| term.values.address() == out.address());
        let terms: Vec<Term<'_>> = own.into_iter().chain(others).collect();
        let mut parts: Vec<&[Term<'_>]> = terms.chunks(MOST_TERMS).collect();
        if parts.is_empty() {
            parts.push(&[]);
        }
        for (i, part) in parts.into_iter().enumerate() {
            let mut passed =
                Terms { values: [0; MOST_TERMS], factors: [0.0; MOST_TERMS], count: part.len() as u64 };
            for (k, term) in part.iter().enumerate() {
                passed.values[k] = term.values.address();
                passed.factors[k] = term.factor;
            }
            let (out, add, n) = (out.address(), u64::from(i > 0), n as u64);
            let mut launch = self.stream().launch_builder(&self.kernels.combine);
            launch.arg(&out).arg(&passed).arg(&add).arg(&n);
            // SAFETY: the arguments are those of `kernels.cu`, and the memory is as long as they say.
            self.launched(unsafe { launch.launch(over(n)) })?;
        }
        Ok(())
    }

    /// Classifier-free guidance (Ho, Salimans 2022): `out` gets `n` floats from twice as many, the unconditional first.
    pub fn guide(
        &self,
        out: &DeviceMemory,
        prediction: &DeviceMemory,
        scale: f32,
        n: usize,
    ) -> Result<(), CudaError> {
        self.check_floats(out, n)?;
        self.check_floats(prediction, n.saturating_mul(2))?;
        let (out, prediction, n) = (out.address(), prediction.address(), n as u64);
        let mut launch = self.stream().launch_builder(&self.kernels.guide);
        launch.arg(&out).arg(&prediction).arg(&scale).arg(&n);
        // SAFETY: as in `combine`.
        self.launched(unsafe { launch.launch(over(n)) })
    }

    /// Draws the spread of each of `rows` rows of `guided`, of `n` floats, back to that of the text's prediction, which is
    /// the second half of `prediction`, by a share (Lin et al. 2023, section 3.4).
    pub fn rescale_spread(
        self: &Arc<Device>,
        guided: &DeviceMemory,
        prediction: &DeviceMemory,
        rescale: f32,
        [rows, n]: [usize; 2],
    ) -> Result<(), CudaError> {
        let total = rows.saturating_mul(n);
        self.check_floats(guided, total)?;
        self.check_floats(prediction, total.saturating_mul(2))?;
        let sums = self.allocate(rows.saturating_mul(PARTS * 4 * size_of::<f64>()))?;
        let text = prediction.address() + (total * size_of::<f32>()) as u64;
        let (guided, sums_at) = (guided.address(), sums.address());
        let (rows, parts, n) = (rows as u64, PARTS as u64, n as u64);
        let mut launch = self.stream().launch_builder(&self.kernels.sum_squares);
        launch.arg(&text).arg(&guided).arg(&sums_at).arg(&rows).arg(&parts).arg(&n);
        // SAFETY: as in `combine`.
        self.launched(unsafe { launch.launch(over(rows * parts)) })?;
        let mut launch = self.stream().launch_builder(&self.kernels.rescale_spread);
        launch.arg(&guided).arg(&sums_at).arg(&rescale).arg(&rows).arg(&parts).arg(&n);
        // SAFETY: as in `combine`; the sums are freed in the order of the stream.
        self.launched(unsafe { launch.launch(over(rows * n)) })
    }

    /// Sets the 32-bit number in `found` to 1 where one of `n` floats is infinite or not a number.
    pub fn find_not_finite(
        &self,
        values: &DeviceMemory,
        found: &DeviceMemory,
        n: usize,
    ) -> Result<(), CudaError> {
        self.check_floats(values, n)?;
        self.check_room(found, size_of::<u32>())?;
        let (values, found, n) = (values.address(), found.address(), n as u64);
        let mut launch = self.stream().launch_builder(&self.kernels.find_not_finite);
        launch.arg(&values).arg(&found).arg(&n);
        // SAFETY: as in `combine`.
        self.launched(unsafe { launch.launch(over(n)) })
    }

    fn check_floats(&self, memory: &DeviceMemory, n: usize) -> Result<(), CudaError> {
        let n_bytes = n
            .checked_mul(size_of::<f32>())
            .ok_or_else(|| CudaError::new(CudaErrorKind::Other, format!("{n} floats are too many")))?;
        self.check_room(memory, n_bytes)
    }

    fn launched<T>(&self, launched: Result<T, cudarc::driver::DriverError>) -> Result<(), CudaError> {
        launched.map(drop).map_err(|e| self.error("computing", e))
    }
}

/// A thread per element, up to a limit.
fn over(n: u64) -> LaunchConfig {
    let blocks = n.div_ceil(u64::from(BLOCK)).clamp(1, u64::from(MOST_BLOCKS));
    LaunchConfig { grid_dim: (blocks as u32, 1, 1), block_dim: (BLOCK, 1, 1), shared_mem_bytes: 0 }
}
