use ndarray::ArrayD;

/// `torch.Generator("cpu")`: a Mersenne Twister and torch's two ways of turning it into normal numbers.
///
/// Tensors of 16 elements and more are drawn in single precision by blocks of sixteen with the vectorised approximations
/// of `avx_mathfun.h`; smaller ones in double precision, element by element
/// (torch `aten/src/ATen/native/cpu/DistributionTemplates.h`, `ATen/core/DistributionsHelper.h`).
#[derive(Clone, Debug)]
pub struct TorchCpuGenerator {
    engine: MersenneTwister,
    cached: Option<f64>,
}

impl TorchCpuGenerator {
    /// `torch.Generator("cpu").manual_seed(seed)`.
    pub fn new(seed: u64) -> TorchCpuGenerator {
        TorchCpuGenerator { engine: MersenneTwister::new(seed as u32), cached: None }
    }

    /// `torch.randn(shape, generator=self)`.
    pub fn randn(&mut self, shape: &[usize]) -> ArrayD<f32> {
        let n: usize = shape.iter().product();
        let mut data = vec![0.0; n];
        match n {
            0..16 => data.iter_mut().for_each(|value| *value = self.normal() as f32),
            _ => self.fill(&mut data),
        }
        ArrayD::from_shape_vec(shape, data).expect("as many elements as the shape says")
    }

    fn fill(&mut self, data: &mut [f32]) {
        data.iter_mut().for_each(|value| *value = self.uniform24());
        let (blocks, rest) = data.as_chunks_mut::<16>();
        blocks.iter_mut().for_each(box_muller);
        if !rest.is_empty() {
            let start = data.len() - 16;
            data[start..].iter_mut().for_each(|value| *value = self.uniform24());
            data[start..].as_chunks_mut::<16>().0.iter_mut().for_each(box_muller);
        }
    }

    fn uniform24(&mut self) -> f32 {
        (self.engine.next() & 0x00ff_ffff) as f32 / (1 << 24) as f32
    }

    fn uniform53(&mut self) -> f64 {
        let bits = u64::from(self.engine.next()) << 32 | u64::from(self.engine.next());
        (bits & ((1 << 53) - 1)) as f64 / (1u64 << 53) as f64
    }

    fn normal(&mut self) -> f64 {
        if let Some(value) = self.cached.take() {
            return value;
        }
        let (u1, u2) = (self.uniform53(), self.uniform53());
        let radius = (-2.0 * (-u2).ln_1p()).sqrt();
        let theta = 2.0 * std::f64::consts::PI * u1;
        self.cached = Some(radius * theta.sin());
        radius * theta.cos()
    }
}

/// Sixteen uniform numbers to sixteen normal ones: the first eight give radii, the last eight angles.
fn box_muller(block: &mut [f32; 16]) {
    for i in 0..8 {
        let radius = (-2.0 * log(1.0 - block[i])).sqrt();
        let (sin, cos) = sin_cos(2.0 * std::f32::consts::PI * block[i + 8]);
        block[i] = radius * cos;
        block[i + 8] = radius * sin;
    }
}

/// `log256_ps`.
fn log(x: f32) -> f32 {
    const P: [f32; 9] = [
        7.037_683_6e-2,
        -1.151_461e-1,
        1.167_699_84e-1,
        -1.242_014_1e-1,
        1.424_932_3e-1,
        -1.666_805_8e-1,
        2.000_071_4e-1,
        -2.499_999_4e-1,
        3.333_333e-1,
    ];
    let bits = x.max(f32::MIN_POSITIVE).to_bits();
    let mut e = ((bits >> 23) as i32 - 0x7f) as f32 + 1.0;
    let mut x = f32::from_bits(bits & !0x7f80_0000 | 0.5f32.to_bits());
    if x < std::f32::consts::FRAC_1_SQRT_2 {
        e -= 1.0;
        x = x - 1.0 + x;
    } else {
        x -= 1.0;
    }
    let z = x * x;
    let mut y = P[0];
    for p in &P[1..] {
        y = y.mul_add(x, *p);
    }
    y = (y * x).mul_add(z, e * -2.121_944_4e-4);
    y = z.mul_add(-0.5, y);
    e.mul_add(0.693_359_4, x + y)
}

/// `sincos256_ps`.
fn sin_cos(x: f32) -> (f32, f32) {
    let octant = ((x * 1.273_239_5) as i32 + 1) & !1;
    let y = octant as f32;
    let x = y.mul_add(-3.774_895e-8, y.mul_add(-2.418_756_5e-4, y.mul_add(-0.785_156_25, x)));
    let z = x * x;

    let cos = 2.443_315_7e-5f32.mul_add(z, -1.388_731_6e-3).mul_add(z, 4.166_664_6e-2) * z;
    let cos = cos.mul_add(z, -(z * 0.5)) + 1.0;
    let sin = (-1.951_529_6e-4f32).mul_add(z, 8.332_161e-3).mul_add(z, -1.666_665_5e-1) * z;
    let sin = sin.mul_add(x, x);

    let (sin, cos) = if octant & 2 == 0 { (sin, cos) } else { (cos, sin) };
    let negative_sin = octant & 4 != 0;
    let negative_cos = (octant - 2) & 4 == 0;
    (if negative_sin { -sin } else { sin }, if negative_cos { -cos } else { cos })
}

const N: usize = 624;

/// MT19937 (Matsumoto, Nishimura 1998).
#[derive(Clone, Debug)]
struct MersenneTwister {
    state: Box<[u32; N]>,
    next: usize,
}

impl MersenneTwister {
    fn new(seed: u32) -> MersenneTwister {
        let mut state = Box::new([seed; N]);
        for i in 1..N {
            let previous = state[i - 1];
            state[i] = 1_812_433_253u32.wrapping_mul(previous ^ previous >> 30).wrapping_add(i as u32);
        }
        MersenneTwister { state, next: N }
    }

    fn next(&mut self) -> u32 {
        if self.next == N {
            self.twist();
        }
        let mut y = self.state[self.next];
        self.next += 1;
        y ^= y >> 11;
        y ^= y << 7 & 0x9d2c_5680;
        y ^= y << 15 & 0xefc6_0000;
        y ^ y >> 18
    }

    fn twist(&mut self) {
        for i in 0..N {
            let y = self.state[i] & 0x8000_0000 | self.state[(i + 1) % N] & 0x7fff_ffff;
            let odd = if y & 1 == 0 { 0 } else { 0x9908_b0df };
            self.state[i] = self.state[(i + 397) % N] ^ y >> 1 ^ odd;
        }
        self.next = 0;
    }
}
