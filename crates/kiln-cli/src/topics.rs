//! Guides that the program has with it.

/// A guide.
struct Topic {
    name: &'static str,
    about: &'static str,
    text: &'static str,
}

macro_rules! topics {
    ($($name:literal $file:literal $about:literal)*) => {
        [$(Topic { name: $name, about: $about, text: include_str!(concat!("../guides/", $file)) }),*]
    };
}

const TOPICS: [Topic; 21] = topics! {
    "first-engine" "tutorial-engines.md" "a tutorial: from a checkpoint to an engine, measured and packed"
    "first-program" "tutorial-programs.md" "a tutorial: pictures from Python, C and Rust"
    "first-server" "tutorial-server.md" "a tutorial: a server that other machines may call"
    "first-fleet" "tutorial-fleet.md" "a tutorial: from one box to three"
    "drawing" "draw.md" "prompts, schedulers, pictures from pictures, LoRAs"
    "building" "build.md" "bundles, specifications, the engine cache"
    "serving" "serve.md" "models, jobs, keys, metrics, systemd"
    "fleets" "fleet.md" "many boxes: a queue that workers pull from"
    "operating" "operate.md" "kiln on an edge box"
    "packages" "packages.md" "Debian packages, containers, other systems"
    "embedding" "embed.md" "the library in Rust"
    "python" "python.md" "the library in Python"
    "c" "c.md" "the library in C and C++"
    "triton" "triton.md" "bundles in Triton Inference Server"
    "consumers" "consumers.md" "ONNX for other tools"
    "targets" "targets.md" "processor, CUDA or TensorRT"
    "memory" "memory.md" "fitting into little memory"
    "adapters" "adapters.md" "kinds of LoRAs and their relatives"
    "fidelity" "fidelity.md" "what equals diffusers, and what does not"
    "security" "security.md" "whom kiln trusts"
    "questions" "questions.md" "what people ask, and what errors mean"
};

/// The text of a guide.
pub(crate) fn text(name: &str) -> Option<&'static str> {
    TOPICS.iter().find(|topic| topic.name == name).map(|topic| topic.text.trim_end())
}

/// The topics, as the program's help lists them.
pub(crate) fn list() -> String {
    let lines = TOPICS.iter().map(|topic| format!("  {:<14} {}\n", topic.name, topic.about));
    format!("Topics of kiln help:\n{}", lines.collect::<String>())
}
