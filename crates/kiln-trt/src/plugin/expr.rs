//! Sizes that are not known before a run: expressions that TensorRT computes then.

use std::ffi::c_void;
use std::fmt;
use std::ptr::NonNull;

use crate::TrtError;
use crate::error::TrtErrorKind::Build;
use crate::sys::{self, Dims, Tables, call};

/// `DimensionOperation` of `NvInferRuntime.h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DimensionOperation {
    /// Sum.
    Sum,
    /// Product.
    Prod,
    /// The greater.
    Max,
    /// The less.
    Min,
    /// Difference.
    Sub,
    /// 1 if equal, else 0.
    Equal,
    /// 1 if less, else 0.
    Less,
    /// Quotient, rounded down.
    FloorDiv,
    /// Quotient, rounded up.
    CeilDiv,
}

impl DimensionOperation {
    fn name(self) -> &'static str {
        match self {
            DimensionOperation::Sum => "kSUM",
            DimensionOperation::Prod => "kPROD",
            DimensionOperation::Max => "kMAX",
            DimensionOperation::Min => "kMIN",
            DimensionOperation::Sub => "kSUB",
            DimensionOperation::Equal => "kEQUAL",
            DimensionOperation::Less => "kLESS",
            DimensionOperation::FloorDiv => "kFLOOR_DIV",
            DimensionOperation::CeilDiv => "kCEIL_DIV",
        }
    }
}

/// A size, `IDimensionExpr` of `NvInferRuntime.h`.
#[derive(Clone, Copy)]
pub struct ShapeExpr<'e> {
    pointer: NonNull<c_void>,
    tables: &'e Tables,
}

impl fmt::Debug for ShapeExpr<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ShapeExpr({:?})", self.constant())
    }
}

impl ShapeExpr<'_> {
    /// Its value, where it is known already.
    pub fn constant(&self) -> Result<Option<i64>, TrtError> {
        let is_constant = call!(self, VDimensionExpr.isConstant() -> bool);
        Ok(match is_constant {
            true => Some(call!(self, VDimensionExpr.getConstantValue() -> i64)),
            false => None,
        })
    }

    fn method(&self, class: &str, method: &str) -> Result<(*mut c_void, *const c_void), TrtError> {
        sys::method(self.tables, self.pointer.as_ptr(), class, method)
    }
}

/// Makes expressions, `IExprBuilder` of `NvInferRuntime.h`.
pub struct ExprBuilder<'e> {
    pointer: *mut c_void,
    tables: &'e Tables,
}

impl fmt::Debug for ExprBuilder<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ExprBuilder").finish_non_exhaustive()
    }
}

impl<'e> ExprBuilder<'e> {
    pub(super) fn new(pointer: *mut c_void, tables: &'e Tables) -> ExprBuilder<'e> {
        ExprBuilder { pointer, tables }
    }

    /// A size that is known.
    pub fn constant(&self, size: i64) -> Result<ShapeExpr<'e>, TrtError> {
        self.expr(call!(self, VExprBuilder.constant(size => i64) -> *mut c_void))
    }

    /// A size from two others.
    pub fn operation(
        &self,
        operation: DimensionOperation,
        first: ShapeExpr<'e>,
        second: ShapeExpr<'e>,
    ) -> Result<ShapeExpr<'e>, TrtError> {
        let number = self.tables.number("DimensionOperation", operation.name())?;
        self.expr(call!(
            self,
            VExprBuilder.operation(
                number => i32,
                first.pointer.as_ptr() => *mut c_void,
                second.pointer.as_ptr() => *mut c_void
            ) -> *mut c_void
        ))
    }

    fn expr(&self, pointer: *mut c_void) -> Result<ShapeExpr<'e>, TrtError> {
        let pointer = NonNull::new(pointer)
            .ok_or_else(|| TrtError::new(Build, "TensorRT cannot express the size of an output"))?;
        Ok(ShapeExpr { pointer, tables: self.tables })
    }

    fn method(&self, class: &str, method: &str) -> Result<(*mut c_void, *const c_void), TrtError> {
        sys::method(self.tables, self.pointer, class, method)
    }

    /// The sizes of a tensor.
    pub(super) fn read(&self, shape: &DimsExprs) -> Result<Vec<ShapeExpr<'e>>, TrtError> {
        let n = usize::try_from(shape.n).unwrap_or(0).min(Dims::MAX);
        shape.sizes[..n].iter().map(|pointer| self.expr(*pointer)).collect()
    }
}

/// `DimsExprs` of `NvInferRuntime.h`.
#[repr(C)]
pub(super) struct DimsExprs {
    n: i32,
    sizes: [*mut c_void; Dims::MAX],
}

impl DimsExprs {
    pub(super) fn new(sizes: &[ShapeExpr<'_>]) -> Option<DimsExprs> {
        let mut exprs = DimsExprs { n: sizes.len() as i32, sizes: [std::ptr::null_mut(); Dims::MAX] };
        for (to, size) in exprs.sizes.get_mut(..sizes.len())?.iter_mut().zip(sizes) {
            *to = size.pointer.as_ptr();
        }
        Some(exprs)
    }
}
