//! Plugins: objects that the compiler's own virtual calls reach.

use std::num::NonZeroI32;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};

use kiln_trt::plugin::{
    DimensionOperation, DynamicTensorDesc, ExprBuilder, Field, FieldKind, FieldSpec, FieldValue, Plugin,
    PluginCreator, PluginPhase, PluginResult, PluginRun, ShapeExpr, TensorDesc, TensorFormat,
};
use kiln_trt::{AllocationStrategy, Builder, DataType, Runtime, TrtErrorKind};

use super::library::{RELEASES, Release, Stub};
use super::run::stream;

/// What all plugins of a test tell.
#[derive(Default)]
struct Told {
    lines: Mutex<Vec<String>>,
    n_alive: AtomicUsize,
    broken: Mutex<Option<&'static str>>,
}

impl Told {
    fn tell(&self, line: String) {
        self.lines.lock().unwrap().push(line);
    }

    fn take(&self) -> Vec<String> {
        std::mem::take(&mut *self.lines.lock().unwrap())
    }

    /// Fails or panics where the test wants it.
    fn check(&self, method: &str) -> PluginResult<()> {
        match *self.broken.lock().unwrap() {
            Some("panic") => panic!("the plugin is broken"),
            Some(broken) if broken == method => Err("the plugin is unwell".into()),
            _ => Ok(()),
        }
    }
}

struct Creator(Arc<Told>);

impl PluginCreator for Creator {
    fn name(&self) -> &str {
        "OwnAttention"
    }

    fn version(&self) -> &str {
        "3"
    }

    fn namespace(&self) -> &str {
        "kiln"
    }

    fn fields(&self) -> Vec<FieldSpec> {
        let spec = |name: &str, kind| FieldSpec { name: name.into(), kind };
        vec![spec("heads", FieldKind::I32), spec("scale", FieldKind::F32), spec("mode", FieldKind::Text)]
    }

    fn create(&self, layer: &str, fields: &[Field], phase: PluginPhase) -> PluginResult<Box<dyn Plugin>> {
        let fields: Vec<_> = fields.iter().map(|field| format!("{} {:?}", field.name, field.value)).collect();
        self.0.tell(format!("create '{layer}' {phase:?}: {}", fields.join(", ")));
        self.0.check("create")?;
        Ok(Own::boxed(&self.0))
    }
}

struct Own(Arc<Told>);

impl Own {
    fn boxed(told: &Arc<Told>) -> Box<Own> {
        told.n_alive.fetch_add(1, SeqCst);
        Box::new(Own(told.clone()))
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        self.0.n_alive.fetch_sub(1, SeqCst);
    }
}

impl Plugin for Own {
    fn clone_plugin(&self) -> Box<dyn Plugin> {
        Own::boxed(&self.0)
    }

    fn n_outputs(&self) -> usize {
        1
    }

    fn output_types(&self, inputs: &[DataType]) -> PluginResult<Vec<DataType>> {
        Ok(inputs.to_vec())
    }

    fn output_shapes<'e>(
        &self,
        inputs: &[Vec<ShapeExpr<'e>>],
        shape_inputs: &[Vec<ShapeExpr<'e>>],
        exprs: &ExprBuilder<'e>,
    ) -> PluginResult<Vec<Vec<ShapeExpr<'e>>>> {
        self.0.check("output_shapes")?;
        assert!(shape_inputs.is_empty());
        let [batch, tokens] = inputs[0][..] else { return Err("two sizes".into()) };
        assert_eq!((batch.constant()?, tokens.constant()?), (None, Some(7)));
        let doubled = exprs.operation(DimensionOperation::Prod, tokens, exprs.constant(2)?)?;
        let halved = exprs.operation(DimensionOperation::CeilDiv, batch, exprs.constant(2)?)?;
        Ok(vec![vec![halved, doubled]])
    }

    fn supports_format(&self, tensors: &[DynamicTensorDesc], n_inputs: usize) -> bool {
        let desc = tensors.last().unwrap().desc();
        n_inputs == 1 && desc.dtype() == DataType::F16 && desc.format() == TensorFormat::Linear
    }

    fn configure(&self, inputs: &[DynamicTensorDesc], outputs: &[DynamicTensorDesc]) -> PluginResult<()> {
        let (input, output) = (&inputs[0], &outputs[0]);
        self.0.tell(format!(
            "configure {:?} {:?} {:?} {:?} to {:?}",
            input.desc().sizes(),
            input.min(),
            input.opt(),
            input.max(),
            output.max()
        ));
        Ok(())
    }

    fn workspace_size(&self, inputs: &[DynamicTensorDesc], _outputs: &[DynamicTensorDesc]) -> usize {
        inputs[0].max().iter().product::<i64>() as usize * 2
    }

    fn tactics(&self) -> Vec<NonZeroI32> {
        [5, 9].map(|tactic| NonZeroI32::new(tactic).unwrap()).into()
    }

    fn timing_cache_id(&self) -> Option<String> {
        Some("heads=8".into())
    }

    fn set_tactic(&self, tactic: i32) -> PluginResult<()> {
        self.0.tell(format!("tactic {tactic}"));
        Ok(())
    }

    fn on_shape_change(&self, inputs: &[TensorDesc], outputs: &[TensorDesc]) -> PluginResult<()> {
        self.0.tell(format!("sizes {:?} to {:?}", inputs[0].sizes(), outputs[0].sizes()));
        Ok(())
    }

    unsafe fn enqueue(&self, run: &PluginRun<'_>) -> PluginResult<()> {
        self.0.check("enqueue")?;
        let addresses = (run.input_addresses[0].addr(), run.output_addresses[0].addr(), run.workspace.addr());
        let counts = (run.inputs.len(), run.outputs.len());
        self.0.tell(format!("run {counts:?} {addresses:?} on {}", run.stream.as_raw().addr()));
        Ok(())
    }

    fn fields(&self) -> Vec<Field> {
        let field = |name: &str, value| Field { name: name.into(), value };
        vec![
            field("heads", FieldValue::I32(vec![8])),
            field("scales", FieldValue::F32(vec![0.5, 0.25])),
            field("seed", FieldValue::I64(vec![1 << 40])),
            field("exact", FieldValue::F64(vec![0.1])),
            field("small", FieldValue::I8(vec![-1, 2])),
            field("short", FieldValue::I16(vec![-300])),
            field("mode", FieldValue::Text("full".into())),
            field("table", FieldValue::Bytes(vec![0, 255])),
        ]
    }
}

#[test]
fn a_plugin_is_built_loaded_and_run() {
    for release in RELEASES {
        let stub = Stub::new(release);
        let told = Arc::new(Told::default());
        let registration = stub.library.register_plugin(Creator(told.clone())).unwrap();
        let builder = Builder::new(&stub.library).unwrap();
        let network = builder.parse(&stub.model("plugin.onnx")).unwrap();
        assert_eq!(told.n_alive.load(SeqCst), 1);
        let config = builder.config().unwrap();
        let plan = builder.build(&network, &config).unwrap();
        let lines = told.take();
        let created = "create '/mid/Own' Build: heads I32([8]), scale F32([0.125]), mode Text(\"full\")";
        let configured = "configure [-1, 7] [1, 7] [2, 7] [4, 7] to [4, 14]";
        assert_eq!(lines, [created, configured]);
        let log: Vec<_> = stub.log().lines().filter(|line| line.contains("lugin")).map(str::to_owned).collect();
        let expected = [
            "IPluginRegistry.registerCreator('PLUGIN CREATOR_V3ONE 1.0', 'kiln', 0)",
            "IParser#1.parseFromFile('plugin.onnx', 2)",
            "plugin PLUGIN 1.0, PLUGIN_V3ONE_CORE 1.0, PLUGIN_V3ONE_BUILD 1.0, PLUGIN_V3ONE_RUNTIME 1.0, \
             'OwnAttention' '3' 'kiln'",
            "plugin output type 0 kHALF",
            "plugin output shape 2 2 14",
            "plugin formats true false true",
            "plugin configured 0, workspace 56, tactics 2 0 5 9, 'heads=8', limit 100, null",
        ];
        assert_eq!(log, expected);
        drop((network, builder, config));
        assert_eq!(told.n_alive.load(SeqCst), 0);

        let engine = Runtime::new(&stub.library).unwrap().deserialize(plan.as_bytes()).unwrap();
        let mut context = engine.create_context(AllocationStrategy::Static).unwrap();
        assert_eq!(told.n_alive.load(SeqCst), 2);
        drop(registration);
        stub.log();
        // SAFETY: the stub and the plugin do not use addresses.
        unsafe { context.enqueue(stream(256)) }.unwrap();
        let lines = told.take();
        let created = "create 'loaded' Runtime: heads I32([8]), scales F32([0.5, 0.25]), seed I64([1099511627776]), \
                       exact F64([0.1]), small I8([-1, 2]), short I16([-300]), mode Text(\"full\"), \
                       table Bytes([0, 255])";
        let ran = "run (1, 1) (4096, 8192, 12288) on 256";
        assert_eq!(lines, [created, "tactic 5", "sizes [2, 7] to [2, 14]", ran]);
        drop((context, engine));
        assert_eq!(told.n_alive.load(SeqCst), 0);
    }
}

#[test]
fn a_plugin_that_fails_or_panics_fails_what_asked_it() {
    for release in RELEASES {
        for broken in ["create", "output_shapes", "enqueue", "panic"] {
            let stub = Stub::new(release);
            let told = Arc::new(Told::default());
            let _registration = stub.library.register_plugin(Creator(told.clone())).unwrap();
            let builder = Builder::new(&stub.library).unwrap();
            let parse = || builder.parse(&stub.model("plugin.onnx"));
            let reason = if broken == "panic" { "it panicked" } else { "the plugin is unwell" };
            let (error, what) = match broken {
                "create" => {
                    *told.broken.lock().unwrap() = Some(broken);
                    (parse().unwrap_err(), "cannot be made")
                }
                "output_shapes" | "panic" => {
                    let network = parse().unwrap();
                    *told.broken.lock().unwrap() = Some(broken);
                    let built = builder.build(&network, &builder.config().unwrap());
                    (built.unwrap_err(), "cannot tell its outputs' sizes")
                }
                _ => {
                    let network = parse().unwrap();
                    let plan = builder.build(&network, &builder.config().unwrap()).unwrap();
                    *told.broken.lock().unwrap() = Some(broken);
                    let engine = Runtime::new(&stub.library).unwrap().deserialize(plan.as_bytes()).unwrap();
                    let mut context = engine.create_context(AllocationStrategy::Static).unwrap();
                    // SAFETY: the stub and the plugin do not use addresses.
                    (unsafe { context.enqueue(stream(256)) }.unwrap_err(), "cannot run")
                }
            };
            let expected = format!("plugin 'OwnAttention' {what}: {reason}");
            assert!(error.to_string().ends_with(&expected), "{broken}: {error}");
            assert_eq!(told.n_alive.load(SeqCst), 0, "{broken}");
        }
    }
}

#[test]
fn a_creator_is_in_the_registry_until_its_registration_is_dropped() {
    for release in RELEASES {
        let stub = Stub::new(release);
        let _builder = Builder::new(&stub.library).unwrap();
        stub.log();
        let told = Arc::new(Told::default());
        drop(stub.library.register_plugin(Creator(told.clone())).unwrap());
        let expected = "\
IPluginRegistry.registerCreator('PLUGIN CREATOR_V3ONE 1.0', 'kiln', 0)
IPluginRegistry.deregisterCreator()
";
        assert_eq!(stub.log(), expected);
        stub.fail("registerCreator");
        let error = stub.library.register_plugin(Creator(told.clone())).unwrap_err();
        assert_eq!(error.kind(), TrtErrorKind::Plugin);
        assert!(error.to_string().contains("plugin 'OwnAttention' cannot be registered: IStub"), "{error}");
        assert!(!stub.log().contains("deregister"));
    }
}

/// What the parser of TensorRT-RTX does before it adds a plugin.
#[test]
fn tensorrt_rtx_is_found_by_name_once_it_has_plugins() {
    let stub = Stub::alone(Release::Rtx);
    let registration = stub.library.register_plugin(Creator(Arc::default())).unwrap();
    // SAFETY: the stub has no initialisers with preconditions.
    let found = unsafe { libloading::Library::new("libtensorrt_rtx.so") }.unwrap();
    // SAFETY: only that the symbol is there matters: no other library has it.
    assert!(unsafe { found.get::<*const ()>("stubLog") }.is_ok());
    drop((found, registration));
}
