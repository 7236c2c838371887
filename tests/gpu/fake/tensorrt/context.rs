//! `IExecutionContext`.

use std::collections::HashMap;
use std::ffi::{c_char, c_void};
use std::sync::Arc;

use kiln_engine::{ElementType, Tensor, TensorView};
use ndarray::{ArrayD, IxDyn};

use crate::cuda;
use crate::engine::Shared;
use crate::jit::Kernels;
use crate::object::{self, Dims, Facade, die, free, table, text};

#[repr(C)]
pub(crate) struct Context {
    table: *const *const c_void,
    shared: Arc<Shared>,
    shapes: HashMap<String, Vec<usize>>,
    addresses: HashMap<String, usize>,
    memory: (usize, i64),
    kernels: Kernels,
}

impl Context {
    pub(crate) fn facade(shared: Arc<Shared>, kernels: Kernels) -> *mut c_void {
        let table = table(
            "VExecutionContext",
            &[
                ("getOptimizationProfile", profile as *const c_void),
                ("setOptimizationProfileAsync", set_profile as *const c_void),
                ("setInputShape", set_shape as *const c_void),
                ("getTensorShape", shape as *const c_void),
                ("inferShapes", infer_shapes as *const c_void),
                ("updateDeviceMemorySizeForShapes", memory_size as *const c_void),
                ("setDeviceMemoryV2", set_memory as *const c_void),
                ("setTensorAddress", set_address as *const c_void),
                ("isStreamCapturable", is_capturable as *const c_void),
                ("enqueueV3", enqueue as *const c_void),
            ],
        );
        let (shapes, addresses) = (HashMap::new(), HashMap::new());
        object::facade(Box::new(Context { table, shared, shapes, addresses, memory: (0, 0), kernels }), delete)
    }

    fn run(&self, inputs: &HashMap<String, Tensor>) -> Vec<Tensor> {
        let ports = &self.shared.inputs;
        let views: Vec<(&str, TensorView<'_>)> =
            ports.iter().map(|port| (port.name.as_str(), inputs[&port.name].view())).collect();
        match self.shared.model().run(&views) {
            Ok(outputs) => outputs,
            Err(e) => die(&e.to_string()),
        }
    }
}

extern "C" fn delete(context: *mut Facade) {
    free::<Context>(context);
}

extern "C" fn profile(_this: &Context) -> i32 {
    0
}

extern "C" fn set_profile(_this: &Context, index: i32, _stream: *mut c_void) -> bool {
    index == 0
}

extern "C" fn set_shape(this: &mut Context, name: *const c_char, dims: &Dims) -> bool {
    this.shapes.insert(text(name).into(), dims.to_vec());
    true
}

extern "C" fn shape(this: &Context, name: *const c_char) -> Dims {
    let shape = this.shapes.get(text(name));
    shape.map_or(Dims::NONE, |shape| Dims::new(&shape.iter().map(|&n| n as i64).collect::<Vec<_>>()))
}

/// Runs the model with zeros: there is no other way to learn what rten makes.
extern "C" fn infer_shapes(this: &mut Context, _n: i32, _names: *mut *const c_char) -> i32 {
    let zeros = |port: &kiln_engine::Port| {
        let shape = IxDyn(&this.shapes[&port.name]);
        let zeros = match port.element_type {
            ElementType::I64 => Tensor::I64(ArrayD::zeros(shape)),
            _ => Tensor::F32(ArrayD::zeros(shape)),
        };
        (port.name.clone(), zeros)
    };
    let outputs = this.run(&this.shared.inputs.iter().map(zeros).collect());
    let made = this.shared.outputs.iter().zip(outputs);
    let shapes: Vec<_> = made.map(|(port, made)| (port.name.clone(), made.view().shape().to_vec())).collect();
    this.shapes.extend(shapes);
    0
}

extern "C" fn memory_size(this: &Context) -> usize {
    this.shared.plan.arena_bytes as usize
}

extern "C" fn set_memory(this: &mut Context, address: *mut c_void, n_bytes: i64) {
    this.memory = (address as usize, n_bytes);
}

extern "C" fn set_address(this: &mut Context, name: *const c_char, address: *mut c_void) -> bool {
    this.addresses.insert(text(name).into(), address as usize);
    true
}

extern "C" fn is_capturable(_this: &Context, _stream: *mut c_void) -> bool {
    true
}

/// One run, as it was set up when it was asked for.
extern "C" fn enqueue(this: &Context, stream: *mut c_void) -> bool {
    let run = Context {
        table: this.table,
        shared: this.shared.clone(),
        shapes: this.shapes.clone(),
        addresses: this.addresses.clone(),
        memory: this.memory,
        kernels: this.kernels.clone(),
    };
    let mut shapes: Vec<String> = this.shapes.iter().map(|(name, shape)| format!("{name}{shape:?}")).collect();
    shapes.sort();
    if this.kernels.lock().expect("no panic").insert(shapes.join(" ")) {
        cuda::count_compiled();
    }
    cuda::on_stream(stream, Box::new(move || run.execute()))
}

impl Context {
    fn execute(&self) {
        if !self.shared.has_weights() {
            die("an engine runs without its weights");
        }
        let (arena, n_bytes) = self.memory;
        if (n_bytes as u64) < self.shared.plan.arena_bytes {
            die("an engine runs without its memory");
        }
        // What another engine left there is of no use to it.
        cuda::bytes(arena as *mut c_void, n_bytes as usize).fill(0xff);
        let inputs = self.shared.inputs.iter().map(|port| (port.name.clone(), self.read(port))).collect();
        for (port, made) in self.shared.outputs.iter().zip(self.run(&inputs)) {
            let bytes: Vec<u8> = match made.view() {
                TensorView::F32(array) => array.iter().flat_map(|x| x.to_le_bytes()).collect(),
                TensorView::I64(array) => array.iter().flat_map(|x| x.to_le_bytes()).collect(),
                _ => die("rten has no device"),
            };
            cuda::bytes(self.address(&port.name), bytes.len()).copy_from_slice(&bytes);
        }
    }

    fn address(&self, name: &str) -> *mut c_void {
        match self.addresses.get(name) {
            Some(address) => *address as *mut c_void,
            None => die("a tensor has no address"),
        }
    }

    fn read(&self, port: &kiln_engine::Port) -> Tensor {
        let shape = &self.shapes[&port.name];
        let n: usize = shape.iter().product();
        let bytes = cuda::bytes(self.address(&port.name), n * port.element_type.n_bytes());
        match port.element_type {
            ElementType::I64 => {
                let values = bytes.as_chunks().0.iter().map(|bytes| i64::from_le_bytes(*bytes)).collect();
                Tensor::I64(ArrayD::from_shape_vec(IxDyn(shape), values).expect("as many"))
            }
            _ => {
                let values = bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
                Tensor::F32(ArrayD::from_shape_vec(IxDyn(shape), values).expect("as many"))
            }
        }
    }
}
