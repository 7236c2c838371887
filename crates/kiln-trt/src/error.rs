use std::fmt;

/// Why TensorRT did not do what it was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrtError {
    kind: TrtErrorKind,
    reason: String,
    node: Option<String>,
}

/// What kind of failure it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum TrtErrorKind {
    /// The library cannot be loaded, or is of a release that is not known.
    Library,
    /// This release lacks what was asked for.
    Unsupported,
    /// The ONNX parser refuses a model.
    Parse,
    /// The builder fails.
    Build,
    /// A serialized engine cannot be loaded, or its weights not be set.
    Engine,
    /// A serialized engine is of another release, or for other devices or drivers.
    Incompatible,
    /// An argument cannot be passed on.
    Argument,
    /// The build was stopped by its [`ProgressMonitor`](crate::ProgressMonitor).
    Cancelled,
    /// An execution context cannot be made, set up or run.
    Execution,
    /// A plugin cannot be registered.
    Plugin,
}

impl TrtError {
    pub(crate) fn new(kind: TrtErrorKind, reason: impl Into<String>) -> TrtError {
        TrtError { kind, reason: reason.into(), node: None }
    }

    pub(crate) fn in_node(self, node: &str) -> TrtError {
        TrtError { node: (!node.is_empty()).then(|| node.to_owned()), ..self }
    }

    /// What kind of failure it is.
    pub fn kind(&self) -> TrtErrorKind {
        self.kind
    }

    /// The node of the model that it is about, where TensorRT names one.
    pub fn node(&self) -> Option<&str> {
        self.node.as_deref()
    }
}

impl fmt::Display for TrtError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.node {
            Some(node) => write!(f, "node '{node}': {}", self.reason),
            None => f.write_str(&self.reason),
        }
    }
}

impl std::error::Error for TrtError {}
