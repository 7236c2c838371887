//! ONNX Runtime for tests: the real one, whose CUDA provider is its processor's, on memory of a fake CUDA driver.
//!
//! All calls go to the library that `FAKE_ONNXRUNTIME` names but those about the provider, whose runs happen when their
//! stream does them. What it is asked for is written to the
//! file that `FAKE_ONNXRUNTIME_REPORT` names, one line of JSON for each provider and each run. Runs fail with what
//! `FAKE_ONNXRUNTIME_FAILURE` says, where it is set.
#![expect(clippy::print_stderr, reason = "a fake tells its tests what went wrong before it aborts")]
#![expect(unsafe_code, reason = "a C library in all but name")]

mod cuda;
mod model;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ffi::{CStr, CString, c_char, c_int};
use std::io::Write;
use std::ptr;
use std::sync::{LazyLock, Mutex, OnceLock, PoisonError};

use libloading::Library;
use ort_sys::{
    OrtAllocatorType, OrtApi, OrtApiBase, OrtCUDAProviderOptionsV2, OrtEnv, OrtErrorCode, OrtIoBinding,
    OrtMemType, OrtMemoryInfo, OrtRunOptions, OrtSession, OrtSessionOptions, OrtStatusPtr, os_char,
};
use serde_json::json;

/// What the CUDA provider knows, of what kiln asks for.
const KNOWN: [&str; 9] = [
    "arena_extend_strategy",
    "cudnn_conv_algo_search",
    "cudnn_conv_use_max_workspace",
    "device_id",
    "enable_cuda_graph",
    "has_user_compute_stream",
    "prefer_nhwc",
    "use_tf32",
    "user_compute_stream",
];

type Options = BTreeMap<String, String>;

#[derive(Default)]
struct State {
    /// The provider's options, by session options and later by session.
    providers: HashMap<usize, Options>,
    /// Bindings whose outputs have no place yet.
    unplaced: HashSet<usize>,
}

static STATE: LazyLock<Mutex<State>> = LazyLock::new(Mutex::default);

fn state<T>(change: impl FnOnce(&mut State) -> T) -> T {
    change(&mut STATE.lock().unwrap_or_else(PoisonError::into_inner))
}

/// The base of the real library, which stays open.
fn real_base() -> &'static OrtApiBase {
    static BASE: OnceLock<usize> = OnceLock::new();
    let address = *BASE.get_or_init(|| {
        let path = std::env::var_os("FAKE_ONNXRUNTIME").expect("FAKE_ONNXRUNTIME names the real library");
        // SAFETY: ONNX Runtime's initialisers have no preconditions.
        let library = Box::leak(Box::new(unsafe { Library::new(path) }.expect("the real library")));
        // SAFETY: the header declares it so.
        let base = unsafe { library.get::<unsafe extern "system" fn() -> *const OrtApiBase>(b"OrtGetApiBase") };
        // SAFETY: as above.
        unsafe { base.expect("ONNX Runtime's entry point")() as usize }
    });
    // SAFETY: the base is static in the real library.
    unsafe { &*(address as *const OrtApiBase) }
}

fn real() -> &'static OrtApi {
    // SAFETY: the release knows the version of the binding, or the process could not have come here.
    unsafe { &*(real_base().GetApi)(ort_sys::ORT_API_VERSION) }
}

/// ONNX Runtime's entry point.
#[unsafe(no_mangle)]
pub extern "system" fn OrtGetApiBase() -> *const OrtApiBase {
    static BASE: LazyLock<OrtApiBase> =
        LazyLock::new(|| OrtApiBase { GetApi: get_api, GetVersionString: real_base().GetVersionString });
    &raw const *BASE
}

unsafe extern "system" fn get_api(version: u32) -> *const OrtApi {
    static API: OnceLock<usize> = OnceLock::new();
    // SAFETY: the real call has no preconditions.
    let real = unsafe { (real_base().GetApi)(version) };
    if real.is_null() {
        return real;
    }
    let address = API.get_or_init(|| {
        // SAFETY: it has at least the functions that the binding knows.
        let mut api = unsafe { ptr::read(real) };
        api.CreateCUDAProviderOptions = create_options;
        api.UpdateCUDAProviderOptions = update_options;
        api.ReleaseCUDAProviderOptions = release_options;
        api.SessionOptionsAppendExecutionProvider_CUDA_V2 = append_provider;
        api.CreateMemoryInfo = create_memory_info;
        api.CreateSession = create_session;
        api.BindOutputToDevice = bind_output_to_device;
        api.ClearBoundOutputs = clear_outputs;
        api.RunWithBinding = run_with_binding;
        api.ReleaseSession = release_session;
        api.ReleaseIoBinding = release_binding;
        Box::leak(Box::new(api)) as *const OrtApi as usize
    });
    *address as *const OrtApi
}

const OK: OrtStatusPtr = OrtStatusPtr(ptr::null_mut());

fn refuse(reason: &str) -> OrtStatusPtr {
    let reason = CString::new(reason).unwrap_or_default();
    // SAFETY: the text is valid for the call.
    unsafe { (real().CreateStatus)(OrtErrorCode::ORT_INVALID_ARGUMENT, reason.as_ptr()) }
}

/// # Safety
///
/// The text ends with a zero and is valid for the call.
unsafe fn text(value: *const c_char) -> String {
    // SAFETY: the caller's.
    unsafe { CStr::from_ptr(value) }.to_string_lossy().into_owned()
}

fn records(provider: &Options) -> bool {
    provider.get("enable_cuda_graph").is_some_and(|on| matches!(on.as_str(), "1" | "true"))
}

fn report(line: &serde_json::Value) {
    if let Some(path) = std::env::var_os("FAKE_ONNXRUNTIME_REPORT") {
        let file = std::fs::OpenOptions::new().create(true).append(true).open(path);
        writeln!(file.expect("a report"), "{line}").expect("a line");
    }
}

unsafe extern "system" fn create_options(out: *mut *mut OrtCUDAProviderOptionsV2) -> OrtStatusPtr {
    // SAFETY: the caller has room for a pointer.
    unsafe { *out = Box::into_raw(Box::<Options>::default()).cast() };
    OK
}

unsafe extern "system" fn update_options(
    options: *mut OrtCUDAProviderOptionsV2,
    keys: *const *const c_char,
    values: *const *const c_char,
    n: usize,
) -> OrtStatusPtr {
    for i in 0..n {
        // SAFETY: both lists have as many texts.
        let (key, value) = unsafe { (text(*keys.add(i)), text(*values.add(i))) };
        if !KNOWN.contains(&key.as_str()) {
            return refuse(&format!("Unknown provider option: \"{key}\"."));
        }
        // SAFETY: the options are those of `create_options`.
        unsafe { &mut *options.cast::<Options>() }.insert(key, value);
    }
    OK
}

unsafe extern "system" fn release_options(options: *mut OrtCUDAProviderOptionsV2) {
    // SAFETY: as above, and they are released once.
    drop(unsafe { Box::from_raw(options.cast::<Options>()) });
}

unsafe extern "system" fn append_provider(
    session_options: *mut OrtSessionOptions,
    options: *const OrtCUDAProviderOptionsV2,
) -> OrtStatusPtr {
    // SAFETY: the options are those of `create_options`.
    let options = unsafe { &*options.cast::<Options>() }.clone();
    report(&json!({ "provider": options }));
    state(|state| state.providers.insert(session_options as usize, options));
    OK
}

unsafe extern "system" fn create_memory_info(
    name: *const c_char,
    kind: OrtAllocatorType,
    id: c_int,
    memory: OrtMemType,
    out: *mut *mut OrtMemoryInfo,
) -> OrtStatusPtr {
    // SAFETY: the caller's.
    let is_device = unsafe { text(name) } == "Cuda";
    let name = if is_device { c"Cpu".as_ptr() } else { name };
    // SAFETY: the caller's.
    unsafe { (real().CreateMemoryInfo)(name, kind, id, memory, out) }
}

unsafe extern "system" fn create_session(
    environment: *const OrtEnv,
    path: *const os_char,
    options: *const OrtSessionOptions,
    out: *mut *mut OrtSession,
) -> OrtStatusPtr {
    let Some(provider) = state(|state| state.providers.remove(&(options as usize))) else {
        // SAFETY: the caller's.
        return unsafe { (real().CreateSession)(environment, path, options, out) };
    };
    // SAFETY: paths are texts but on Windows.
    let path = unsafe { text(path.cast()) };
    let Ok(bytes) = std::fs::read(&path) else { return refuse("no such model") };
    if records(&provider) && !model::is_for_device_alone(&bytes) {
        return refuse("This session cannot use the graph capture feature as requested by the user");
    }
    let bytes = model::for_processor(bytes);
    let folder = path.rsplit_once('/').map_or(".", |(folder, _)| folder);
    let folder = CString::new(folder).unwrap_or_default();
    let key = c"session.model_external_initializers_file_folder_path";
    // SAFETY: the session options are the caller's alone, and the texts are valid for the call.
    let status = unsafe { (real().AddSessionConfigEntry)(options.cast_mut(), key.as_ptr(), folder.as_ptr()) };
    if !status.0.is_null() {
        return status;
    }
    // SAFETY: the caller's, and the bytes are read before the call returns.
    let status = unsafe {
        (real().CreateSessionFromArray)(environment, bytes.as_ptr().cast(), bytes.len(), options, out)
    };
    if status.0.is_null() {
        // SAFETY: the call succeeded.
        state(|state| state.providers.insert(unsafe { *out } as usize, provider));
    }
    status
}

unsafe extern "system" fn bind_output_to_device(
    binding: *mut OrtIoBinding,
    name: *const c_char,
    memory: *const OrtMemoryInfo,
) -> OrtStatusPtr {
    state(|state| state.unplaced.insert(binding as usize));
    // SAFETY: the caller's.
    unsafe { (real().BindOutputToDevice)(binding, name, memory) }
}

unsafe extern "system" fn clear_outputs(binding: *mut OrtIoBinding) {
    state(|state| state.unplaced.remove(&(binding as usize)));
    // SAFETY: the caller's.
    unsafe { (real().ClearBoundOutputs)(binding) }
}

unsafe extern "system" fn run_with_binding(
    session: *mut OrtSession,
    options: *const OrtRunOptions,
    binding: *const OrtIoBinding,
) -> OrtStatusPtr {
    let Some(provider) = state(|state| state.providers.get(&(session as usize)).cloned()) else {
        // SAFETY: the caller's.
        return unsafe { (real().RunWithBinding)(session, options, binding) };
    };
    // SAFETY: the text is the options', and is copied at once.
    let id = unsafe {
        let id = (real().GetRunConfigEntry)(options, c"gpu_graph_id".as_ptr());
        if id.is_null() { "0".to_owned() } else { text(id) }
    };
    report(&json!({ "run": id }));
    if let Ok(reason) = std::env::var("FAKE_ONNXRUNTIME_FAILURE") {
        return refuse(&reason);
    }
    let stream = provider.get("user_compute_stream").and_then(|stream| stream.parse::<usize>().ok());
    let stream = stream.expect("a stream of the caller's");
    // What is made has a size when the call returns.
    if state(|state| state.unplaced.contains(&(binding as usize))) {
        let code = cuda::finish(stream);
        if code != 0 {
            return refuse(&format!("CUDA failure {code}: it failed ; GPU=0 ; hostname=host"));
        }
        // SAFETY: the caller's.
        return unsafe { (real().RunWithBinding)(session, options, binding) };
    }
    let (session, options, binding) = (session as usize, options as usize, binding as usize);
    let run = move || {
        // SAFETY: what a stream has not done yet stays, as it does for the real one.
        let status =
            unsafe { (real().RunWithBinding)(session as *mut _, options as *const _, binding as *const _) };
        if !status.0.is_null() {
            eprintln!("fake ONNX Runtime: a run failed on its stream");
            std::process::abort();
        }
    };
    match cuda::on_stream(stream, Box::new(run)) {
        0 => OK,
        code => refuse(&format!("CUDA failure {code}: it failed ; GPU=0 ; hostname=host")),
    }
}

unsafe extern "system" fn release_session(session: *mut OrtSession) {
    state(|state| {
        state.providers.remove(&(session as usize));
    });
    // SAFETY: the caller's.
    unsafe { (real().ReleaseSession)(session) }
}

unsafe extern "system" fn release_binding(binding: *mut OrtIoBinding) {
    state(|state| state.unplaced.remove(&(binding as usize)));
    // SAFETY: the caller's.
    unsafe { (real().ReleaseIoBinding)(binding) }
}
