//! Words that kiln's crates share: element types, picture sizes, component names, limits.

mod component;
mod element;
pub mod limits;
mod placement;
mod size;

pub use component::{ComponentName, InvalidName};
pub use element::ElementType;
pub use placement::Placement;
pub use size::Size;
