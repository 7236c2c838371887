"""Operators of ONNX Runtime's CUDA provider as functions of the processor's, for tests.

    python functions.py    # writes functions.bin, which makes a model define them when it is appended
"""

from pathlib import Path

import onnx
from onnx import parser

GROUP_NORM = """
<domain: "com.microsoft", opset_import: ["" : 18]>
GroupNrmX <groups, activation, epsilon: float = 1e-5, channels_last: int = 1> (x, gamma, beta) => (y) {
  n_groups = Constant <value_int: int = @groups> ()
  eps = Constant <value_float: float = @epsilon> ()
  silu = Constant <value_int: int = @activation> ()
  zero = Constant <value_ints = [0]> ()
  rest = Constant <value_ints = [-1]> ()
  one = Constant <value_ints = [1]> ()
  groups_1d = Reshape (n_groups, one)
  grouped_shape = Concat <axis = 0> (zero, groups_1d, rest)
  wide = Cast <to = 1> (x)
  nchw = Transpose <perm = [0, 3, 1, 2]> (wide)
  grouped = Reshape (nchw, grouped_shape)
  axes = Constant <value_ints = [2]> ()
  mean = ReduceMean (grouped, axes)
  centred = Sub (grouped, mean)
  squared = Mul (centred, centred)
  variance = ReduceMean (squared, axes)
  stable = Add (variance, eps)
  spread = Sqrt (stable)
  normal = Div (centred, spread)
  shape = Shape (nchw)
  flat = Reshape (normal, shape)
  nhwc = Transpose <perm = [0, 2, 3, 1]> (flat)
  g32 = Cast <to = 1> (gamma)
  b32 = Cast <to = 1> (beta)
  scaled = Mul (nhwc, g32)
  shifted = Add (scaled, b32)
  gate = Sigmoid (shifted)
  activated = Mul (shifted, gate)
  is_silu = Cast <to = 9> (silu)
  chosen = Where (is_silu, activated, shifted)
  y = CastLike (chosen, x)
}"""

CONV = """
<domain: "com.microsoft", opset_import: ["" : 18]>
NhwcCnvX <kernel_shape, strides, pads> (x, weight, bias) => (y) {
  first = Transpose <perm = [0, 3, 1, 2]> (x)
  weight_first = Transpose <perm = [0, 3, 1, 2]> (weight)
  made = Conv <kernel_shape: ints = @kernel_shape, strides: ints = @strides, pads: ints = @pads> (first, weight_first, bias)
  y = Transpose <perm = [0, 2, 3, 1]> (made)
}"""

model = onnx.ModelProto()
model.functions.extend(parser.parse_function(text) for text in [GROUP_NORM, CONV])
Path(__file__).with_name("functions.bin").write_bytes(model.SerializeToString())
