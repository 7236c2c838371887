//! How an engine is built.

use std::ffi::{c_char, c_void};
use std::marker::PhantomData;
use std::sync::Arc;

use crate::builder::HostMemory;
use crate::error::TrtErrorKind::{Argument, Build, Unsupported};
use crate::object::{Object, Unshared, c_string};
use crate::progress::MonitorObject;
use crate::sys::{Dims, call};
use crate::{ProgressMonitor, TrtError};

/// What the builder may do, `BuilderFlag` of `NvInfer.h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum BuilderFlag {
    /// Products of 32-bit floats with 10 bits of mantissa; on unless it is turned off.
    Tf32,
    /// Engines whose weights can be set anew.
    Refit,
    /// The same, for the weights of the build alone, which optimisations may then rely on.
    RefitIdentical,
    /// Engines without their weights, which are set when they are loaded.
    StripPlan,
    /// Engines whose weights may stay in the host's memory and stream to the device.
    WeightStreaming,
    /// Reports the memory that building takes.
    MonitorMemory,
    /// No timing cache.
    DisableTimingCache,
}

impl BuilderFlag {
    fn name(self) -> &'static str {
        match self {
            BuilderFlag::Tf32 => "kTF32",
            BuilderFlag::Refit => "kREFIT",
            BuilderFlag::RefitIdentical => "kREFIT_IDENTICAL",
            BuilderFlag::StripPlan => "kSTRIP_PLAN",
            BuilderFlag::WeightStreaming => "kWEIGHT_STREAMING",
            BuilderFlag::MonitorMemory => "kMONITOR_MEMORY",
            BuilderFlag::DisableTimingCache => "kDISABLE_TIMING_CACHE",
        }
    }
}

/// What an engine can tell of its layers, `ProfilingVerbosity` of `NvInferRuntime.h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProfilingVerbosity {
    /// Their names.
    Names,
    /// Nothing.
    None,
    /// All, tactics included.
    Detailed,
}

/// A configuration of the builder.
#[derive(Debug)]
pub struct BuilderConfig {
    pub(crate) object: Object,
    /// What TensorRT holds a pointer to, as long as the configuration lives.
    pub(crate) monitor: Option<Arc<MonitorObject>>,
    timing_cache: Option<TimingCache>,
    _unshared: Unshared,
}

impl BuilderConfig {
    pub(crate) fn new(builder: &Arc<Object>) -> Result<BuilderConfig, TrtError> {
        let config = call!(builder, VBuilder.createBuilderConfig() -> *mut c_void);
        let object =
            Object::owned(builder.library(), config, Some(builder), Build, "cannot make a configuration")?;
        Ok(BuilderConfig { object, monitor: None, timing_cache: None, _unshared: PhantomData })
    }

    /// Sets or clears a flag.
    pub fn set_flag(&mut self, flag: BuilderFlag, on: bool) -> Result<(), TrtError> {
        let number = self.number("BuilderFlag", flag.name())?;
        match on {
            true => call!(self.object, VBuilderConfig.setFlag(number => i32) -> ()),
            false => call!(self.object, VBuilderConfig.clearFlag(number => i32) -> ()),
        }
        Ok(())
    }

    /// Whether a flag is set.
    pub fn flag(&self, flag: BuilderFlag) -> Result<bool, TrtError> {
        let number = self.number("BuilderFlag", flag.name())?;
        Ok(call!(self.object, VBuilderConfig.getFlag(number => i32) -> bool))
    }

    /// Most bytes of device memory that a layer may take while it runs.
    pub fn set_workspace(&mut self, bytes: usize) -> Result<(), TrtError> {
        let pool = self.number("MemoryPoolType", "kWORKSPACE")?;
        call!(self.object, VBuilderConfig.setMemoryPoolLimit(pool => i32, bytes => usize) -> ());
        Ok(())
    }

    /// How much is tried: 0 builds fastest, 5 searches longest.
    pub fn set_optimization_level(&mut self, level: u8) -> Result<(), TrtError> {
        call!(self.object, VBuilderConfig.setBuilderOptimizationLevel(i32::from(level) => i32) -> ());
        let set = call!(self.object, VBuilderConfig.getBuilderOptimizationLevel() -> i32);
        match set == i32::from(level) {
            true => Ok(()),
            false => Err(self
                .object
                .library()
                .failure(Argument, &format!("optimization level {level} is not from 0 to 5"))),
        }
    }

    /// What the engine will tell of its layers.
    pub fn set_profiling_verbosity(&mut self, verbosity: ProfilingVerbosity) -> Result<(), TrtError> {
        let name = match verbosity {
            ProfilingVerbosity::Names => "kLAYER_NAMES_ONLY",
            ProfilingVerbosity::None => "kNONE",
            ProfilingVerbosity::Detailed => "kDETAILED",
        };
        let number = self.number("ProfilingVerbosity", name)?;
        call!(self.object, VBuilderConfig.setProfilingVerbosity(number => i32) -> ());
        Ok(())
    }

    /// The devices that the engine is for, as `[8, 9]` for compute capability 8.9; TensorRT-RTX alone builds so.
    pub fn set_compute_capabilities(&mut self, capabilities: &[[u32; 2]]) -> Result<(), TrtError> {
        let library = self.object.library().clone();
        let refuse = |what: String| library.failure(Unsupported, &what);
        let n = capabilities.len() as i32;
        if !call!(self.object, VBuilderConfig.setNbComputeCapabilities(n => i32) -> bool) {
            return Err(refuse(format!("cannot build for {n} compute capabilities")));
        }
        for (index, [major, minor]) in capabilities.iter().enumerate() {
            let number = self.number("ComputeCapability", &format!("kSM{major}{minor}"))?;
            let is_set = call!(self.object, VBuilderConfig.setComputeCapability(number => i32, index as i32 => i32) -> bool);
            if !is_set {
                return Err(refuse(format!("cannot build for compute capability {major}.{minor}")));
            }
        }
        Ok(())
    }

    /// Adds a profile: sizes that the engine runs at.
    pub fn add_profile(&mut self, profile: &OptimizationProfile) -> Result<(), TrtError> {
        let object = &profile.object;
        if !call!(object, VOptimizationProfile.isValid() -> bool) {
            return Err(object.library().failure(Argument, "the profile's sizes do not fit together"));
        }
        let index =
            call!(self.object, VBuilderConfig.addOptimizationProfile(object.as_ptr() => *mut c_void) -> i32);
        match index >= 0 {
            true => Ok(()),
            false => Err(object.library().failure(Argument, "the profile does not fit the network")),
        }
    }

    /// Times of tactics from earlier builds, and those of this one; `bytes` of another device or release are refused.
    pub fn set_timing_cache(&mut self, bytes: &[u8]) -> Result<(), TrtError> {
        let library = self.object.library().clone();
        let cache = call!(
            self.object,
            VBuilderConfig.createTimingCache(bytes.as_ptr().cast() => *const c_void, bytes.len() => usize) -> *mut c_void
        );
        let cache = Object::owned(&library, cache, None, Argument, "the timing cache is malformed")?;
        let is_set = call!(
            self.object,
            VBuilderConfig.setTimingCache(cache.as_ptr() => *const c_void, false => bool) -> bool
        );
        if !is_set {
            return Err(library.failure(Argument, "the timing cache is of another device or release"));
        }
        self.timing_cache = Some(TimingCache { object: cache, _unshared: PhantomData });
        Ok(())
    }

    /// The timing cache that was set, with what builds have added to it.
    pub fn timing_cache(&self) -> Option<&TimingCache> {
        self.timing_cache.as_ref()
    }

    /// Sets what builds report to.
    pub fn set_progress_monitor(&mut self, monitor: Arc<dyn ProgressMonitor>) -> Result<(), TrtError> {
        let monitor = MonitorObject::new(self.object.library().tables(), monitor)?;
        call!(self.object, VBuilderConfig.setProgressMonitor(monitor.as_ptr() => *mut c_void) -> ());
        self.monitor = Some(monitor);
        Ok(())
    }

    fn number(&self, enumeration: &str, name: &str) -> Result<i32, TrtError> {
        self.object.library().tables().number(enumeration, name)
    }
}

/// Times of tactics.
#[derive(Debug)]
pub struct TimingCache {
    object: Object,
    _unshared: Unshared,
}

impl TimingCache {
    /// What [`BuilderConfig::set_timing_cache`] takes.
    pub fn serialize(&self) -> Result<HostMemory, TrtError> {
        let memory = call!(self.object, VTimingCache.serialize() -> *mut c_void);
        HostMemory::new(self.object.library(), memory, Build, "cannot serialize the timing cache")
    }
}

/// Sizes that an engine runs at: least, best and most for each input whose sizes are open.
#[derive(Debug)]
pub struct OptimizationProfile {
    object: Object,
    _unshared: Unshared,
}

impl OptimizationProfile {
    pub(crate) fn new(builder: &Arc<Object>) -> Result<OptimizationProfile, TrtError> {
        let profile = call!(builder, VBuilder.createOptimizationProfile() -> *mut c_void);
        let object =
            Object::borrowed(builder.library(), profile, Some(builder), Build, "cannot make a profile")?;
        Ok(OptimizationProfile { object, _unshared: PhantomData })
    }

    /// Sets an input's sizes.
    pub fn set(&mut self, input: &str, min: &[i64], opt: &[i64], max: &[i64]) -> Result<(), TrtError> {
        let library = self.object.library().clone();
        let name = c_string(input)?;
        for (select, sizes) in [("kMIN", min), ("kOPT", opt), ("kMAX", max)] {
            let refuse = || library.failure(Argument, &format!("input '{input}' cannot have sizes {sizes:?}"));
            let dims = Dims::new(sizes).ok_or_else(refuse)?;
            let select = library.tables().number("OptProfileSelector", select)?;
            let is_set = call!(
                self.object,
                VOptimizationProfile.setDimensions(
                    name.as_ptr() => *const c_char,
                    select => i32,
                    std::ptr::from_ref(&dims) => *const Dims
                ) -> bool
            );
            if !is_set {
                return Err(refuse());
            }
        }
        Ok(())
    }
}
