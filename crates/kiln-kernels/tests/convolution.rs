use kiln_kernels::{Algorithm, Conv, ConvShape, Element, Error, Isa, Serial, Threads};
use proptest::prelude::*;

use crate::reference::{Case, error, isas, rounded};

/// Algorithms, with the largest error relative to the root mean square of the output in f32.
const ALGORITHMS: [(Algorithm, f64); 3] =
    [(Algorithm::ImplicitGemm, 3e-6), (Algorithm::WinogradF2, 6e-6), (Algorithm::WinogradF4, 3e-5)];

/// Elements of weights and products, with the largest error of F(2x2).
const ELEMENTS: [(Element, Element, f64); 3] = [
    (Element::Bf16, Element::F32, 6e-6),
    (Element::F32, Element::Bf16, 0.1),
    (Element::Bf16, Element::Bf16, 0.1),
];

fn any_3x3() -> impl Strategy<Value = ConvShape> {
    let sizes = (1..3usize, 1..150usize, [1..20usize, 1..40usize], 1..70usize, 1..4usize);
    (sizes, [0..3usize, 0..3usize, 0..3usize, 0..3usize]).prop_filter_map("an output", |(sizes, padding)| {
        let (batch, in_channels, size, out_channels, upsampling) = sizes;
        let shape =
            ConvShape { padding, upsampling, ..ConvShape::same(batch, in_channels, size, out_channels, 3) };
        shape.output_size().is_ok().then_some(shape)
    })
}

fn any_shape() -> impl Strategy<Value = ConvShape> {
    let pair = |range: std::ops::Range<usize>| [range.clone(), range];
    let sizes = (1..3usize, 1..40usize, pair(1..24), 1..70usize);
    let rest = (pair(1..5), pair(1..4), pair(1..3), 1..3usize, [0..3usize, 0..3usize, 0..3usize, 0..3usize]);
    (sizes, rest).prop_filter_map("an output", |(sizes, (kernel, stride, dilation, upsampling, padding))| {
        let (batch, in_channels, size, out_channels) = sizes;
        let shape =
            ConvShape { batch, in_channels, size, upsampling, out_channels, kernel, stride, dilation, padding };
        shape.output_size().is_ok().then_some(shape)
    })
}

#[track_caller]
fn check(shape: ConvShape, algorithm: Algorithm, bound: f64, seed: u64) {
    let case = Case::of_conv(&shape, seed, seed.is_multiple_of(2));
    let expected = case.conv_reference(&shape, Element::F32);
    for isa in isas() {
        let conv = Conv::new(shape, algorithm, Element::F32, isa).expect("a convolution");
        let lanes = 1 + seed as usize % 3;
        let error = error(&expected, &case.conv(&conv, &shape, Element::F32, &Threads::new(lanes)));
        assert!(error < bound, "{isa} {algorithm:?} {lanes} lanes: {error:e} of {shape:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_3x3_of_stride_1_is_the_sum_by_definition(shape in any_3x3(), seed in 0..1000u64) {
        for (algorithm, bound) in ALGORITHMS {
            check(shape, algorithm, bound, seed);
        }
    }

    #[test]
    fn every_convolution_is_the_sum_by_definition(shape in any_shape(), seed in 0..1000u64) {
        check(shape, Algorithm::ImplicitGemm, ALGORITHMS[0].1, seed);
    }

    #[test]
    fn products_of_bf16_are_the_sum_of_rounded_factors(shape in any_shape(), seed in 0..1000u64) {
        let case = Case::of_conv(&shape, seed, true);
        let expected = case.conv_reference(&shape, Element::Bf16);
        for isa in isas() {
            let conv = Conv::new(shape, Algorithm::ImplicitGemm, Element::Bf16, isa).expect("a convolution");
            let error = error(&expected, &case.conv(&conv, &shape, Element::F32, &Threads::new(2)));
            prop_assert!(error < 3e-6, "{isa}: {error:e} of {shape:?}");
        }
    }

    #[test]
    fn winograd_reads_weights_of_either_element_and_multiplies_in_either(shape in any_3x3(), seed in 0..1000u64) {
        let case = Case::of_conv(&shape, seed, true);
        let weights = rounded(Element::Bf16, &case.weights);
        let expected = Case { weights, ..Case::of_conv(&shape, seed, true) }.conv_reference(&shape, Element::F32);
        for isa in isas() {
            for (storage, products, bound) in ELEMENTS {
                let conv = Conv::new(shape, Algorithm::WinogradF2, products, isa).expect("a convolution");
                let error = error(&expected, &case.conv(&conv, &shape, storage, &Threads::new(2)));
                prop_assert!(error < bound, "{isa} {storage:?} {products:?}: {error:e} of {shape:?}");
            }
        }
    }
}

#[test]
fn blocks_of_many_tiles_are_each_lane_s_own_and_few_are_shared() {
    // 1024 tiles of F(4x4), more than 3 x 96 for each of two lanes; and 12.
    for size in [[128, 128], [12, 16]] {
        for (algorithm, bound) in ALGORITHMS {
            check(ConvShape::same(1, 9, size, 40, 3), algorithm, bound, 1);
        }
    }
}

#[test]
fn sums_go_on_over_blocks_of_channels() {
    for (algorithm, bound) in ALGORITHMS {
        check(ConvShape::same(1, 300, [6, 7], 33, 3), algorithm, bound, 2);
    }
}

/// Outputs that a NaN at the input's middle reaches by definition.
fn reached(shape: &ConvShape, isa: Isa, algorithm: Algorithm, value: f32) -> (Vec<f32>, Vec<f64>) {
    let mut case = Case::of_conv(shape, 3, false);
    let middle = case.input.len() / 2;
    case.input[middle] = value;
    let conv = Conv::new(*shape, algorithm, Element::F32, isa).expect("a convolution");
    (case.conv(&conv, shape, Element::F32, &Serial), case.conv_reference(shape, Element::F32))
}

#[test]
fn what_is_not_finite_reaches_every_output_that_it_does_by_definition() {
    let shape = ConvShape::same(1, 5, [18, 19], 34, 3);
    for isa in isas() {
        for (algorithm, _) in ALGORITHMS {
            for value in [f32::NAN, f32::INFINITY] {
                let (found, expected) = reached(&shape, isa, algorithm, value);
                let lost = found
                    .iter()
                    .zip(&expected)
                    .filter(|(found, expected)| found.is_finite() && !expected.is_finite());
                assert_eq!(lost.count(), 0, "{isa} {algorithm:?} {value}");
                // What is far from it stays finite.
                assert!(
                    found[0].is_finite() && found[found.len() - 1].is_finite(),
                    "{isa} {algorithm:?} {value}"
                );
            }
        }
    }
}

#[test]
fn denormals_are_kept() {
    let shape = ConvShape::same(1, 3, [9, 9], 4, 1);
    for isa in isas() {
        let mut case = Case::of_conv(&shape, 4, false);
        case.input.fill(f32::from_bits(1000));
        case.weights.fill(1.0);
        let conv = Conv::new(shape, Algorithm::ImplicitGemm, Element::F32, isa).expect("a convolution");
        let found = case.conv(&conv, &shape, Element::F32, &Serial);
        assert!(found.iter().all(|x| x.to_bits() == 3000), "{isa}: {:e}", found[0]);
    }
}

#[test]
fn winograd_is_for_3x3_of_stride_1() {
    let strided = ConvShape { stride: [2, 2], ..ConvShape::same(1, 4, [8, 8], 4, 3) };
    for shape in [strided, ConvShape::same(1, 4, [8, 8], 4, 1)] {
        for algorithm in [Algorithm::WinogradF2, Algorithm::WinogradF4] {
            let refused = Conv::new(shape, algorithm, Element::F32, Isa::Portable);
            assert!(matches!(refused, Err(Error::Algorithm(_))), "{refused:?}");
        }
    }
}

#[test]
fn sizes_that_overflow_or_are_empty_are_refused() {
    let huge = usize::MAX / 2;
    let same = ConvShape::same(1, 4, [8, 8], 4, 3);
    for (shape, expected) in [
        (ConvShape { size: [huge, huge], ..same }, Error::TooLarge),
        (ConvShape { padding: [usize::MAX; 4], ..same }, Error::TooLarge),
        (ConvShape { dilation: [usize::MAX; 2], ..same }, Error::TooLarge),
        (ConvShape { in_channels: huge, ..same }, Error::TooLarge),
    ] {
        let refused = Conv::new(shape, Algorithm::ImplicitGemm, Element::F32, Isa::Portable);
        assert_eq!(refused.err(), Some(expected), "{shape:?}");
    }
    for algorithm in ALGORITHMS.map(|(algorithm, _)| algorithm) {
        let conv = Conv::new(same, algorithm, Element::F32, Isa::Portable).expect("a convolution");
        assert_eq!(conv.scratch_len(usize::MAX), Err(Error::TooLarge), "{algorithm:?}");
    }
    for shape in [ConvShape { batch: 0, ..same }, ConvShape { size: [1, 1], padding: [0; 4], ..same }] {
        let refused = Conv::new(shape, Algorithm::ImplicitGemm, Element::F32, Isa::Portable);
        assert!(matches!(refused, Err(Error::Shape(_))), "{refused:?}");
    }
}

#[test]
fn images_of_more_than_a_strip_are_computed_in_several() {
    let shape = ConvShape::same(3, 448, [64, 48], 2, 3);
    let case = Case::of_conv(&shape, 11, true);
    for (element, words) in [(Element::F32, 448), (Element::Bf16, 224)] {
        let expected = case.conv_reference(&shape, element);
        for isa in isas() {
            let conv = Conv::new(shape, Algorithm::ImplicitGemm, element, isa).expect("a convolution");
            let scratch = conv.scratch_len(1).expect("a scratch");
            assert!(scratch < 3 * 66 * 50 * words, "the copy is not of all lines: {scratch}");
            let error = error(&expected, &case.conv(&conv, &shape, Element::F32, &Threads::new(2)));
            assert!(error < 6e-6, "{isa} {element:?}: {error:e}");
        }
    }
}
