use crate::{Dim, ElementType};

/// Why a checkpoint could not be traced or a trace could not be emitted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TraceError {
    /// The network needs a weight that the checkpoint does not have.
    #[error("{origin}: missing weight '{name}'")]
    MissingWeight {
        /// The checkpoint file.
        origin: String,
        /// Full name of the weight.
        name: String,
    },
    /// A weight has another shape than the configuration asks for.
    #[error("{origin}: weight '{name}' has shape {found:?}, the configuration asks for {expected:?}")]
    WeightShape {
        /// The checkpoint file.
        origin: String,
        /// Full name of the weight.
        name: String,
        /// Shape by the configuration.
        expected: Vec<u64>,
        /// Shape in the file.
        found: Vec<u64>,
    },
    /// A weight is stored in a type that no network parameter has.
    #[error("{origin}: weight '{name}' is stored as {found}, expected a floating-point type")]
    WeightDType {
        /// The checkpoint file.
        origin: String,
        /// Full name of the weight.
        name: String,
        /// Type in the file.
        found: ElementType,
    },
    /// The checkpoint has weights that the network does not know.
    #[error("{origin}: weight '{name}' is not part of {network}{}", others(*.n_others))]
    UnexpectedWeight {
        /// The checkpoint file.
        origin: String,
        /// The first weight that is left over.
        name: String,
        /// The network's class name.
        network: String,
        /// How many more are left over.
        n_others: usize,
    },
    /// A configuration value that kiln does not support or that makes no sense.
    #[error("{origin}: {key}: {reason}")]
    Config {
        /// The configuration file.
        origin: String,
        /// The key.
        key: String,
        /// The offending value and what is accepted.
        reason: String,
    },
    /// A size that is only known at run time cannot be derived from the model's inputs.
    #[error("{node}: the run-time size {dim} does not follow from the inputs of segment '{segment}'")]
    UnresolvedDim {
        /// The node that needs the size.
        node: String,
        /// The size.
        dim: Dim,
        /// The segment being emitted.
        segment: String,
    },
    /// An operator cannot be emitted under the chosen policy.
    #[error("{node}: {reason}")]
    Unsupported {
        /// The node.
        node: String,
        /// What is not supported.
        reason: String,
    },
    /// A weight has no place in the layout that a model is serialized against.
    #[error("weight '{0}' has no place in the weight file")]
    NotInLayout(String),
}

fn others(n: usize) -> String {
    match n {
        0 => String::new(),
        1 => " (and 1 other)".into(),
        n => format!(" (and {n} others)"),
    }
}
