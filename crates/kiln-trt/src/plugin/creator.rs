//! Creators as TensorRT's plugin registry holds them.

use std::ffi::{c_char, c_void};
use std::fmt;
use std::ptr::null_mut;
use std::sync::Arc;

use super::field::{Collection, RawCollection, read_fields};
use super::object::{Identity, PluginObject};
use super::{PluginCreator, PluginPhase};
use crate::callback::{InterfaceInfo, VirtualTable};
use crate::error::TrtErrorKind::Plugin;
use crate::object::{Object, text};
use crate::sys::call;
use crate::{Library, TrtError};

/// An `IPluginCreatorV3One` made here: its virtual table comes first, as in C++.
#[repr(C)]
struct CreatorObject {
    address: *const *const c_void,
    _table: VirtualTable,
    identity: Arc<Identity>,
    field_names: Arc<Collection>,
    creator: Box<dyn PluginCreator>,
}

/// A creator in the registry, which it leaves when this is dropped.
pub struct PluginRegistration {
    registry: Object,
    creator: *const CreatorObject,
    identity: Arc<Identity>,
}

// SAFETY: the creator is for all threads, and so is the registry, which locks itself.
unsafe impl Send for PluginRegistration {}
// SAFETY: as above.
unsafe impl Sync for PluginRegistration {}

impl fmt::Debug for PluginRegistration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PluginRegistration").field("name", &self.identity.name).finish_non_exhaustive()
    }
}

impl Library {
    /// Registers a creator with the library's plugin registry, until what this returns is dropped. Networks and engines
    /// that hold its plugins may live longer.
    ///
    /// TensorRT may be about to call a creator that leaves the registry, and so its memory is never freed.
    ///
    /// Errors are of kind [`Plugin`] where a creator of that name, version and namespace is registered already, and of
    /// kind [`Library`](crate::TrtErrorKind::Library) where the parser of TensorRT-RTX cannot add plugins, for which the
    /// dynamic loader needs a file in the folder for temporary files.
    pub fn register_plugin(
        self: &Arc<Self>,
        creator: impl PluginCreator + 'static,
    ) -> Result<PluginRegistration, TrtError> {
        self.be_found_by_parser()?;
        let registry = self.plugin_registry()?;
        let identity = Arc::new(Identity::new(&creator, self.tables(), self.logger())?);
        let functions = [
            ("getInterfaceInfo", interface_info as *const c_void),
            ("createPlugin", create_plugin as *const c_void),
            ("getFieldNames", field_names as *const c_void),
            ("getPluginName", name as *const c_void),
            ("getPluginVersion", version as *const c_void),
            ("getPluginNamespace", namespace as *const c_void),
        ];
        let table = VirtualTable::new(self.tables(), "IPluginCreatorV3One", &functions)?;
        let field_names = Collection::of_specs(&creator.fields())?;
        let object = Box::into_raw(Box::new(CreatorObject {
            address: table.address(),
            _table: table,
            identity: identity.clone(),
            field_names,
            creator: Box::new(creator),
        }));
        let is_registered = call!(
            registry,
            IPluginRegistry.registerCreator(
                object.cast() => *const c_void,
                identity.namespace.as_ptr() => *const c_char
            ) -> bool
        );
        match is_registered {
            true => Ok(PluginRegistration { registry, creator: object, identity }),
            false => {
                // SAFETY: the registry did not take the object, which was just made.
                drop(unsafe { Box::from_raw(object) });
                let name = identity.name.to_string_lossy();
                Err(self.failure(Plugin, &format!("plugin '{name}' cannot be registered")))
            }
        }
    }

    fn plugin_registry(self: &Arc<Self>) -> Result<Object, TrtError> {
        let registry = self.call("getPluginRegistry")?;
        Object::borrowed(self, registry, None, Plugin, "the library has no plugin registry")
    }
}

impl PluginRegistration {
    fn deregister(&self) -> Result<bool, TrtError> {
        Ok(
            call!(self.registry, IPluginRegistry.deregisterCreator(self.creator.cast() => *const c_void) -> bool),
        )
    }
}

impl Drop for PluginRegistration {
    fn drop(&mut self) {
        if !matches!(self.deregister(), Ok(true)) {
            tracing::warn!(target: "tensorrt", "plugin {:?} was not in the registry", self.identity.name);
        }
    }
}

extern "C" fn interface_info(_this: *const c_void) -> InterfaceInfo {
    InterfaceInfo::first(c"PLUGIN CREATOR_V3ONE")
}

extern "C" fn create_plugin(
    this: *const CreatorObject,
    layer: *const c_char,
    fields: *const RawCollection,
    phase: i32,
) -> *mut c_void {
    // SAFETY: creators are never freed.
    let object = unsafe { &*this };
    let phase = match phase {
        0 => PluginPhase::Build,
        _ => PluginPhase::Runtime,
    };
    object.identity.answer("cannot be made", null_mut(), || {
        // SAFETY: TensorRT gives a collection that is alive during the call.
        let fields = unsafe { read_fields(fields) }?;
        let plugin = object.creator.create(&text(layer), &fields, phase)?;
        Ok(PluginObject::leaked(&object.identity, plugin))
    })
}

extern "C" fn field_names(this: *const CreatorObject) -> *const RawCollection {
    // SAFETY: creators are never freed.
    unsafe { &*this }.field_names.as_ptr()
}

extern "C" fn name(this: *const CreatorObject) -> *const c_char {
    // SAFETY: creators are never freed.
    unsafe { &*this }.identity.name.as_ptr()
}

extern "C" fn version(this: *const CreatorObject) -> *const c_char {
    // SAFETY: creators are never freed.
    unsafe { &*this }.identity.version.as_ptr()
}

extern "C" fn namespace(this: *const CreatorObject) -> *const c_char {
    // SAFETY: creators are never freed.
    unsafe { &*this }.identity.namespace.as_ptr()
}
