//! One device and the work on it.

use std::ffi::c_void;
use std::fmt;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cudarc::driver::{CudaContext, CudaEvent, CudaStream, result, sys};

use crate::kernels::Kernels;
use crate::{CudaError, CudaErrorKind, DeviceInfo, DeviceMemory, Driver, PinnedMemory};

/// A device in use.
pub struct Device {
    info: DeviceInfo,
    context: Arc<CudaContext>,
    compute: Arc<CudaStream>,
    copies: Arc<CudaStream>,
    /// The stream on which one thread at a time works beside the others, or records work.
    pub(crate) aside: Mutex<Arc<CudaStream>>,
    pub(crate) kernels: Kernels,
}

/// How much of a device's memory is left, of all processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryInfo {
    /// Bytes that are free.
    pub free_bytes: u64,
    /// All bytes.
    pub total_bytes: u64,
}

/// Bytes of freed memory that a device keeps at hand: what a step of the denoising loop allocates and frees.
const KEPT_BYTES: u64 = 64 << 20;

impl Device {
    /// Opens a device.
    pub fn open(driver: &Driver, ordinal: usize) -> Result<Arc<Device>, CudaError> {
        let info = driver.device(ordinal)?;
        let refuse = |e| CudaError::of_driver(format!("cuda:{ordinal} cannot be used"), e);
        let context = CudaContext::new(ordinal).map_err(refuse)?;
        // SAFETY: `DeviceMemory` is made, used and freed in the order of one stream; the other one writes to memory that
        // others manage.
        unsafe { context.disable_event_tracking() };
        let compute = context.new_stream().map_err(refuse)?;
        let copies = context.new_stream().map_err(refuse)?;
        let aside = Mutex::new(context.new_stream().map_err(refuse)?);
        let kernels = Kernels::load(&context)?;
        if context.has_async_alloc() {
            keep_freed(&context, KEPT_BYTES).map_err(refuse)?;
        }
        Ok(Arc::new(Device { info, context, compute, copies, aside, kernels }))
    }

    /// What it is.
    pub fn info(&self) -> &DeviceInfo {
        &self.info
    }

    /// How much memory is left.
    pub fn memory(&self) -> Result<MemoryInfo, CudaError> {
        let (free, total) = self.context.mem_get_info().map_err(|e| self.error("its memory", e))?;
        Ok(MemoryInfo { free_bytes: free as u64, total_bytes: total as u64 })
    }

    /// Waits for all work and gives memory back that was freed.
    pub fn trim(&self) -> Result<(), CudaError> {
        self.synchronize()?;
        if !self.context.has_async_alloc() {
            return Ok(());
        }
        let refuse = |e| self.error("giving memory back", e);
        // SAFETY: the context's device is one, and so is its pool.
        let pool = unsafe { result::device::get_default_mem_pool(self.context.cu_device()) }.map_err(refuse)?;
        // SAFETY: as above.
        unsafe { result::mem_pool::trim_to(pool, 0) }.map_err(refuse)
    }

    /// New memory, of which the content is anything.
    pub fn allocate(self: &Arc<Device>, n_bytes: usize) -> Result<DeviceMemory, CudaError> {
        // SAFETY: bytes have no invalid values, and `Device::read` alone lets them out.
        match unsafe { self.compute.alloc::<u8>(n_bytes.max(1)) } {
            Ok(slice) => Ok(DeviceMemory::new(slice, self.clone())),
            Err(e) => Err(self.out_of(n_bytes, e)),
        }
    }

    /// New memory with these bytes.
    pub fn upload(self: &Arc<Device>, bytes: &[u8]) -> Result<DeviceMemory, CudaError> {
        let memory = self.allocate(bytes.len())?;
        self.write(&memory, bytes)?;
        Ok(memory)
    }

    /// Copies bytes to the beginning of memory.
    pub fn write(&self, memory: &DeviceMemory, bytes: &[u8]) -> Result<(), CudaError> {
        self.check_room(memory, bytes.len())?;
        self.bind()?;
        // SAFETY: the memory has that many bytes; the driver is done with pageable memory when it returns.
        unsafe { result::memcpy_htod_async(memory.address(), bytes, self.compute.cu_stream()) }
            .map_err(|e| self.error("copying to it", e))
    }

    /// Copies pinned bytes to the beginning of memory.
    pub fn write_pinned(&self, memory: &DeviceMemory, bytes: &PinnedMemory) -> Result<(), CudaError> {
        self.check_room(memory, bytes.n_bytes())?;
        self.bind()?;
        let to = memory.address() as *mut c_void;
        // SAFETY: the memory has room; the copy is done before the bytes can be written or freed.
        unsafe { bytes.copy_to(0..bytes.n_bytes(), to, self.compute_stream()) }?;
        self.synchronize()
    }

    /// Waits for all work and copies bytes from the beginning of memory.
    pub fn read(&self, memory: &DeviceMemory, bytes: &mut [u8]) -> Result<(), CudaError> {
        self.check_room(memory, bytes.len())?;
        self.bind()?;
        // SAFETY: the memory has that many bytes, and `bytes` is not used before the stream is done.
        let copied = unsafe { result::memcpy_dtoh_async(bytes, memory.address(), self.compute.cu_stream()) };
        copied.map_err(|e| self.error("copying from it", e))?;
        self.synchronize()
    }

    /// Copies the beginning of one memory into another, from one offset to another, within the device.
    pub fn copy(
        &self,
        from: (&DeviceMemory, usize),
        to: (&DeviceMemory, usize),
        n_bytes: usize,
    ) -> Result<(), CudaError> {
        self.check_room(from.0, from.1.saturating_add(n_bytes))?;
        self.check_room(to.0, to.1.saturating_add(n_bytes))?;
        self.bind()?;
        let [source, target] = [from, to].map(|(memory, offset)| memory.address() + offset as u64);
        // SAFETY: both have that many bytes from there on.
        unsafe { result::memcpy_dtod_async(target, source, n_bytes, self.compute.cu_stream()) }
            .map_err(|e| self.error("copying on it", e))
    }

    /// Copies bytes from an address of the device that others manage.
    ///
    /// # Safety
    ///
    /// There are that many bytes from `address` on, until work is done that is on the compute stream now.
    pub unsafe fn copy_from(&self, address: u64, to: &DeviceMemory, n_bytes: usize) -> Result<(), CudaError> {
        self.check_room(to, n_bytes)?;
        self.bind()?;
        // SAFETY: the caller's, and there is room.
        unsafe { result::memcpy_dtod_async(to.address(), address, n_bytes, self.compute.cu_stream()) }
            .map_err(|e| self.error("copying on it", e))
    }

    /// Memory of the host to copy from.
    pub fn pin(&self, n_bytes: usize) -> Result<PinnedMemory, CudaError> {
        // SAFETY: bytes have no invalid values.
        let slice = unsafe { self.context.alloc_pinned_with_flags::<u8>(n_bytes.max(1), 0) };
        slice.map(PinnedMemory::new).map_err(|e| {
            CudaError::of_driver(format!("{n_bytes} bytes of the host's memory cannot be pinned"), e)
        })
    }

    /// Waits until all work is done.
    pub fn synchronize(&self) -> Result<(), CudaError> {
        self.compute.synchronize().map_err(|e| self.error("waiting for it", e))
    }

    /// The stream on which all work happens, `cudaStream_t`.
    pub fn compute_stream(&self) -> *mut c_void {
        self.compute.cu_stream().cast()
    }

    /// The stream of [`Device::aside`] and [`Device::record`], `cudaStream_t`, for libraries that have one for good.
    pub fn side_stream(&self) -> *mut c_void {
        self.side().cu_stream().cast()
    }

    /// Lets `work` use the stream beside the others in their order: after all work that was asked for so far, and before
    /// all that is asked for from then on. One thread at a time does.
    pub fn aside<T, E: From<CudaError>>(&self, work: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
        let refuse = |e| self.error("working aside", e);
        let stream = self.side();
        stream.join(&self.compute).map_err(refuse)?;
        let done = work();
        self.compute.join(&stream).map_err(refuse)?;
        done
    }

    pub(crate) fn side(&self) -> MutexGuard<'_, Arc<CudaStream>> {
        self.aside.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts copies beside all other work, without an order among the two: `work` gets the stream for them, `cudaStream_t`.
    pub fn copying<T>(&self, work: impl FnOnce(*mut c_void) -> T) -> Result<(T, Mark), CudaError> {
        self.bind()?;
        let result = work(self.copies.cu_stream().cast());
        let copied = self.copies.record_event(None).map_err(|e| self.error("copying beside its work", e))?;
        Ok((result, Mark(copied)))
    }

    /// Marks the end of the work that was asked for so far.
    pub fn mark(&self) -> Result<Mark, CudaError> {
        self.compute.record_event(None).map(Mark).map_err(|e| self.error("marking its work", e))
    }

    /// Lets work that is asked for from now on wait for a mark.
    pub fn wait_for(&self, mark: &Mark) -> Result<(), CudaError> {
        self.compute.wait(&mark.0).map_err(|e| self.error("waiting for copies", e))
    }

    pub(crate) fn stream(&self) -> &Arc<CudaStream> {
        &self.compute
    }

    /// Lets libraries that this thread calls use the device.
    pub fn bind(&self) -> Result<(), CudaError> {
        self.context.bind_to_thread().map_err(|e| self.error("using it", e))
    }

    pub(crate) fn check_room(&self, memory: &DeviceMemory, n_bytes: usize) -> Result<(), CudaError> {
        match n_bytes <= memory.n_bytes() {
            true => Ok(()),
            false => Err(CudaError::new(
                CudaErrorKind::Other,
                format!("{n_bytes} bytes of memory that has {}", memory.n_bytes()),
            )),
        }
    }

    pub(crate) fn error(&self, what: &str, error: result::DriverError) -> CudaError {
        CudaError::of_driver(format!("cuda:{} ({}): {what}", self.info.ordinal, self.info.name), error)
    }

    fn out_of(&self, n_bytes: usize, error: result::DriverError) -> CudaError {
        let error = self.error("allocating", error);
        match (error.kind(), self.memory()) {
            (CudaErrorKind::OutOfMemory, Ok(memory)) => CudaError::new(
                CudaErrorKind::OutOfMemory,
                format!(
                    "cuda:{} ({}) has no {} MiB more: {memory}",
                    self.info.ordinal,
                    self.info.name,
                    n_bytes.div_ceil(1 << 20)
                ),
            ),
            _ => error,
        }
    }
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.info.fmt(f)
    }
}

/// Without it, all freed memory goes back whenever somebody waits, as happens in each step.
fn keep_freed(context: &CudaContext, mut n_bytes: u64) -> Result<(), result::DriverError> {
    // SAFETY: the context's device is one, and so is its pool; the attribute is a number of 64 bits.
    unsafe {
        let pool = result::device::get_default_mem_pool(context.cu_device())?;
        let attribute = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
        result::mem_pool::set_attribute(pool, attribute, (&raw mut n_bytes).cast())
    }
}

/// A point in the order of a device's work.
#[derive(Debug)]
pub struct Mark(CudaEvent);

impl Mark {
    /// Lets this thread wait until the work before it is done.
    pub fn finish(&self) -> Result<(), CudaError> {
        self.0.synchronize().map_err(|e| CudaError::of_driver("waiting for a device", e))
    }
}

impl PinnedMemory {
    /// Copies a part of it to an address of the host or of the device, in the order of a stream.
    ///
    /// # Safety
    ///
    /// `to` has room for the part, `stream` is a `cudaStream_t` of the device, and this lives and stays as it is until
    /// the stream has done the copy.
    pub unsafe fn copy_to(
        &self,
        part: Range<usize>,
        to: *mut c_void,
        stream: *mut c_void,
    ) -> Result<(), CudaError> {
        let Some(bytes) = self.bytes()?.get(part.clone()) else {
            let reason = format!("bytes {part:?} of {} that are pinned", self.n_bytes());
            return Err(CudaError::new(CudaErrorKind::Other, reason));
        };
        let mut kind = 0_u32;
        // SAFETY: the attribute is a number of 32 bits.
        let asked = unsafe {
            sys::cuPointerGetAttribute(
                (&raw mut kind).cast(),
                sys::CUpointer_attribute::CU_POINTER_ATTRIBUTE_MEMORY_TYPE,
                to as sys::CUdeviceptr,
            )
        };
        // The driver does not know pageable memory of the host.
        if asked.result().is_err() || kind == sys::CUmemorytype::CU_MEMORYTYPE_HOST as u32 {
            // SAFETY: the caller's.
            unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to.cast(), bytes.len()) };
            return Ok(());
        }
        // SAFETY: the caller's.
        unsafe { result::memcpy_htod_async(to as sys::CUdeviceptr, bytes, stream.cast()) }
            .map_err(|e| CudaError::of_driver("copying pinned memory", e))
    }
}
