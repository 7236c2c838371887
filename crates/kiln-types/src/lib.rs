//! Words that kiln's crates share: element types, picture sizes, component names, limits, kinds of errors.

mod component;
mod element;
mod kind;
pub mod limits;
mod placement;
mod size;

pub use component::{ComponentName, InvalidName};
pub use element::ElementType;
pub use kind::ErrorKind;
pub use placement::Placement;
pub use size::Size;
