use std::fmt;

/// Something that is used in place of something better, and why. Written in one line.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Notice {
    /// The built-in backend runs the engines.
    BuiltIn {
        /// Why ONNX Runtime does not.
        reason: String,
    },
    /// The processor runs the engines.
    Processor {
        /// Why the machine's GPU does not.
        reason: String,
    },
    /// Operators are spread over fewer threads than were asked for.
    Threads {
        /// How many were asked for.
        asked: usize,
        /// How many this process can run at once.
        cores: usize,
    },
}

impl fmt::Display for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Notice::BuiltIn { reason } => write!(f, "using the built-in backend rten: {reason}"),
            Notice::Processor { reason } => write!(f, "using the processor: {reason}"),
            Notice::Threads { asked, cores } => {
                write!(f, "using {cores} threads, as many as run at once here, in place of {asked}")
            }
        }
    }
}
