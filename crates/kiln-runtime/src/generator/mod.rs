//! torch's random numbers.

mod cpu;
mod cuda;

use ndarray::ArrayD;

pub use cpu::TorchCpuGenerator;
pub use cuda::TorchCudaGenerator;

/// On which device torch would draw.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
pub enum GeneratorKind {
    /// `torch.Generator("cpu")`, a Mersenne Twister: the same numbers on every machine.
    #[default]
    Cpu,
    /// `torch.Generator("cuda")`, Philox.
    Cuda,
}

/// `torch.Generator(device).manual_seed(seed)`.
#[derive(Clone, Debug)]
pub enum Generator {
    /// That of the CPU.
    Cpu(TorchCpuGenerator),
    /// That of NVIDIA GPUs.
    Cuda(TorchCudaGenerator),
}

impl Generator {
    /// The generator of a device with a seed.
    pub fn new(kind: GeneratorKind, seed: u64) -> Generator {
        match kind {
            GeneratorKind::Cpu => Generator::Cpu(TorchCpuGenerator::new(seed)),
            GeneratorKind::Cuda => Generator::Cuda(TorchCudaGenerator::new(seed)),
        }
    }

    /// `torch.randn(shape, generator=self)` in single precision.
    pub fn randn(&mut self, shape: &[usize]) -> ArrayD<f32> {
        match self {
            Generator::Cpu(generator) => generator.randn(shape),
            Generator::Cuda(generator) => generator.randn(shape),
        }
    }
}
