//! Native libraries: where they are looked for and, with the feature `install`, how they are fetched.
//!
//! kiln links no native library. It opens the one that an environment variable names, one that lies beside the program,
//! or one that `kiln runtime install` unpacked from a pinned wheel into kiln's cache folder, in this order.
//!
//! ```no_run
//! use kiln_native::{Library, locate};
//!
//! match locate(Library::OnnxRuntimeCpu)? {
//!     Some(found) => assert!(found.path.is_absolute()),
//!     None => { /* `install` fetches it, with the feature of that name. */ }
//! }
//! # Ok::<(), kiln_native::Error>(())
//! ```

mod driver;
pub mod env;
mod environment;
mod error;
mod format;
#[cfg(feature = "install")]
mod install;
mod locate;
mod pins;
#[cfg(feature = "install")]
mod pip;
#[cfg(feature = "install")]
mod unpack;
mod wheel;

pub use driver::has_nvidia_driver;
pub use error::{Error, ErrorKind};
#[cfg(feature = "install")]
pub use install::{Progress, install};
pub use locate::{Found, Origin, cache_dir, install_dir, library_in, locate};
pub use wheel::Library;
