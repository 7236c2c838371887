use std::cell::Cell;
use std::rc::Rc;

use crate::dim::n_elements;
use crate::{Dim, ElementType, PrecisionPolicy, Shape};

/// Whether a tensor holds real numbers, whose precision the emission policy decides, or 64-bit integers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Real numbers.
    Float,
    /// 64-bit integers.
    Int,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unary {
    Silu,
    QuickGelu,
    Gelu,
    Relu,
    Tanh,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Binary {
    Add,
    Mul,
    Div,
}

#[derive(Clone, Debug)]
pub(crate) enum Op {
    Input { name: String },
    Weight { name: String },
    Constant(Vec<f32>),
    Unary(Unary),
    Binary(Binary),
    Conv2d { stride: u64, padding: [u64; 4] },
    Linear,
    Embedding,
    PickEnd { end: Option<i64> },
    Sinusoid { frequencies: Vec<f32>, cosine_first: bool },
    GroupNorm { groups: u64, epsilon: f32 },
    LayerNorm { epsilon: f32 },
    Attention { heads: u64, scale: f32, causal: bool, upcast: bool },
    Reshape,
    Transpose { perm: Vec<usize> },
    Concat { axis: usize },
    Slice { axis: usize, start: u64, end: u64 },
    PadEnd { axis: usize, n: u64 },
    ResizeNearest,
    Cut { name: String },
}

pub(crate) struct Node {
    pub(crate) id: u64,
    pub(crate) op: Op,
    pub(crate) inputs: Vec<Tensor>,
    pub(crate) shape: Shape,
    pub(crate) kind: Kind,
    pub(crate) scope: Rc<str>,
}

/// A symbolic tensor: an operator, the tensors it reads and the shape of what it makes.
///
/// Cloning is cheap and shares the node. Operators panic only where the calling network contradicts itself about
/// shapes; what a checkpoint or a configuration says was checked when its weights were looked up.
#[derive(Clone)]
pub struct Tensor(pub(crate) Rc<Node>);

thread_local! {
    static NEXT_ID: Cell<u64> = const { Cell::new(0) };
}

impl Tensor {
    fn node(op: Op, inputs: Vec<Tensor>, shape: Shape, kind: Kind) -> Tensor {
        let scope = inputs
            .iter()
            .find(|t| matches!(t.0.op, Op::Weight { .. }))
            .or(inputs.first())
            .map_or_else(|| Rc::from(""), |t| t.0.scope.clone());
        Tensor::scoped(op, inputs, shape, kind, scope)
    }

    fn scoped(op: Op, inputs: Vec<Tensor>, shape: Shape, kind: Kind, scope: Rc<str>) -> Tensor {
        let id = NEXT_ID.with(|next| next.replace(next.get() + 1));
        Tensor(Rc::new(Node { id, op, inputs, shape, kind, scope }))
    }

    fn map(&self, op: Op, shape: Shape) -> Tensor {
        Tensor::node(op, vec![self.clone()], shape, self.0.kind)
    }

    /// A real-valued input of the network.
    pub fn input<D: Into<Dim>>(name: &str, shape: impl IntoIterator<Item = D>) -> Tensor {
        Tensor::input_of(name, shape, Kind::Float)
    }

    /// An integer input of the network, such as token ids.
    pub fn int_input<D: Into<Dim>>(name: &str, shape: impl IntoIterator<Item = D>) -> Tensor {
        Tensor::input_of(name, shape, Kind::Int)
    }

    fn input_of<D: Into<Dim>>(name: &str, shape: impl IntoIterator<Item = D>, kind: Kind) -> Tensor {
        let shape = shape.into_iter().map(Into::into).collect();
        Tensor::node(Op::Input { name: name.into() }, Vec::new(), shape, kind)
    }

    pub(crate) fn weight(name: &str, shape: &[u64]) -> Tensor {
        let scope = name.rsplit_once('.').map_or("", |(scope, _)| scope);
        let shape = shape.iter().map(|&n| Dim::from(n)).collect();
        Tensor::scoped(Op::Weight { name: name.into() }, Vec::new(), shape, Kind::Float, Rc::from(scope))
    }

    /// A constant of the given shape.
    pub fn constant(values: Vec<f32>, shape: &[u64]) -> Tensor {
        assert_eq!(values.len() as u64, shape.iter().product::<u64>(), "constant of shape {shape:?}");
        let shape = shape.iter().map(|&n| Dim::from(n)).collect();
        Tensor::node(Op::Constant(values), Vec::new(), shape, Kind::Float)
    }

    /// The shape.
    pub fn shape(&self) -> &[Dim] {
        &self.0.shape
    }

    /// The shape as `N` axes, which is also the check that there are `N`.
    pub fn dims<const N: usize>(&self) -> [Dim; N] {
        <[Dim; N]>::try_from(self.0.shape.clone())
            .unwrap_or_else(|shape| panic!("{}: expected {N} axes, found {shape:?}", self.0.scope))
    }

    /// The tensor itself, behind any cut points.
    pub(crate) fn resolved(&self) -> Tensor {
        let mut tensor = self;
        while let Op::Cut { .. } = tensor.0.op {
            tensor = &tensor.0.inputs[0];
        }
        tensor.clone()
    }

    /// Whether it exists without being computed.
    pub(crate) fn is_leaf(&self) -> bool {
        matches!(self.0.op, Op::Input { .. } | Op::Weight { .. } | Op::Constant(_))
    }

    /// The type that the policy computes it in; operators that only move data keep the type of what they move.
    pub(crate) fn dtype(&self, precision: &PrecisionPolicy) -> ElementType {
        let mut tensor = self;
        loop {
            let node = &tensor.0;
            return match &node.op {
                _ if node.kind == Kind::Int => ElementType::I64,
                Op::Input { .. } | Op::Sinusoid { .. } => ElementType::F32,
                Op::Reshape
                | Op::Transpose { .. }
                | Op::Concat { .. }
                | Op::Slice { .. }
                | Op::PadEnd { .. }
                | Op::ResizeNearest
                | Op::Cut { .. } => {
                    tensor = &node.inputs[0];
                    continue;
                }
                Op::GroupNorm { .. } | Op::LayerNorm { .. } => match precision.in_scope(&node.scope) {
                    ElementType::F32 => ElementType::F32,
                    _ => precision.norms,
                },
                _ => precision.in_scope(&node.scope),
            };
        }
    }

    /// What kind of numbers it holds.
    pub fn kind(&self) -> Kind {
        self.0.kind
    }

    fn unary(&self, op: Unary) -> Tensor {
        self.map(Op::Unary(op), self.0.shape.clone())
    }

    /// `x * sigmoid(x)`.
    #[must_use]
    pub fn silu(&self) -> Tensor {
        self.unary(Unary::Silu)
    }

    /// `x * sigmoid(1.702 x)`, CLIP's approximation of GELU.
    #[must_use]
    pub fn quick_gelu(&self) -> Tensor {
        self.unary(Unary::QuickGelu)
    }

    /// GELU by the error function.
    #[must_use]
    pub fn gelu(&self) -> Tensor {
        self.unary(Unary::Gelu)
    }

    /// The positive part.
    #[must_use]
    pub fn relu(&self) -> Tensor {
        self.unary(Unary::Relu)
    }

    /// Hyperbolic tangent.
    #[must_use]
    pub fn tanh(&self) -> Tensor {
        self.unary(Unary::Tanh)
    }

    /// Sines and cosines of `[N, 1]` numbers at `F` frequencies: `[N, 2F]`, in f32 whatever the policy computes in.
    #[must_use]
    pub fn sinusoid(&self, frequencies: Vec<f32>, cosine_first: bool) -> Tensor {
        let [n, _] = self.dims();
        let shape = vec![n, Dim::from(2 * frequencies.len() as u64)];
        self.map(Op::Sinusoid { frequencies, cosine_first }, shape)
    }

    fn binary(&self, op: Binary, other: &Tensor) -> Tensor {
        let shape = broadcast(&self.0.shape, &other.0.shape)
            .unwrap_or_else(|| panic!("{}: {:?} against {:?}", self.0.scope, self.0.shape, other.0.shape));
        Tensor::node(Op::Binary(op), vec![self.clone(), other.clone()], shape, Kind::Float)
    }

    /// Sum, broadcasting.
    #[must_use]
    pub fn add(&self, other: &Tensor) -> Tensor {
        self.binary(Binary::Add, other)
    }

    /// Product, broadcasting.
    #[must_use]
    pub fn mul(&self, other: &Tensor) -> Tensor {
        self.binary(Binary::Mul, other)
    }

    /// `factor * self + offset`.
    #[must_use]
    pub fn affine(&self, factor: f32, offset: f32) -> Tensor {
        let scaled = if factor == 1.0 { self.clone() } else { self.mul(&Tensor::constant(vec![factor], &[1])) };
        if offset == 0.0 { scaled } else { scaled.add(&Tensor::constant(vec![offset], &[1])) }
    }

    /// Divides by a number.
    #[must_use]
    pub fn divided_by(&self, divisor: f32) -> Tensor {
        if divisor == 1.0 {
            return self.clone();
        }
        self.binary(Binary::Div, &Tensor::constant(vec![divisor], &[1]))
    }

    /// 2-D convolution of `[B, C, H, W]` by `weight` `[O, C, K, K]`; `padding` is top, left, bottom, right.
    #[must_use]
    pub fn conv2d(&self, weight: &Tensor, bias: Option<&Tensor>, stride: u64, padding: [u64; 4]) -> Tensor {
        let [b, _, h, w] = self.dims();
        let [o, _, kh, kw] = weight.dims();
        let [top, left, bottom, right] = padding;
        let size = |axis: Dim, kernel: Dim, padding| {
            axis.after_conv(kernel.fixed().unwrap_or(1), stride, padding)
                .unwrap_or_else(|| panic!("{}: {axis} by a kernel of {kernel}", weight.0.scope))
        };
        let shape = vec![b, o, size(h, kh, top + bottom), size(w, kw, left + right)];
        let inputs = [self, weight].into_iter().chain(bias).cloned().collect();
        Tensor::node(Op::Conv2d { stride, padding }, inputs, shape, Kind::Float)
    }

    /// `x W^T + b` over the last axis; `weight` is `[out, in]`.
    #[must_use]
    pub fn linear(&self, weight: &Tensor, bias: Option<&Tensor>) -> Tensor {
        let [out, _] = weight.dims();
        let mut shape = self.0.shape.clone();
        *shape.last_mut().expect("linear of a scalar") = out;
        let inputs = [self, weight].into_iter().chain(bias).cloned().collect();
        Tensor::node(Op::Linear, inputs, shape, Kind::Float)
    }

    /// Rows of `table` `[vocabulary, width]` picked by `self`, a tensor of ids.
    #[must_use]
    pub fn embedding(&self, table: &Tensor) -> Tensor {
        let [_, width] = table.dims();
        let mut shape = self.0.shape.clone();
        shape.push(width);
        Tensor::node(Op::Embedding, vec![table.clone(), self.clone()], shape, Kind::Float)
    }

    /// Rows of `table` as by [`Tensor::embedding`], except that ids beyond the table take their row from `learned`
    /// `[B, N, width]` (textual inversion).
    #[must_use]
    pub fn embedding_or(&self, table: &Tensor, learned: &Tensor) -> Tensor {
        let inputs = vec![table.clone(), self.clone(), learned.clone()];
        Tensor::node(Op::Embedding, inputs, learned.0.shape.clone(), Kind::Float)
    }

    /// The row of each sequence `[B, N, width]` where the tokens `ids` `[B, N]` end: at the first `end`, or, without
    /// one, at the first of the largest ids.
    #[must_use]
    pub fn pick_end(&self, ids: &Tensor, end: Option<i64>) -> Tensor {
        let [b, _, width] = self.dims();
        Tensor::node(Op::PickEnd { end }, vec![self.clone(), ids.clone()], vec![b, width], Kind::Float)
    }

    /// Group normalisation of `[B, C, H, W]` with per-channel `weight` and `bias`.
    #[must_use]
    pub fn group_norm(&self, groups: u64, weight: &Tensor, bias: &Tensor, epsilon: f32) -> Tensor {
        let inputs = vec![self.clone(), weight.clone(), bias.clone()];
        Tensor::node(Op::GroupNorm { groups, epsilon }, inputs, self.0.shape.clone(), Kind::Float)
    }

    /// Layer normalisation over the last axis.
    #[must_use]
    pub fn layer_norm(&self, weight: &Tensor, bias: &Tensor, epsilon: f32) -> Tensor {
        let inputs = vec![self.clone(), weight.clone(), bias.clone()];
        Tensor::node(Op::LayerNorm { epsilon }, inputs, self.0.shape.clone(), Kind::Float)
    }

    /// Multi-head attention: `softmax(scale q k^T) v` per head.
    ///
    /// Query is `[B, N, heads * D]`, key and value `[B, M, heads * D]`; the result is `[B, N, heads * D]`. `causal` hides
    /// later positions; `upcast` asks for f32 scores whatever the policy computes in.
    #[must_use]
    pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, options: Attention) -> Tensor {
        let Attention { heads, scale, causal, upcast } = options;
        let inputs = vec![q.clone(), k.clone(), v.clone()];
        Tensor::node(Op::Attention { heads, scale, causal, upcast }, inputs, q.0.shape.clone(), Kind::Float)
    }

    /// The same elements under another shape.
    #[must_use]
    pub fn reshape(&self, shape: Shape) -> Tensor {
        let (found, wanted) = (n_elements(&self.0.shape), n_elements(&shape));
        assert!(found == wanted, "{}: {:?} reshaped to {shape:?}", self.0.scope, self.0.shape);
        self.map(Op::Reshape, shape)
    }

    /// Axis `i` of the result is axis `perm[i]`.
    #[must_use]
    pub fn transpose(&self, perm: &[usize]) -> Tensor {
        let shape = perm.iter().map(|&axis| self.0.shape[axis].clone()).collect();
        self.map(Op::Transpose { perm: perm.to_vec() }, shape)
    }

    /// Joins tensors along an axis of known size.
    #[must_use]
    pub fn concat(parts: &[Tensor], axis: usize) -> Tensor {
        let mut shape = parts[0].0.shape.clone();
        let size: u64 =
            parts.iter().map(|t| t.0.shape[axis].fixed().expect("joined along an axis of known size")).sum();
        shape[axis] = Dim::from(size);
        Tensor::node(Op::Concat { axis }, parts.to_vec(), shape, parts[0].0.kind)
    }

    /// Elements `start..end` along an axis of known size.
    #[must_use]
    pub fn slice(&self, axis: usize, start: u64, end: u64) -> Tensor {
        let mut shape = self.0.shape.clone();
        shape[axis] = Dim::from(end - start);
        self.map(Op::Slice { axis, start, end }, shape)
    }

    /// `n` zeros behind the end of an axis of known size.
    #[must_use]
    pub fn pad_end(&self, axis: usize, n: u64) -> Tensor {
        let mut shape = self.0.shape.clone();
        let size = shape[axis].fixed().expect("padded along an axis of known size");
        shape[axis] = Dim::from(size + n);
        self.map(Op::PadEnd { axis, n }, shape)
    }

    /// Nearest-neighbour resize of `[B, C, H, W]` to the given height and width.
    #[must_use]
    pub fn resize_nearest(&self, height: &Dim, width: &Dim) -> Tensor {
        let [b, c, _, _] = self.dims();
        self.map(Op::ResizeNearest, vec![b, c, height.clone(), width.clone()])
    }

    /// Marks the border of a block: emission can split the network here.
    #[must_use]
    pub fn cut(&self, name: &str) -> Tensor {
        self.map(Op::Cut { name: name.into() }, self.0.shape.clone())
    }
}

/// How [`Tensor::attention`] scores.
#[derive(Clone, Copy, Debug)]
pub struct Attention {
    /// Number of heads.
    pub heads: u64,
    /// Factor on `q k^T`.
    pub scale: f32,
    /// Hides later positions from earlier ones.
    pub causal: bool,
    /// Scores in f32 even where the policy computes in half precision.
    pub upcast: bool,
}

/// Graphs are tens of thousands of nodes deep; freeing them by recursion would overflow the stack.
impl Drop for Node {
    fn drop(&mut self) {
        let mut pending = std::mem::take(&mut self.inputs);
        while let Some(Tensor(node)) = pending.pop() {
            if let Some(mut node) = Rc::into_inner(node) {
                pending.append(&mut node.inputs);
            }
        }
    }
}

fn broadcast(a: &[Dim], b: &[Dim]) -> Option<Shape> {
    let (long, short) = if a.len() >= b.len() { (a, b) } else { (b, a) };
    let mut shape = long.to_vec();
    let offset = long.len() - short.len();
    for (axis, dim) in short.iter().enumerate() {
        let other = &mut shape[offset + axis];
        match (dim.fixed(), other.fixed()) {
            (Some(1), _) => {}
            (_, Some(1)) => *other = dim.clone(),
            _ if dim == other => {}
            _ => return None,
        }
    }
    Some(shape)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dropping_a_deep_graph_does_not_overflow_the_stack() {
        let mut x = Tensor::input("x", [1]);
        for _ in 0..1_000_000 {
            x = x.silu();
        }
        drop(x);
    }

    #[test]
    fn nodes_take_their_scope_from_the_weight_they_read() {
        let w = Tensor::weight("mid_block.resnets.0.conv1.weight", &[4, 4, 3, 3]);
        let y = Tensor::input("x", [1, 4, 8, 8]).conv2d(&w, None, 1, [1; 4]).silu();
        assert_eq!(&*y.0.scope, "mid_block.resnets.0.conv1");
    }
}
