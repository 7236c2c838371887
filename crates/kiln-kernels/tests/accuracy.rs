//! What products cost of the accuracy, at a shape of Stable Diffusion 1.5's UNet.

use kiln_kernels::{Algorithm, Conv, ConvShape, Element, Isa, Threads};

use crate::reference::{Case, error};

#[test]
fn errors_stay_below_what_is_stated() {
    let shape = ConvShape::same(1, 640, [12, 12], 32, 3);
    let case = Case::of_conv(&shape, 7, false);
    let expected = case.conv_reference(&shape, Element::F32);
    for (algorithm, products, bound) in [
        (Algorithm::ImplicitGemm, Element::F32, 2e-6),
        (Algorithm::WinogradF2, Element::F32, 4e-6),
        (Algorithm::WinogradF4, Element::F32, 2e-5),
        (Algorithm::ImplicitGemm, Element::Bf16, 1.5e-2),
        (Algorithm::WinogradF2, Element::Bf16, 3e-2),
        (Algorithm::WinogradF4, Element::Bf16, 0.2),
    ] {
        let conv = Conv::new(shape, algorithm, products, Isa::best()).expect("a convolution");
        let error = error(&expected, &case.conv(&conv, &shape, products, &Threads::new(2)));
        assert!(error < bound && error > bound / 20.0, "{algorithm:?} {products:?}: {error:e}");
    }
}
