/// Where the weights of an engine are while it is loaded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
pub enum Placement {
    /// In the page cache, mapped from their file: loading takes milliseconds, and dropping the engine frees them.
    #[default]
    Mapped,
    /// In memory, rearranged for the processor's kernels: loading takes seconds per gigabyte, small products run faster.
    Packed,
}
