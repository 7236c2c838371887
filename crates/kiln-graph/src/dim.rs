use std::fmt;

/// A size that is only known when an engine runs, such as the batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Symbol(pub &'static str);

impl Symbol {
    /// Number of samples.
    pub const BATCH: Symbol = Symbol("batch");
    /// Height of the latents.
    pub const HEIGHT: Symbol = Symbol("height");
    /// Width of the latents.
    pub const WIDTH: Symbol = Symbol("width");
    /// Number of token positions that a UNet attends to.
    pub const TOKENS: Symbol = Symbol("tokens");
}

/// `ceil(symbol / divisor)`: what remains of a symbol after stride-2 convolutions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Atom {
    pub(crate) symbol: Symbol,
    pub(crate) divisor: u64,
}

/// One axis of a shape: a number, or a number times sizes known at run time.
///
/// Diffusion networks only ever halve (rounding up), double and multiply sizes, so a product of `ceil(symbol / 2^k)`
/// terms is closed under all they do.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Dim {
    factor: u64,
    atoms: Vec<Atom>,
}

/// The axes of a tensor, outermost first.
pub type Shape = Vec<Dim>;

impl Dim {
    /// The number, if it is known now.
    pub fn fixed(&self) -> Option<u64> {
        self.atoms.is_empty().then_some(self.factor)
    }

    pub(crate) fn factor(&self) -> u64 {
        self.factor
    }

    pub(crate) fn atoms(&self) -> &[Atom] {
        &self.atoms
    }

    /// The size where each symbol has the given value.
    pub fn at(&self, value: impl Fn(Symbol) -> u64) -> u64 {
        let atoms = self.atoms.iter().map(|atom| value(atom.symbol).div_ceil(atom.divisor));
        atoms.fold(self.factor, u64::saturating_mul)
    }

    /// The product of two sizes.
    #[must_use]
    pub fn times(&self, other: &Dim) -> Dim {
        let mut atoms = [self.atoms.as_slice(), other.atoms.as_slice()].concat();
        atoms.sort();
        Dim { factor: self.factor.saturating_mul(other.factor), atoms }
    }

    /// `floor((self + padding - kernel) / stride) + 1`: the size after a convolution.
    ///
    /// A run-time size is supported where the convolution keeps it (stride 1, padding `kernel - 1`) or halves it
    /// (stride 2, padding `kernel - 1` or, for an even size, `kernel - 2`).
    pub(crate) fn after_conv(&self, kernel: u64, stride: u64, padding: u64) -> Option<Dim> {
        if let Some(size) = self.fixed() {
            return Some(Dim::from((size + padding).checked_sub(kernel)? / stride + 1));
        }
        match (stride, kernel.checked_sub(padding)?) {
            (1, 1) => Some(self.clone()),
            (2, 1 | 2) if self.factor.is_multiple_of(2) => {
                Some(Dim { factor: self.factor / 2, atoms: self.atoms.clone() })
            }
            (2, 1) if self.factor == 1 && self.atoms.len() == 1 => {
                let Atom { symbol, divisor } = self.atoms[0];
                Some(Dim { factor: 1, atoms: vec![Atom { symbol, divisor: divisor * 2 }] })
            }
            _ => None,
        }
    }
}

impl From<u64> for Dim {
    fn from(size: u64) -> Dim {
        Dim { factor: size, atoms: Vec::new() }
    }
}

impl From<Symbol> for Dim {
    fn from(symbol: Symbol) -> Dim {
        Dim { factor: 1, atoms: vec![Atom { symbol, divisor: 1 }] }
    }
}

impl fmt::Display for Dim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.factor != 1 || self.atoms.is_empty() {
            write!(f, "{}", self.factor)?;
        }
        for (i, Atom { symbol, divisor }) in self.atoms.iter().enumerate() {
            if i > 0 || self.factor != 1 {
                f.write_str("*")?;
            }
            match divisor {
                1 => write!(f, "{}", symbol.0)?,
                d => write!(f, "ceil({}/{d})", symbol.0)?,
            }
        }
        Ok(())
    }
}

impl fmt::Debug for Dim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Number of elements of a shape.
pub(crate) fn n_elements(shape: &[Dim]) -> Dim {
    shape.iter().fold(Dim::from(1u64), |n, d| n.times(d))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halving_a_run_time_size_rounds_up_and_composes() {
        let height = Dim::from(Symbol::HEIGHT);
        let quarter = height.after_conv(3, 2, 2).and_then(|d| d.after_conv(3, 2, 2)).unwrap();
        assert_eq!(quarter.to_string(), "ceil(height/4)");
    }

    #[test]
    fn halving_a_multiple_is_exact() {
        let pixels = Dim::from(8u64).times(&Symbol::WIDTH.into());
        assert_eq!(pixels.after_conv(3, 2, 1).unwrap().to_string(), "4*width");
    }

    #[test]
    fn products_do_not_depend_on_order() {
        let (h, w) = (Dim::from(Symbol::HEIGHT), Dim::from(Symbol::WIDTH));
        assert_eq!(h.times(&w), w.times(&h));
    }
}
