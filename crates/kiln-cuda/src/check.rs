//! Whether a device does what it should, and how fast it copies.

use std::sync::Arc;
use std::time::Instant;

use crate::{CudaError, Device, DeviceMemory, Term};

/// What [`Device::check`] found.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Check {
    /// Bytes a second from pageable memory of the host.
    pub from_pageable: f64,
    /// Bytes a second from pinned memory of the host.
    pub from_pinned: f64,
    /// Bytes a second to memory of the host.
    pub to_host: f64,
    /// Seconds from asking for the smallest piece of work to its end.
    pub latency_seconds: f64,
    /// Largest difference of a kernel's result from that of the host, relative above 1.
    pub kernel_error: f64,
}

impl Check {
    /// Largest [`Check::kernel_error`] that rounding explains.
    pub const TOLERANCE: f64 = 1e-5;
}

const N_BYTES: usize = 256 << 20;
const N_FLOATS: usize = 1 << 16;
const N_TERMS: usize = 40;
const N_LAUNCHES: usize = 100;

impl Device {
    /// Copies and computes, and compares with what the host makes of the same numbers. Takes about a second, and 256 MiB
    /// of the device's and of the host's memory.
    pub fn check(self: &Arc<Device>) -> Result<Check, CudaError> {
        let memory = self.allocate(N_BYTES)?;
        let mut bytes: Vec<u8> = (0..N_BYTES).map(|i| i as u8).collect();
        let from_pageable = self.rate(|| self.write(&memory, &bytes))?;
        let to_host = self.rate(|| self.read(&memory, &mut bytes))?;
        let mut pinned = self.pin(N_BYTES)?;
        pinned.bytes_mut()?.copy_from_slice(&bytes);
        let from_pinned = self.rate(|| self.write_pinned(&memory, &pinned))?;
        let flag = self.upload(&[0; 4])?;
        let start = Instant::now();
        for _ in 0..N_LAUNCHES {
            self.find_not_finite(&memory, &flag, 1)?;
            self.synchronize()?;
        }
        let latency_seconds = start.elapsed().as_secs_f64() / N_LAUNCHES as f64;
        let kernel_error = self.sum_error()?.max(self.guidance_error()?);
        Ok(Check { from_pageable, from_pinned, to_host, latency_seconds, kernel_error })
    }

    /// Bytes a second of the second of two copies; the first finds pages untouched.
    fn rate(&self, mut copy: impl FnMut() -> Result<(), CudaError>) -> Result<f64, CudaError> {
        copy()?;
        self.synchronize()?;
        let start = Instant::now();
        copy()?;
        self.synchronize()?;
        Ok(N_BYTES as f64 / start.elapsed().as_secs_f64().max(f64::MIN_POSITIVE))
    }

    fn sum_error(self: &Arc<Device>) -> Result<f64, CudaError> {
        let factor = |k: usize| 0.5 - 0.1 * k as f64;
        let values: Vec<Vec<f32>> = (0..N_TERMS).map(|k| numbers(k, N_FLOATS)).collect();
        let memories: Vec<DeviceMemory> =
            values.iter().map(|values| self.upload_floats(values)).collect::<Result<_, _>>()?;
        let terms = memories.iter().enumerate().map(|(k, values)| Term { factor: factor(k), values });
        let out = self.allocate(4 * N_FLOATS)?;
        self.combine(&out, &terms.collect::<Vec<_>>(), N_FLOATS)?;
        let expected = |i: usize| (0..N_TERMS).map(|k| factor(k) * f64::from(values[k][i])).sum();
        self.difference(&out, N_FLOATS, expected)
    }

    fn guidance_error(self: &Arc<Device>) -> Result<f64, CudaError> {
        const SCALE: f32 = 7.5;
        let prediction = numbers(1, 2 * N_FLOATS);
        let (memory, out) = (self.upload_floats(&prediction)?, self.allocate(4 * N_FLOATS)?);
        self.guide(&out, &memory, SCALE, N_FLOATS)?;
        let (without, with) = prediction.split_at(N_FLOATS);
        let expected = |i: usize| f64::from(without[i]) + f64::from(SCALE) * f64::from(with[i] - without[i]);
        self.difference(&out, N_FLOATS, expected)
    }

    fn upload_floats(self: &Arc<Device>, values: &[f32]) -> Result<DeviceMemory, CudaError> {
        self.upload(&values.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>())
    }

    /// Largest difference of floats from what is expected of each, relative above 1.
    fn difference(
        &self,
        memory: &DeviceMemory,
        n: usize,
        expected: impl Fn(usize) -> f64,
    ) -> Result<f64, CudaError> {
        let mut bytes = vec![0; 4 * n];
        self.read(memory, &mut bytes)?;
        let found = bytes.as_chunks().0.iter().map(|bytes| f64::from(f32::from_le_bytes(*bytes)));
        let apart = |(i, found): (usize, f64)| {
            let expected = expected(i);
            let error = (found - expected).abs() / expected.abs().max(1.0);
            if error.is_nan() { f64::INFINITY } else { error }
        };
        Ok(found.enumerate().map(apart).fold(0.0, f64::max))
    }
}

/// Numbers from -1 to 1 that look random.
fn numbers(seed: usize, n: usize) -> Vec<f32> {
    let at = |i: usize| ((i * 7919 + seed * 104_729) % 20_011) as f32 / 10_005.0 - 1.0;
    (0..n).map(at).collect()
}
