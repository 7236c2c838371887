//! Networks as the ONNX parser leaves them.

use std::ffi::{c_char, c_void};
use std::marker::PhantomData;
use std::path::Path;
use std::sync::Arc;

use crate::error::TrtErrorKind::{self, Build, Parse, Unsupported};
use crate::logger;
use crate::object::{Object, Unshared, c_string, text};
use crate::sys::{Dims, call};
use crate::{DataType, TrtError};

/// A parsed network, strongly typed: every tensor has the type that the model gives it.
#[derive(Debug)]
pub struct Network {
    pub(crate) object: Arc<Object>,
    /// Holds the weights.
    _parser: Object,
    _unshared: Unshared,
}

/// An input or output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// Name in the model.
    pub name: String,
    /// Element type.
    pub dtype: DataType,
    /// Sizes; -1 where one is open.
    pub shape: Vec<i64>,
}

/// A layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layer {
    /// Name, after the node that it comes from.
    pub name: String,
    /// TensorRT's `LayerType`, as in `kCONVOLUTION`.
    pub kind: String,
}

/// An attention of the network, which TensorRT knows as such.
#[derive(Debug)]
pub struct Attention<'n> {
    /// Name, after the node that it comes from.
    pub name: String,
    object: Object,
    _network: PhantomData<&'n Network>,
}

impl Network {
    /// Parses a model with weights beside it.
    ///
    /// Errors are of kind [`TrtErrorKind::Parse`] and name the node where TensorRT does.
    pub(crate) fn parse(builder: &Arc<Object>, model: &Path) -> Result<Network, TrtError> {
        let library = builder.library();
        let typed = library.tables().number("NetworkDefinitionCreationFlag", "kSTRONGLY_TYPED")?;
        let network = call!(builder, VBuilder.createNetworkV2(1_u32 << typed => u32) -> *mut c_void);
        let network = Object::owned(library, network, Some(builder), Build, "cannot make a network")?;
        let parser = library.create_for("createNvOnnxParser_INTERNAL", network.as_ptr())?;
        let deleting = library.tables().entry("IParser", "~deleting")?;
        let network = Arc::new(network);
        let parser =
            Object::owned(library, parser, Some(&network), TrtErrorKind::Library, "cannot make a parser")?
                .deleted_by(deleting);
        let path = c_string(model.to_str().ok_or_else(|| {
            TrtError::new(TrtErrorKind::Argument, format!("{}: is not UTF-8", model.display()))
        })?)?;
        const WARNINGS: i32 = 2;
        let parsed =
            call!(parser, IParser.parseFromFile(path.as_ptr() => *const c_char, WARNINGS => i32) -> bool);
        if !parsed {
            return Err(parse_error(&parser, model)?);
        }
        Ok(Network { object: network, _parser: parser, _unshared: PhantomData })
    }

    /// Inputs, in the model's order.
    pub fn inputs(&self) -> Result<Vec<Port>, TrtError> {
        let n = call!(self.object, VNetworkDefinition.getNbInputs() -> i32);
        (0..n)
            .map(|i| self.port(call!(self.object, VNetworkDefinition.getInput(i => i32) -> *mut c_void)))
            .collect()
    }

    /// Outputs, in the model's order.
    pub fn outputs(&self) -> Result<Vec<Port>, TrtError> {
        let n = call!(self.object, VNetworkDefinition.getNbOutputs() -> i32);
        (0..n)
            .map(|i| self.port(call!(self.object, VNetworkDefinition.getOutput(i => i32) -> *mut c_void)))
            .collect()
    }

    fn port(&self, tensor: *mut c_void) -> Result<Port, TrtError> {
        let tensor = self.borrow(tensor, "a tensor")?;
        Ok(Port {
            name: text(call!(tensor, VTensor.getName() -> *const c_char)),
            dtype: DataType::from_number(call!(tensor, VTensor.getType() -> i32)),
            shape: call!(tensor, VTensor.getDimensions() -> Dims).to_vec(),
        })
    }

    /// Number of layers.
    pub fn n_layers(&self) -> Result<usize, TrtError> {
        Ok(usize::try_from(call!(self.object, VNetworkDefinition.getNbLayers() -> i32)).unwrap_or(0))
    }

    /// All layers.
    pub fn layers(&self) -> Result<Vec<Layer>, TrtError> {
        (0..self.n_layers()?)
            .map(|i| {
                let (object, kind) = self.layer(i)?;
                Ok(Layer { name: text(call!(object, VLayer.getName() -> *const c_char)), kind })
            })
            .collect()
    }

    fn layer(&self, index: usize) -> Result<(Object, String), TrtError> {
        let layer = call!(self.object, VNetworkDefinition.getLayer(index as i32 => i32) -> *mut c_void);
        let layer = self.borrow(layer, "a layer")?;
        let number = call!(layer, VLayer.getType() -> i32);
        let kind = layer.library().tables().name("LayerType", number).map_or(number.to_string(), str::to_owned);
        Ok((layer, kind))
    }

    /// The attentions, each once.
    pub fn attentions(&self) -> Result<Vec<Attention<'_>>, TrtError> {
        let mut found = Vec::new();
        for index in 0..self.n_layers()? {
            let (layer, kind) = self.layer(index)?;
            if kind == "kATTENTION_OUTPUT" {
                let attention = call!(layer, VAttentionBoundaryLayer.getAttention() -> *mut c_void);
                let object = self.borrow(attention, "an attention")?;
                let name = text(call!(object, VAttention.getName() -> *const c_char));
                found.push(Attention { name, object, _network: PhantomData });
            }
        }
        Ok(found)
    }

    fn borrow(&self, pointer: *mut c_void, what: &str) -> Result<Object, TrtError> {
        Object::borrowed(
            self.object.library(),
            pointer,
            Some(&self.object),
            Build,
            &format!("the network lacks {what}"),
        )
    }
}

impl Attention<'_> {
    /// Whether the builder may take several kernels, with the matrix of all scores between them.
    pub fn is_decomposable(&self) -> Result<bool, TrtError> {
        Ok(call!(self.object, VAttention.getDecomposable() -> bool))
    }

    /// Makes a build fail that has no fused kernel for this attention, or lets it fall back.
    pub fn set_decomposable(&mut self, decomposable: bool) -> Result<(), TrtError> {
        match call!(self.object, VAttention.setDecomposable(decomposable => bool) -> bool) {
            true => Ok(()),
            false => Err(self
                .object
                .library()
                .failure(Unsupported, &format!("attention '{}' cannot be held together", self.name))),
        }
    }
}

fn parse_error(parser: &Object, model: &Path) -> Result<TrtError, TrtError> {
    let library = parser.library();
    let n = call!(parser, IParser.getNbErrors() -> i32);
    if n <= 0 {
        return Ok(library.failure(Parse, &format!("{}: cannot be parsed", model.display())));
    }
    let error = call!(parser, IParser.getError(0 => i32) -> *mut c_void);
    let error = Object::borrowed(library, error, None, Parse, "the parser does not say what is wrong")?;
    let description = text(call!(error, IParserError.desc() -> *const c_char));
    let operator = text(call!(error, IParserError.nodeOperator() -> *const c_char));
    let node = text(call!(error, IParserError.nodeName() -> *const c_char));
    let operator = if operator.is_empty() { operator } else { format!("{operator}: ") };
    let reported = library.logger().take_errors().into_iter().filter(|reason| logger::is_own(reason));
    let reasons: Vec<_> = std::iter::once(description).chain(reported).collect();
    let reason = format!("{}: {operator}{}", model.display(), reasons.join("; "));
    Ok(TrtError::new(Parse, reason).in_node(&node))
}
