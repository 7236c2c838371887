//! What is refused.

use std::fmt;

use crate::Isa;

/// Why an operator cannot be planned or run. Nothing was written to the output.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Error {
    /// The processor lacks the instruction set.
    Isa(Isa),
    /// No instruction set has this name.
    IsaName(String),
    /// A size is zero, or a kernel does not fit its padded input.
    Shape(String),
    /// The algorithm cannot compute this shape.
    Algorithm(String),
    /// A size in bytes does not fit the address space.
    TooLarge,
    /// A slice has another length than the shape says.
    Length {
        /// Which of the arguments.
        what: &'static str,
        /// Elements.
        expected: usize,
        /// Elements.
        found: usize,
    },
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Isa(isa) => write!(f, "this processor lacks the instruction set {isa}"),
            Error::IsaName(name) => write!(f, "no instruction set is called {name:?}"),
            Error::Shape(why) | Error::Algorithm(why) => f.write_str(why),
            Error::TooLarge => f.write_str("the operator's size does not fit the address space"),
            Error::Length { what, expected, found } => {
                write!(f, "{what} has the length {found}, not {expected}")
            }
        }
    }
}

impl std::error::Error for Error {}

/// `Ok` where `found` is `expected`.
pub(crate) fn check_length(what: &'static str, expected: usize, found: usize) -> Result<(), Error> {
    if expected == found { Ok(()) } else { Err(Error::Length { what, expected, found }) }
}

/// The product of `factors`, if it fits.
pub(crate) fn product(factors: &[usize]) -> Result<usize, Error> {
    let product = factors.iter().try_fold(1usize, |product, &factor| product.checked_mul(factor));
    product.filter(|&n| n <= isize::MAX as usize / 4).ok_or(Error::TooLarge)
}

/// The sum of `terms`, if it fits.
pub(crate) fn sum(terms: &[usize]) -> Result<usize, Error> {
    let sum = terms.iter().try_fold(0usize, |sum, &term| sum.checked_add(term));
    sum.filter(|&n| n <= isize::MAX as usize / 4).ok_or(Error::TooLarge)
}
