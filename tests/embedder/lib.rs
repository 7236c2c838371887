//! What the tests of this program share: a pipeline of the bundle that `KILN_TEST_BUNDLE` names.

use std::fmt::Debug;

use kiln_runtime::{Bundle, Libraries, MemoryOptions, Pipeline, Pool, Request, Size};

/// The bundle, which `kiln compile models/shapes` makes.
pub fn bundle() -> Bundle {
    let path = std::env::var("KILN_TEST_BUNDLE").expect("KILN_TEST_BUNDLE names a bundle of models/shapes");
    Bundle::open(path).expect("a bundle")
}

/// A pipeline that shares a pool, on ONNX Runtime from where kiln keeps it.
pub fn pipeline(pool: &Pool, memory: MemoryOptions) -> Pipeline {
    let libraries = Libraries::new().from_environment();
    let builder = Pipeline::builder(bundle()).libraries(libraries).threads(2).pool(pool).memory(memory);
    builder.build().expect("a pipeline")
}

/// A small picture in a few steps.
pub fn request() -> Request {
    Request::new("a red circle").seed(1).steps(4).size(Size::square(64))
}

/// What threads need of a type, and logs.
pub fn assert_shareable<T: Send + Debug>() {}
