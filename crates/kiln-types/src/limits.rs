//! The largest numbers that kiln accepts. Each is checked before anything is allocated by it.

/// Longest side of a generated picture, in pixels.
pub const MAX_SIDE: u32 = 8192;

/// Most pictures of one request.
pub const MAX_BATCH: usize = 256;

/// Most ControlNets of one request.
pub const MAX_CONTROLS: usize = 16;

/// Longest side of a picture that is read, in pixels.
pub const MAX_INPUT_SIDE: u32 = 32768;

/// Most pixels of a picture that is read.
pub const MAX_INPUT_PIXELS: u64 = 1 << 26;

/// Most bytes that the pixels of a picture may take while it is decoded: of the most pixels, four each.
pub const MAX_INPUT_BYTES: u64 = 1 << 28;

/// Most bytes of a picture's metadata: colour profile, EXIF data, text.
pub const MAX_INPUT_METADATA: u64 = 1 << 24;

/// Most threads that an operator may be spread over.
pub const MAX_THREADS: usize = 1024;

/// Most segments ahead whose weights are prefetched.
pub const MAX_PREFETCH: usize = 64;
