use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;

use crate::{ElementType, Tensor, TraceError};

/// What a checkpoint's header says of one weight.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WeightInfo {
    /// Stored type.
    pub dtype: ElementType,
    /// Stored shape.
    pub shape: Vec<u64>,
}

/// Names, types and shapes of all weights of one component: all that tracing needs to know of a checkpoint.
#[derive(Debug)]
pub struct WeightCatalog {
    origin: String,
    entries: RefCell<BTreeMap<String, WeightInfo>>,
    used: RefCell<BTreeSet<String>>,
    aliases: BTreeMap<String, String>,
    invents: Option<ElementType>,
}

impl WeightCatalog {
    /// An empty catalog; `origin` names the file in errors.
    pub fn new(origin: impl Into<String>) -> WeightCatalog {
        WeightCatalog {
            origin: origin.into(),
            entries: RefCell::default(),
            used: RefCell::default(),
            aliases: BTreeMap::new(),
            invents: None,
        }
    }

    /// A catalog that has every weight it is asked for: constructing a network over it lists the network's weights.
    pub fn inventing(dtype: ElementType) -> WeightCatalog {
        WeightCatalog { invents: Some(dtype), ..WeightCatalog::new("(invented)") }
    }

    /// Adds a weight.
    pub fn insert(&mut self, name: impl Into<String>, info: WeightInfo) {
        self.entries.get_mut().insert(name.into(), info);
    }

    /// Adds a weight that the checkpoint stores under another name, by which errors call it.
    pub fn insert_alias(&mut self, name: impl Into<String>, alias: impl Into<String>, info: WeightInfo) {
        let name = name.into();
        self.aliases.insert(name.clone(), alias.into());
        self.insert(name, info);
    }

    fn stored_name(&self, name: &str) -> String {
        self.aliases.get(name).map_or(name, String::as_str).to_owned()
    }

    /// The weights by name.
    pub fn into_entries(self) -> BTreeMap<String, WeightInfo> {
        self.entries.into_inner()
    }

    /// The scope that all names start from.
    pub fn root(&self) -> Weights<'_> {
        Weights { catalog: self, prefix: String::new() }
    }

    /// Refuses weights that no constructor has asked for since the catalog was made.
    pub fn refuse_unused(&self, network: &str) -> Result<(), TraceError> {
        let used = self.used.borrow();
        let entries = self.entries.borrow();
        let mut unused = entries.keys().filter(|name| !used.contains(*name));
        match unused.next() {
            None => Ok(()),
            Some(name) => Err(TraceError::UnexpectedWeight {
                origin: self.origin.clone(),
                name: self.stored_name(name),
                network: network.into(),
                n_others: unused.count(),
            }),
        }
    }
}

/// A scope in a [`WeightCatalog`], such as `down_blocks.0.resnets.1`.
#[derive(Clone, Debug)]
pub struct Weights<'a> {
    catalog: &'a WeightCatalog,
    prefix: String,
}

impl Weights<'_> {
    /// The scope one level down.
    #[must_use]
    pub fn child(&self, name: impl Display) -> Self {
        Weights { catalog: self.catalog, prefix: self.full(name) }
    }

    /// The scope's name, without a dot at its end.
    pub fn scope(&self) -> &str {
        &self.prefix
    }

    /// The weight as a leaf of the graph, after its name, type and shape were checked.
    pub fn weight(&self, name: &str, shape: &[u64]) -> Result<Tensor, TraceError> {
        let (origin, name) = (self.catalog.origin.clone(), self.full(name));
        let mut entries = self.catalog.entries.borrow_mut();
        if let Some(dtype) = self.catalog.invents {
            entries.insert(name.clone(), WeightInfo { dtype, shape: shape.to_vec() });
        }
        let Some(info) = entries.get(&name) else {
            return Err(TraceError::MissingWeight { origin, name });
        };
        if info.shape != shape {
            let (expected, found) = (shape.to_vec(), info.shape.clone());
            let name = self.catalog.stored_name(&name);
            return Err(TraceError::WeightShape { origin, name, expected, found });
        }
        if info.dtype == ElementType::I64 {
            let name = self.catalog.stored_name(&name);
            return Err(TraceError::WeightDType { origin, name, found: info.dtype });
        }
        self.catalog.used.borrow_mut().insert(name.clone());
        Ok(Tensor::weight(&name, shape))
    }

    fn full(&self, name: impl Display) -> String {
        match self.prefix.as_str() {
            "" => name.to_string(),
            prefix => format!("{prefix}.{name}"),
        }
    }
}
