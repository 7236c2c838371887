use kiln_kernels::{Element, Error, Factors, Isa, Linear, Serial, Tensors, Threads};
use proptest::prelude::*;

use crate::reference::{Case, Numbers, Stored, error, isas};

const ALL: [Factors; 3] = [Factors::Floats(Element::F32), Factors::Floats(Element::Bf16), Factors::Int8];

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_layer_is_the_sum_by_definition(
        (rows, in_features, out_features) in (1..220usize, 1..400usize, 1..150usize),
        (seed, extras) in (0..1000u64, any::<bool>()),
    ) {
        for isa in isas() {
            for factors in ALL {
                let linear = Linear { rows, in_features, out_features, is_gated: false, factors, isa };
                let case = Case::of_linear(&linear, seed, extras);
                let expected = case.linear_reference(&linear);
                let pool = Threads::new(1 + seed as usize % 3);
                let found = case.linear(&linear, Element::F32, &pool);
                if let Factors::Floats(element) = factors {
                    // What is rounded when it is stored is rounded as it is when it is read.
                    prop_assert!(found == case.linear(&linear, element, &pool));
                }
                let error = error(&expected, &found);
                prop_assert!(error < 3e-6, "{error:e} of {linear:?}");
            }
        }
    }
}

#[test]
fn instruction_sets_agree_in_bf16_to_the_last_bit_of_f32() {
    // AMX sums pairs in an order of its own.
    let all = isas().into_iter().filter(|isa| *isa != Isa::Amx);
    let factors = Element::Bf16.into();
    let linear = |isa| Linear { rows: 13, in_features: 77, out_features: 45, is_gated: false, factors, isa };
    let case = Case::of_linear(&linear(Isa::Portable), 5, false);
    let expected = case.linear(&linear(Isa::Portable), Element::Bf16, &Serial);
    for isa in all {
        assert_eq!(case.linear(&linear(isa), Element::Bf16, &Serial), expected, "{isa}");
    }
}

/// A layer in int8 of more `k` than a block has.
fn in_int8(isa: Isa) -> Linear {
    Linear { rows: 67, in_features: 1301, out_features: 45, is_gated: false, factors: Factors::Int8, isa }
}

#[test]
fn instruction_sets_agree_in_int8_to_the_last_bit() {
    let case = Case::of_linear(&in_int8(Isa::Portable), 5, true);
    let expected = case.linear(&in_int8(Isa::Portable), Element::Bf16, &Serial);
    for isa in isas() {
        assert_eq!(case.linear(&in_int8(isa), Element::Bf16, &Threads::new(2)), expected, "{isa}");
    }
}

#[test]
fn what_is_not_finite_makes_its_row_or_output_nan_in_int8() {
    for isa in isas() {
        let linear = in_int8(isa);
        for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut case = Case::of_linear(&linear, 6, true);
            case.input[2 * linear.in_features + 1300] = value;
            case.weights[40 * linear.in_features + 3] = value;
            let found = case.linear(&linear, Element::F32, &Serial);
            for (at, value) in found.iter().enumerate() {
                let (row, output) = (at / linear.out_features, at % linear.out_features);
                assert_eq!(value.is_nan(), row == 2 || output == 40, "{isa}: {row}, {output}: {value}");
            }
        }
    }
}

#[test]
fn rows_without_numbers_that_int8_can_scale_are_zeros() {
    for isa in isas() {
        let linear = in_int8(isa);
        let mut case = Case::of_linear(&linear, 7, true);
        case.input[..linear.in_features].fill(0.0);
        case.input[linear.in_features..][..linear.in_features].fill(1e-40);
        case.residual = None;
        let found = case.linear(&linear, Element::F32, &Serial);
        let bias = case.bias.expect("a bias");
        assert_eq!(found[..2 * linear.out_features], [bias.clone(), bias].concat(), "{isa}");
    }
}

#[test]
fn more_products_of_int8_than_a_sum_holds_are_refused() {
    let linear = Linear { in_features: (1 << 16) + 1, ..in_int8(Isa::Portable) };
    assert!(matches!(linear.scratch_len(1), Err(Error::Shape(_))));
    // The largest sums that there can be.
    let linear = Linear { rows: 1, in_features: 1 << 16, out_features: 2, ..linear };
    for isa in isas() {
        let linear = Linear { isa, ..linear };
        let mut case = Case::of_linear(&linear, 1, false);
        case.input.fill(1.0);
        case.weights.fill(1.0);
        case.weights[1 << 16..].fill(-1.0);
        assert_eq!(case.linear(&linear, Element::F32, &Serial), [65536.0, -65536.0], "{isa}");
    }
}

#[test]
fn slices_of_other_lengths_are_refused() {
    let (factors, isa) = (Element::F32.into(), Isa::Portable);
    let linear = Linear { rows: 3, in_features: 8, out_features: 5, is_gated: false, factors, isa };
    let stored = Stored::new(Element::F32, &Case::of_linear(&linear, 1, true).weights);
    let scratch = linear.scratch_len(1).expect("a scratch");
    let run = |input: usize, bias: usize, output: usize, scratch: usize| {
        let (mut output, mut scratch) = (vec![0.0; output], vec![0.0; scratch]);
        let (bias, residual) = (vec![0.0; bias], None);
        let input = &vec![0.0; input];
        let tensors =
            Tensors { input, bias: Some(&bias), residual, output: &mut output, scratch: &mut scratch };
        linear.run(&Serial, stored.view(linear.out_features), tensors)
    };
    assert_eq!(run(24, 5, 15, scratch), Ok(()));
    for (refused, what) in [
        (run(23, 5, 15, scratch), "the input"),
        (run(24, 6, 15, scratch), "the bias"),
        (run(24, 5, 16, scratch), "the output"),
        (run(24, 5, 15, scratch - 1), "the scratch"),
    ] {
        assert!(matches!(refused, Err(Error::Length { what: found, .. }) if found == what), "{refused:?}");
    }
    let wider = Linear { in_features: 9, ..linear };
    let mut output = vec![0.0; 15];
    let mut scratch = vec![0.0; wider.scratch_len(1).expect("a scratch")];
    let tensors =
        Tensors { input: &[0.0; 27], bias: None, residual: None, output: &mut output, scratch: &mut scratch };
    let refused = wider.run(&Serial, stored.view(linear.out_features), tensors);
    assert!(matches!(refused, Err(Error::Length { what: "k of the weights", .. })), "{refused:?}");
}

#[test]
fn an_instruction_set_that_the_processor_lacks_is_refused() {
    for isa in Isa::ALL.into_iter().filter(|isa| !isa.is_available()) {
        let factors = Element::F32.into();
        let linear = Linear { rows: 1, in_features: 1, out_features: 1, is_gated: false, factors, isa };
        let stored = Stored::new(Element::F32, &[1.0]);
        let mut scratch = vec![0.0; linear.scratch_len(1).expect("a scratch")];
        let (mut output, input) = ([0.0], [1.0]);
        let tensors =
            Tensors { input: &input, bias: None, residual: None, output: &mut output, scratch: &mut scratch };
        assert_eq!(linear.run(&Serial, stored.view(linear.out_features), tensors), Err(Error::Isa(isa)));
    }
    assert!(Isa::best().is_available() && Isa::Portable.is_available());
}

#[test]
fn names_of_instruction_sets_are_read_as_they_are_written() {
    for isa in Isa::ALL {
        assert_eq!(isa.to_string().parse(), Ok(isa));
    }
    assert_eq!("sse".parse::<Isa>(), Err(Error::IsaName("sse".into())));
}

/// `x / 2 * (1 + erf(x / sqrt(2)))` by the error function's series whose terms have one sign, so that none cancel.
fn gelu(x: f64) -> f64 {
    let z = x / 2f64.sqrt();
    let terms = (1..1000).scan(z, |term, n| {
        *term *= 2.0 * z * z / f64::from(2 * n + 1);
        Some(*term)
    });
    let erf = (z + terms.sum::<f64>()) * (-z * z).exp() * 2.0 / std::f64::consts::PI.sqrt();
    x / 2.0 * (1.0 + erf)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn gated_layers_are_the_products_of_both_halves(
        (rows, in_features, out_features) in (1..220usize, 1..200usize, 1..150usize),
        (seed, extras) in (0..1000u64, any::<bool>()),
    ) {
        for isa in isas() {
            for factors in ALL {
                let both = Linear { rows, in_features, out_features: 2 * out_features, is_gated: false, factors, isa };
                let gated = Linear { out_features, is_gated: true, ..both };
                let mut case = Case::of_linear(&both, seed, extras);
                case.residual = None;
                let sums = case.linear_reference(&both);
                let residual = extras.then(|| Numbers(seed).tensor(rows * out_features));
                let expected: Vec<f64> = (0..rows * out_features)
                    .map(|at| {
                        let start = at / out_features * 2 * out_features + at % out_features;
                        let residual = residual.as_ref().map_or(0.0, |residual| residual[at].into());
                        sums[start] * gelu(sums[start + out_features]) + residual
                    })
                    .collect();
                case.residual = residual;
                let found = case.linear(&gated, Element::F32, &Threads::new(1 + seed as usize % 3));
                let error = error(&expected, &found);
                prop_assert!(error < 2e-5, "{error:e} of {gated:?}");
            }
        }
    }
}

#[test]
fn long_rows_are_summed_in_larger_blocks() {
    for (factors, isa) in ALL.into_iter().flat_map(|factors| isas().into_iter().map(move |isa| (factors, isa)))
    {
        let linear = Linear { rows: 200, in_features: 4200, out_features: 70, is_gated: false, factors, isa };
        let case = Case::of_linear(&linear, 9, true);
        let error =
            error(&case.linear_reference(&linear), &case.linear(&linear, Element::F32, &Threads::new(2)));
        assert!(error < 1e-5, "{isa} {factors:?}: {error:e}");
    }
}

#[test]
fn weights_of_any_size_take_bounded_scratch() {
    let linear = |out_features| Linear {
        rows: 70,
        in_features: 1280,
        out_features,
        is_gated: false,
        factors: Element::F32.into(),
        isa: Isa::best(),
    };
    let scratch = |out_features| linear(out_features).scratch_len(2).expect("a scratch");
    assert!(scratch(10240) < scratch(1280) + (5 << 20), "{} words", scratch(10240));
    // Outputs of several rounds of panels.
    let case = Case::of_linear(&linear(10240), 8, true);
    let found = case.linear(&linear(10240), Element::F32, &Threads::new(2));
    let error = error(&case.linear_reference(&linear(10240)), &found);
    assert!(error < 5e-6, "{error:e}");
}
