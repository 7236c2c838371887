//! Times convolutions, linear layers and attention. Without arguments, all shapes of Stable Diffusion 1.5's UNet (512 px, batch 2)
//! and VAE decoder with every algorithm; with `serve`, what lines on stdin ask for (`benches/compare.py` does).
//!
//! ```sh
//! cargo run --release -p kiln-kernels --example bench -- [ISA] [THREADS] [FILTER]
//! ```
//!
//! GFLOP/s count the operations of the direct convolution. Each run has other weights, input and output, as in a
//! network, so that they come from memory.
#![allow(clippy::print_stdout)]

#[path = "../benches/shapes.rs"]
mod shapes;

use std::error::Error;
use std::io::BufRead;
use std::time::Instant;

use kiln_kernels::{
    Algorithm, Attention, AttentionTensors, Conv, ConvShape, Element, Factors, Isa, Linear, Parallel, Serial,
    Tensors, Threads, Values, Weights,
};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// Elements of weights, inputs or outputs: more than caches hold.
const ELEMENTS: usize = 64 << 20;

/// An operator with its tensors.
trait Case {
    /// Operations of a run.
    fn flop(&self) -> f64;

    /// Seconds of one run.
    fn time(&mut self, pool: &dyn Parallel) -> Result<f64>;
}

/// A convolution or linear layer.
struct Product {
    operator: Operator,
    weights: Several,
    sizes: (usize, usize),
    input: Several,
    bias: Vec<f32>,
    output: Several,
    scratch: Vec<f32>,
    flop: f64,
}

enum Operator {
    Conv(Conv),
    Linear(Linear),
}

fn numbers(len: usize, scale: f32) -> Vec<f32> {
    let mut state = 1u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        ((state >> 8) as f32 / (1 << 23) as f32 - 1.0) * scale
    };
    (0..len).map(|_| next()).collect()
}

/// Tensors of one length, of which each run has the next.
struct Several {
    values: Vec<f32>,
    len: usize,
    at: usize,
}

impl Several {
    fn new(len: usize, scale: f32) -> Several {
        Several { values: numbers(len * (ELEMENTS / len).max(1), scale), len, at: 0 }
    }

    fn next(&mut self) -> &mut [f32] {
        let start = self.at;
        self.at = (start + self.len) % self.values.len();
        &mut self.values[start..start + self.len]
    }
}

impl Product {
    fn conv(
        shape: ConvShape,
        algorithm: Algorithm,
        element: Element,
        isa: Isa,
        lanes: usize,
    ) -> Result<Product> {
        let conv = Conv::new(shape, algorithm, element, isa)?;
        let (input, output) = shape.lengths()?;
        let (n, k) = (shape.out_channels, shape.k()?);
        let flop = 2.0 * output as f64 * k as f64;
        Self::new(Operator::Conv(conv), (n, k), (input, output), conv.scratch_len(lanes)?, flop)
    }

    fn linear([rows, k, n]: [usize; 3], factors: Factors, isa: Isa, lanes: usize) -> Result<Product> {
        let linear = Linear { rows, in_features: k, out_features: n, is_gated: false, factors, isa };
        let flop = 2.0 * (rows * k * n) as f64;
        let lengths = (rows * k, rows * n);
        Self::new(Operator::Linear(linear), (n, k), lengths, linear.scratch_len(lanes)?, flop)
    }

    fn new(
        operator: Operator,
        (n, k): (usize, usize),
        (input, output): (usize, usize),
        scratch: usize,
        flop: f64,
    ) -> Result<Product> {
        let weights = Several::new(n * k, 0.05);
        let (input, bias) = (Several::new(input, 1.0), numbers(n, 1.0));
        let (output, scratch) = (Several::new(output, 0.0), vec![0.0; scratch]);
        Ok(Product { operator, weights, sizes: (n, k), input, bias, output, scratch, flop })
    }
}

impl Case for Product {
    fn flop(&self) -> f64 {
        self.flop
    }

    fn time(&mut self, pool: &dyn Parallel) -> Result<f64> {
        let (n, k) = self.sizes;
        let weights = Weights::new(Values::F32(self.weights.next()), n, k)?;
        let (input, output, scratch) = (self.input.next(), self.output.next(), &mut self.scratch);
        let tensors = Tensors { input, bias: Some(&self.bias), residual: None, output, scratch };
        let start = Instant::now();
        match &self.operator {
            Operator::Conv(conv) => conv.run(pool, weights, tensors)?,
            Operator::Linear(linear) => linear.run(pool, weights, tensors)?,
        }
        Ok(start.elapsed().as_secs_f64())
    }
}

/// Attention with its tensors.
struct Attended {
    attention: Attention,
    query: Several,
    key: Several,
    value: Several,
    output: Several,
    scratch: Vec<f32>,
}

impl Attended {
    fn new(attention: Attention, lanes: usize) -> Result<Attended> {
        let Attention { batch, queries, keys, heads, head_size, .. } = attention;
        let several = |rows: usize| Several::new(batch * rows * heads * head_size, 1.0);
        let [query, key, value, output] = [queries, keys, keys, queries].map(several);
        Ok(Attended { attention, query, key, value, output, scratch: vec![0.0; attention.scratch_len(lanes)?] })
    }
}

impl Case for Attended {
    fn flop(&self) -> f64 {
        let Attention { batch, queries, keys, heads, head_size, .. } = self.attention;
        4.0 * (batch * queries * keys * heads * head_size) as f64
    }

    fn time(&mut self, pool: &dyn Parallel) -> Result<f64> {
        let (query, key, value) = (self.query.next(), self.key.next(), self.value.next());
        let (output, scratch) = (self.output.next(), &mut self.scratch);
        let start = Instant::now();
        self.attention.run(pool, AttentionTensors { query, key, value, output, scratch })?;
        Ok(start.elapsed().as_secs_f64())
    }
}

fn algorithm(name: &str) -> Result<(Algorithm, Element)> {
    Ok(match name {
        "gemm" => (Algorithm::ImplicitGemm, Element::F32),
        "f2" => (Algorithm::WinogradF2, Element::F32),
        "f4" => (Algorithm::WinogradF4, Element::F32),
        "gemm-bf16" => (Algorithm::ImplicitGemm, Element::Bf16),
        "f2-bf16" => (Algorithm::WinogradF2, Element::Bf16),
        "f4-bf16" => (Algorithm::WinogradF4, Element::Bf16),
        _ => return Err(format!("no algorithm is called {name:?}").into()),
    })
}

/// `conv ALGORITHM BATCH IN HEIGHT WIDTH OUT KERNEL STRIDE`, `linear ALGORITHM ROWS IN OUT` or
/// `attention ALGORITHM BATCH QUERIES KEYS HEADS HEAD_SIZE`.
fn case(line: &str, isa: Isa, lanes: usize) -> Result<Box<dyn Case>> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let [kind, name, sizes @ ..] = words.as_slice() else {
        return Err(format!("{line:?} is no operator").into());
    };
    let sizes = sizes.iter().map(|size| size.parse()).collect::<std::result::Result<Vec<usize>, _>>()?;
    if let ("linear", "gemm-int8", &[rows, k, n]) = (*kind, *name, sizes.as_slice()) {
        return Ok(Box::new(Product::linear([rows, k, n], Factors::Int8, isa, lanes)?));
    }
    let (algorithm, element) = algorithm(name)?;
    match (*kind, sizes.as_slice()) {
        ("conv", &[batch, in_channels, height, width, out_channels, kernel, stride]) => {
            let same = ConvShape::same(batch, in_channels, [height, width], out_channels, kernel);
            let shape = ConvShape { stride: [stride; 2], ..same };
            Ok(Box::new(Product::conv(shape, algorithm, element, isa, lanes)?))
        }
        ("linear", &[rows, k, n]) => Ok(Box::new(Product::linear([rows, k, n], element.into(), isa, lanes)?)),
        ("attention", &[batch, queries, keys, heads, head_size]) => {
            let scale = 1.0 / (head_size as f32).sqrt();
            let (products, is_causal) = (element, false);
            let sizes = Attention { batch, queries, keys, heads, head_size, scale, is_causal, products, isa };
            Ok(Box::new(Attended::new(sizes, lanes)?))
        }
        _ => Err(format!("{line:?} is no operator").into()),
    }
}

/// Answers each operator with the seconds of as many runs as the first word says.
fn serve(pool: &dyn Parallel, isa: Isa) -> Result<()> {
    let mut last: Option<(String, Box<dyn Case>)> = None;
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        let (runs, operator) = line.split_once(' ').ok_or("no number of runs")?;
        if last.as_ref().is_none_or(|(of, _)| of != operator) {
            last = Some((operator.to_owned(), case(operator, isa, pool.lanes())?));
        }
        let (_, case) = last.as_mut().ok_or("no operator")?;
        let times = (0..runs.parse()?).map(|_| case.time(pool)).collect::<Result<Vec<f64>>>()?;
        println!("{}", times.iter().map(f64::to_string).collect::<Vec<_>>().join(" "));
    }
    Ok(())
}

fn report(pool: &dyn Parallel, isa: Isa, filter: &str) -> Result<()> {
    for line in shapes::ALL.lines().map(str::trim).filter(|line| line.contains(filter)) {
        let (kind, sizes) = line.split_once(' ').ok_or("no sizes")?;
        let names: &[&str] = match kind {
            "conv" if sizes.ends_with(" 3 1") => &["gemm", "f2", "f4", "gemm-bf16", "f2-bf16", "f4-bf16"],
            "linear" => &["gemm", "gemm-bf16", "gemm-int8"],
            _ => &["gemm", "gemm-bf16"],
        };
        let mut text = format!("{line:34}");
        for name in names {
            let mut case = case(&format!("{kind} {name} {sizes}"), isa, pool.lanes())?;
            let mut least = case.time(pool)?;
            for _ in 0..(0.3 / least).clamp(2.0, 20.0) as usize {
                least = least.min(case.time(pool)?);
            }
            text += &format!("  {name} {:7.2} ms {:5.0}", least * 1e3, case.flop() / least * 1e-9);
        }
        println!("{text}");
    }
    Ok(())
}

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let argument = |at: usize| arguments.get(at).map(String::as_str);
    let isa = argument(0).filter(|&isa| isa != "best").map_or(Ok(Isa::best()), str::parse)?;
    let threads: usize = argument(1).unwrap_or("2").parse()?;
    let pool: &dyn Parallel = if threads == 1 { &Serial } else { &Threads::new(threads) };
    match argument(2) {
        Some("serve") => serve(pool, isa),
        filter => report(pool, isa, filter.unwrap_or("")),
    }
}
