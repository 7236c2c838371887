use ndarray::ArrayD;

/// Threads per block of torch's kernels for random numbers.
const BLOCK: usize = 256;

/// Numbers that a thread draws at once.
const UNROLL: usize = 4;

/// `torch.Generator("cuda")`: Philox 4x32-10 (Salmon et al. 2011) and Box and Muller's transform, as in
/// `aten/src/ATen/native/cuda/DistributionTemplates.h` and cuRAND.
///
/// Every thread of the GPU is a stream of its own. Up to as many numbers as the GPU runs threads at once, each comes from its
/// own stream, and all GPUs draw the same; above, threads draw again, and numbers depend on how many there are. The smallest
/// GPUs that are in use have 12 288 threads (8 multiprocessors of 1536), a T4 40 960, an A100 221 184: the 16 384 latents of
/// a picture of 512 x 512 pixels are the same from a T4 upwards. [`TorchCudaGenerator::new`] stands for a GPU with more
/// threads than numbers; [`TorchCudaGenerator::with_threads`] for a certain one.
///
/// GPUs compute sine, cosine and logarithm in a fast approximation; numbers agree to about six digits.
#[derive(Clone, Debug)]
pub struct TorchCudaGenerator {
    seed: u64,
    /// 32-bit numbers that each stream has given (`philox_offset_per_thread`).
    offset: u64,
    /// Most blocks that run at once.
    max_blocks: usize,
}

impl TorchCudaGenerator {
    /// `torch.Generator("cuda").manual_seed(seed)` on a GPU with more threads than numbers.
    pub fn new(seed: u64) -> TorchCudaGenerator {
        TorchCudaGenerator { seed, offset: 0, max_blocks: usize::MAX / BLOCK / UNROLL }
    }

    /// The same on a GPU that runs `threads` threads at once: its multiprocessors times the threads of each.
    pub fn with_threads(seed: u64, threads: usize) -> TorchCudaGenerator {
        let most = TorchCudaGenerator::new(seed);
        TorchCudaGenerator { max_blocks: (threads / BLOCK).clamp(1, most.max_blocks), ..most }
    }

    /// `torch.randn(shape, device="cuda", generator=self)`.
    pub fn randn(&mut self, shape: &[usize]) -> ArrayD<f32> {
        let n: usize = shape.iter().product();
        let mut data = vec![0.0; n];
        if n > 0 {
            let threads = self.max_blocks.min(n.div_ceil(BLOCK)) * BLOCK;
            for (round, rows) in data.chunks_mut(threads * UNROLL).enumerate() {
                let counter = self.offset / UNROLL as u64 + round as u64;
                for thread in 0..threads.min(rows.len()) {
                    let normals = self.normals(counter, thread as u64);
                    let column = rows.iter_mut().skip(thread).step_by(threads);
                    column.zip(normals).for_each(|(value, normal)| *value = normal);
                }
            }
            let rounds = n.div_ceil(threads * UNROLL);
            self.offset = self.offset.wrapping_add((rounds * UNROLL) as u64);
        }
        ArrayD::from_shape_vec(shape, data).expect("as many elements as the shape says")
    }

    /// `curand_normal4`.
    fn normals(&self, counter: u64, stream: u64) -> [f32; UNROLL] {
        let (low, high) = (|x: u64| x as u32, |x: u64| (x >> 32) as u32);
        let [a, b, c, d] =
            philox([low(counter), high(counter), low(stream), high(stream)], [low(self.seed), high(self.seed)]);
        let (first, second) = (box_muller(a, b), box_muller(c, d));
        [first[0], first[1], second[0], second[1]]
    }
}

/// Ten rounds of Philox 4x32.
fn philox(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    const MULTIPLIERS: [u64; 2] = [0xd251_1f53, 0xcd9e_8d57];
    const WEYL: [u32; 2] = [0x9e37_79b9, 0xbb67_ae85];
    for _ in 0..10 {
        let [a, b, c, d] = counter;
        let (left, right) = (MULTIPLIERS[0] * u64::from(a), MULTIPLIERS[1] * u64::from(c));
        counter =
            [(right >> 32) as u32 ^ b ^ key[0], right as u32, (left >> 32) as u32 ^ d ^ key[1], left as u32];
        key = [key[0].wrapping_add(WEYL[0]), key[1].wrapping_add(WEYL[1])];
    }
    counter
}

/// `_curand_box_muller`.
fn box_muller(x: u32, y: u32) -> [f32; 2] {
    const TO_UNIT: f32 = 2.328_306_4e-10;
    const TO_ANGLE: f32 = TO_UNIT * 2.0 * std::f32::consts::PI;
    let u = (x as f32).mul_add(TO_UNIT, TO_UNIT / 2.0);
    let v = (y as f32).mul_add(TO_ANGLE, TO_ANGLE / 2.0);
    let radius = (-2.0 * u.ln()).sqrt();
    [radius * v.sin(), radius * v.cos()]
}
