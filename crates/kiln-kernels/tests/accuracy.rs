//! What products cost of the accuracy, with the channels of a shape of Stable Diffusion 1.5's UNet.

use kiln_kernels::{Algorithm, Conv, ConvShape, Element, Factors, Isa, Linear, Threads};

use crate::reference::{Case, error, root_mean_square};

/// Algorithm, products, and bounds of the largest and the root mean square error, relative to the output's root mean
/// square.
const BOUNDS: [(Algorithm, Element, f64, f64); 6] = [
    (Algorithm::ImplicitGemm, Element::F32, 3e-6, 4e-7),
    (Algorithm::WinogradF2, Element::F32, 3e-6, 5e-7),
    (Algorithm::WinogradF4, Element::F32, 2e-5, 2e-6),
    (Algorithm::ImplicitGemm, Element::Bf16, 1.5e-2, 3e-3),
    (Algorithm::WinogradF2, Element::Bf16, 3e-2, 6e-3),
    (Algorithm::WinogradF4, Element::Bf16, 0.1, 1.5e-2),
];

#[test]
fn errors_stay_below_what_is_stated_and_near_it() {
    let shape = ConvShape::same(1, 640, [12, 12], 32, 3);
    let case = Case::of_conv(&shape, 7, false);
    let expected = case.conv_reference(&shape, Element::F32);
    for (algorithm, products, largest, mean) in BOUNDS {
        let conv = Conv::new(shape, algorithm, products, Isa::best()).expect("a convolution");
        let found = case.conv(&conv, &shape, Element::F32, &Threads::new(2));
        for (error, bound) in [(error(&expected, &found), largest), (root_mean_square(&expected, &found), mean)]
        {
            assert!(
                error < bound && error > bound / 5.0,
                "{algorithm:?} {products:?}: {error:e}, not {bound:e}"
            );
        }
    }
}

#[test]
fn errors_of_int8_stay_below_what_is_stated_and_near_it() {
    let linear = Linear {
        rows: 64,
        in_features: 640,
        out_features: 64,
        is_gated: false,
        factors: Factors::Int8,
        isa: Isa::best(),
    };
    let case = Case::of_linear(&linear, 7, false);
    let expected = case.linear_reference(&Linear { factors: Element::F32.into(), ..linear });
    let found = case.linear(&linear, Element::F32, &Threads::new(2));
    for (error, bound) in [(error(&expected, &found), 5e-2), (root_mean_square(&expected, &found), 1e-2)] {
        assert!(error < bound && error > bound / 5.0, "{error:e}, not {bound:e}");
    }
}
