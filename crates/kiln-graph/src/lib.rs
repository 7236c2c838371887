//! Tracing without a tape: a network is ordinary code over a symbolic [`Tensor`], and running it *is* the trace.
//!
//! ```
//! use kiln_graph::{ElementType, EmitPolicy, Graph, Tensor, WeightCatalog, WeightInfo, emit};
//!
//! let mut catalog = WeightCatalog::new("mlp.safetensors");
//! catalog.insert("fc.weight", WeightInfo { dtype: ElementType::F32, shape: vec![8, 4] });
//!
//! let x = Tensor::input("x", [1, 4]);
//! let fc = catalog.root().child("fc").weight("weight", &[8, 4])?;
//! let y = x.linear(&fc, None).silu();
//!
//! let graph = Graph { name: "mlp".into(), inputs: vec![x], outputs: vec![("y".into(), y)] };
//! let models = emit(&graph, &EmitPolicy::default())?;
//! assert_eq!(models[0].weights[0].name, "fc.weight");
//! # Ok::<(), kiln_graph::TraceError>(())
//! ```
//!
//! A [`Tensor`] is an immutable node of a DAG that knows its operator, its inputs and its shape; weights are leaves that
//! hold a *name*, never data. Operators are semantic (`group_norm`, `attention`): how they become ONNX is decided by the
//! [`EmitPolicy`] when [`emit`] walks the DAG from its outputs, so that dead code is never emitted and one trace serves
//! every precision, attention variant, flavour and segmentation.

mod dim;
mod emit;
mod error;
mod layout;
mod policy;
pub mod proto;
mod tensor;
mod weights;

pub use dim::{Dim, Shape, Symbol};

pub use emit::{EmittedModel, Graph, ModelPort, StoredWeight, emit};
pub use error::TraceError;
pub use kiln_types::{ElementType, Precision};
pub use layout::{AroundWeights, ExternalData, WeightLayout};
pub use policy::{AttentionPolicy, Cuts, EmitPolicy, Flavor, LEAST_SCORE, PrecisionPolicy, is_inside};
pub use tensor::{Attention, Kind, Tensor};
pub use weights::{WeightCatalog, WeightInfo, Weights};
