//! What operators are by definition, in f64, and pseudo-random tensors.

use kiln_kernels::{
    Conv, ConvShape, Element, Error, Factors, Isa, Linear, Parallel, Tensors, Values, Weights, bf16,
};

/// Numbers of a linear congruential generator; about normal, of variance 1.
pub(crate) struct Numbers(pub(crate) u64);

impl Numbers {
    fn uniform(&mut self) -> f64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 11) as f64 / (1u64 << 53) as f64
    }

    pub(crate) fn normal(&mut self) -> f32 {
        let sum: f64 = (0..6).map(|_| self.uniform() - 0.5).sum();
        (sum * 2f64.sqrt()) as f32
    }

    pub(crate) fn tensor(&mut self, len: usize) -> Vec<f32> {
        (0..len).map(|_| self.normal()).collect()
    }
}

/// Instruction sets of this processor, or the one that `KILN_TEST_ISA` names.
pub(crate) fn isas() -> Vec<Isa> {
    match std::env::var("KILN_TEST_ISA") {
        Ok(name) => vec![name.parse().expect("an instruction set")],
        Err(_) => Isa::ALL.into_iter().filter(|isa| isa.is_available()).collect(),
    }
}

/// `values` as `element` keeps them.
pub(crate) fn rounded(element: Element, values: &[f32]) -> Vec<f32> {
    let bf16 = |&x: &f32| bf16::to_f32(bf16::from_f32(x));
    if element == Element::Bf16 { values.iter().map(bf16).collect() } else { values.to_vec() }
}

/// `values`, in rows of `k`, as a linear layer multiplies them.
fn factors_of(factors: Factors, values: &[f32], k: usize) -> Vec<f32> {
    let in_int8 = |row: &[f32]| {
        let largest = row.iter().fold(0f32, |largest, x| largest.max(x.abs()));
        let (scale, inverse) = (largest / 127.0, if largest > 0.0 { 127.0 / largest } else { 0.0 });
        row.iter().map(|x| scale * (x * inverse).round_ties_even()).collect::<Vec<_>>()
    };
    match factors {
        Factors::Floats(element) => rounded(element, values),
        _ => values.chunks(k).flat_map(in_int8).collect(),
    }
}

/// Tensors of a convolution or a linear layer.
pub(crate) struct Case {
    pub(crate) input: Vec<f32>,
    pub(crate) weights: Vec<f32>,
    pub(crate) bias: Option<Vec<f32>>,
    pub(crate) residual: Option<Vec<f32>>,
}

impl Case {
    pub(crate) fn of_conv(shape: &ConvShape, seed: u64, extras: bool) -> Case {
        let (input, output) = shape.lengths().expect("a shape");
        Case::new(seed, input, (shape.out_channels, shape.k().expect("a shape")), output, extras)
    }

    pub(crate) fn of_linear(linear: &Linear, seed: u64, extras: bool) -> Case {
        let weights = (linear.out_features, linear.in_features);
        Case::new(seed, linear.rows * linear.in_features, weights, linear.rows * linear.out_features, extras)
    }

    fn new(seed: u64, input: usize, (n, k): (usize, usize), output: usize, extras: bool) -> Case {
        let mut numbers = Numbers(seed);
        let scale = 1.0 / (k as f32).sqrt();
        Case {
            input: numbers.tensor(input),
            weights: numbers.tensor(n * k).into_iter().map(|x| x * scale).collect(),
            bias: extras.then(|| numbers.tensor(n)),
            residual: extras.then(|| numbers.tensor(output)),
        }
    }

    pub(crate) fn conv(
        &self,
        conv: &Conv,
        shape: &ConvShape,
        storage: Element,
        pool: &dyn Parallel,
    ) -> Vec<f32> {
        let stored = Stored::new(storage, &self.weights);
        let output = shape.lengths().expect("a shape").1;
        let scratch = conv.scratch_len(pool.lanes()).expect("a scratch");
        self.run(output, scratch, |tensors| conv.run(pool, stored.view(shape.out_channels), tensors))
    }

    pub(crate) fn linear(&self, linear: &Linear, storage: Element, pool: &dyn Parallel) -> Vec<f32> {
        let stored = Stored::new(storage, &self.weights);
        let scratch = linear.scratch_len(pool.lanes()).expect("a scratch");
        let output = linear.rows * linear.out_features;
        let n = linear.out_features * if linear.is_gated { 2 } else { 1 };
        self.run(output, scratch, |tensors| linear.run(pool, stored.view(n), tensors))
    }

    /// Scratch and output are full of NaN before, so that what is read before it is written shows.
    fn run(
        &self,
        output: usize,
        scratch: usize,
        run: impl FnOnce(Tensors<'_>) -> Result<(), Error>,
    ) -> Vec<f32> {
        let (mut output, mut scratch) = (vec![f32::NAN; output], vec![f32::NAN; scratch]);
        run(Tensors {
            input: &self.input,
            bias: self.bias.as_deref(),
            residual: self.residual.as_deref(),
            output: &mut output,
            scratch: &mut scratch,
        })
        .expect("a run");
        output
    }

    fn finish(&self, at: usize, channel: usize, sum: f64) -> f64 {
        let bias = self.bias.as_ref().map_or(0.0, |bias| bias[channel]);
        let residual = self.residual.as_ref().map_or(0.0, |residual| residual[at]);
        sum + f64::from(bias) + f64::from(residual)
    }

    /// The convolution by definition, of factors as `element` keeps them.
    pub(crate) fn conv_reference(&self, shape: &ConvShape, element: Element) -> Vec<f64> {
        let (input, weights) = (rounded(element, &self.input), rounded(element, &self.weights));
        let [height, width] = shape.output_size().expect("a shape");
        let (plane, k) = (height * width, shape.k().expect("a shape"));
        let value = |at: usize| {
            let (image, channel) = (at / plane / shape.out_channels, at / plane % shape.out_channels);
            let place = [image, at / width % height, at % width];
            let sum =
                (0..k).map(|k_at| tap(shape, &input, place, k_at) * f64::from(weights[channel * k + k_at]));
            self.finish(at, channel, sum.sum())
        };
        (0..shape.batch * shape.out_channels * plane).map(value).collect()
    }

    /// The linear layer by definition, of factors as it keeps them.
    pub(crate) fn linear_reference(&self, linear: &Linear) -> Vec<f64> {
        let (k, n) = (linear.in_features, linear.out_features);
        let [input, weights] = [&self.input, &self.weights].map(|values| factors_of(linear.factors, values, k));
        let value = |at: usize| {
            let (row, weights) = (&input[at / n * k..][..k], &weights[at % n * k..][..k]);
            let sum = row.iter().zip(weights).map(|(&x, &w)| f64::from(x) * f64::from(w)).sum();
            self.finish(at, at % n, sum)
        };
        (0..linear.rows * n).map(value).collect()
    }
}

/// The input that weight `k` of the output at `place` is multiplied with.
fn tap(shape: &ConvShape, input: &[f32], [image, y, x]: [usize; 3], k: usize) -> f64 {
    let [kernel_height, kernel_width] = shape.kernel;
    let channel = k / (kernel_height * kernel_width);
    let y = (y * shape.stride[0] + k / kernel_width % kernel_height * shape.dilation[0])
        .checked_sub(shape.padding[0]);
    let x = (x * shape.stride[1] + k % kernel_width * shape.dilation[1]).checked_sub(shape.padding[1]);
    let ConvShape { size: [height, width], upsampling, .. } = *shape;
    match (y.map(|y| y / upsampling).filter(|&y| y < height), x.map(|x| x / upsampling).filter(|&x| x < width))
    {
        (Some(y), Some(x)) => {
            f64::from(input[((image * shape.in_channels + channel) * height + y) * width + x])
        }
        _ => 0.0,
    }
}

/// Weights as a file has them.
pub(crate) enum Stored {
    F32(Vec<f32>),
    Bf16(Vec<u16>),
}

impl Stored {
    pub(crate) fn new(element: Element, weights: &[f32]) -> Stored {
        match element {
            Element::Bf16 => Stored::Bf16(weights.iter().map(|&x| bf16::from_f32(x)).collect()),
            _ => Stored::F32(weights.to_vec()),
        }
    }

    /// As `n` rows.
    pub(crate) fn view(&self, n: usize) -> Weights<'_> {
        let (values, len) = match self {
            Stored::F32(values) => (Values::F32(values), values.len()),
            Stored::Bf16(values) => (Values::Bf16(values), values.len()),
        };
        Weights::new(values, n, len / n).expect("weights")
    }
}

/// The largest error, relative to the root mean square of `expected`.
pub(crate) fn error(expected: &[f64], found: &[f32]) -> f64 {
    assert_eq!(expected.len(), found.len());
    let scale = (expected.iter().map(|x| x * x).sum::<f64>() / expected.len() as f64).sqrt();
    let errors = expected.iter().zip(found).map(|(&expected, &found)| (expected - f64::from(found)).abs());
    // A NaN is no number to compare: it counts as infinite.
    errors.map(|error| if error.is_nan() { f64::INFINITY } else { error }).fold(0.0, f64::max)
        / scale.max(1e-30)
}

/// The root mean square error, relative to that of `expected`.
pub(crate) fn root_mean_square(expected: &[f64], found: &[f32]) -> f64 {
    let squares = |values: &mut dyn Iterator<Item = f64>| values.map(|x| x * x).sum::<f64>();
    let errors =
        squares(&mut expected.iter().zip(found).map(|(&expected, &found)| expected - f64::from(found)));
    (errors / squares(&mut expected.iter().copied())).sqrt()
}
