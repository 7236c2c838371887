/// What kind of failure an error of one of kiln's crates is: what its receiver can do about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// A parameter of a request or an option is wrong, alone or for this model.
    Request,
    /// A checkpoint, bundle, model file or picture is missing, malformed or not supported.
    Input,
    /// A native library, driver or device cannot be found, fetched or used.
    Device,
    /// A file cannot be read or written.
    Files,
    /// What was asked for does not fit into the memory budget or a device.
    Memory,
    /// Whoever asked for it stopped it.
    Cancelled,
    /// An engine failed, or something that should not happen did.
    Unexpected,
}
