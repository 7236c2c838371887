use std::fmt;
use std::str::FromStr;

/// What runs engines. Written `auto`, `onnxruntime` or `rten`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Runner {
    /// What the engines are for; on the processor, ONNX Runtime, or else the built-in backend.
    #[default]
    Auto,
    /// ONNX Runtime or nothing; on a GPU, its CUDA provider.
    OnnxRuntime,
    /// The built-in backend, which runs on the processor.
    Rten,
}

impl Runner {
    /// Every one.
    pub const ALL: [Runner; 3] = [Runner::Auto, Runner::OnnxRuntime, Runner::Rten];

    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Runner::Auto => "auto",
            Runner::OnnxRuntime => "onnxruntime",
            Runner::Rten => "rten",
        }
    }
}

impl FromStr for Runner {
    type Err = String;

    fn from_str(text: &str) -> Result<Runner, String> {
        let found = Runner::ALL.into_iter().find(|runner| runner.name() == text);
        found.ok_or_else(|| "expected auto, onnxruntime or rten".into())
    }
}

impl fmt::Display for Runner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}
