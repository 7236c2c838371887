//! Words that kiln's crates share: element types, precisions, picture sizes, component names, limits, kinds of errors.

mod component;
mod element;
mod kind;
pub mod limits;
mod placement;
mod precision;
mod size;

pub use component::{ComponentName, InvalidName};
pub use element::ElementType;
pub use kind::ErrorKind;
pub use placement::Placement;
pub use precision::Precision;
pub use size::Size;
