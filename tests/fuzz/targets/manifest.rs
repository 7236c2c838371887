//! Manifests of bundles, with the digest that belongs to them, beside files that they may list.
#![no_main]

use kiln_bundle::Size;
use kiln_fuzz::within_a_second;
use kiln_runtime::Request;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|yaml: &str| within_a_second(|| {
    let Ok(bundle) = kiln_fuzz::bundle_of(yaml) else { return };
    let figures = bundle.figures();
    let _ = bundle.controlnet();
    let Ok(pipeline) = kiln_fuzz::pipeline(bundle) else { return };
    for request in [Request::new("a (red:1.2) circle"), Request::new("a").size(Size::square(64)).steps(3)] {
        let _ = pipeline.resolve(&request);
        if let Ok(Some(figures)) = &figures {
            let _ = pipeline.plan(&request, figures).and_then(|plan| plan.within(1 << 30));
        }
    }
}));
