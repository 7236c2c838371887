use kiln_kernels::{Error, GroupNorm, Isa, NormTensors, Parallel, Serial, Threads};
use proptest::prelude::*;

use crate::reference::{Numbers, error, isas};

const SHAPE: GroupNorm = GroupNorm {
    batch: 1,
    channels: 8,
    plane: 9,
    groups: 2,
    epsilon: 1e-5,
    has_silu: false,
    isa: Isa::Portable,
};

fn run(of: &GroupNorm, input: &[f32], [scale, shift]: [&[f32]; 2], pool: &dyn Parallel) -> Vec<f32> {
    let mut output = vec![f32::NAN; input.len()];
    of.run(pool, NormTensors { input, scale, shift, output: &mut output }).expect("a run");
    output
}

/// By definition, in f64.
fn reference(of: &GroupNorm, input: &[f32], [scale, shift]: [&[f32]; 2]) -> Vec<f64> {
    let per_group = of.channels / of.groups * of.plane;
    let normalised = input.chunks(per_group).enumerate().flat_map(|(group, values)| {
        let values: Vec<f64> = values.iter().map(|&x| x.into()).collect();
        let mean = values.iter().sum::<f64>() / values.len() as f64;
        let variance = values.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / values.len() as f64;
        let deviation = (variance + f64::from(of.epsilon)).sqrt();
        values.into_iter().enumerate().map(move |(i, x)| {
            let channel = (group * per_group + i) / of.plane % of.channels;
            let y = (x - mean) / deviation * f64::from(scale[channel]) + f64::from(shift[channel]);
            if of.has_silu { y / (1.0 + (-y).exp()) } else { y }
        })
    });
    normalised.collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_norm_is_what_it_is_by_definition(
        (batch, groups, per_group, plane) in (1..3usize, 1..6usize, 1..6usize, 1..2500usize),
        (seed, has_silu, offset) in (0..1000u64, any::<bool>(), -20.0..20f32),
    ) {
        for isa in isas() {
            let of = GroupNorm { batch, channels: groups * per_group, plane, groups, has_silu, isa, ..SHAPE };
            let mut numbers = Numbers(seed);
            let input: Vec<f32> =
                numbers.tensor(batch * of.channels * plane).iter().map(|x| x + offset).collect();
            let (scale, shift) = (numbers.tensor(of.channels), numbers.tensor(of.channels));
            let found = run(&of, &input, [&scale, &shift], &Threads::new(1 + seed as usize % 3));
            let expected = reference(&of, &input, [&scale, &shift]);
            // Few elements may be so alike that epsilon magnifies their rounding.
            let bound = if per_group * plane < 64 { 1e-2 } else { 1e-4 };
            let error = error(&expected, &found);
            prop_assert!(error < bound, "{error:e} of {of:?}");
        }
    }
}

#[test]
fn elements_far_from_zero_keep_their_variance() {
    for isa in isas() {
        let of = GroupNorm { plane: 4000, isa, ..SHAPE };
        let input: Vec<f32> = Numbers(4).tensor(8 * 4000).iter().map(|x| x + 1000.0).collect();
        let [scale, shift] = [[1.0; 8], [0.0; 8]];
        let error =
            error(&reference(&of, &input, [&scale, &shift]), &run(&of, &input, [&scale, &shift], &Serial));
        assert!(error < 2e-4, "{error:e} with {isa}");
    }
}

#[test]
fn activations_of_every_size_are_right() {
    for isa in isas() {
        let of = GroupNorm { channels: 1, groups: 1, plane: 401, has_silu: true, isa, ..SHAPE };
        let input: Vec<f32> = (-200..=200).map(|x| x as f32).collect();
        for scale in [1.0, 100.0] {
            let expected = reference(&of, &input, [&[scale], &[0.0]]);
            let error = error(&expected, &run(&of, &input, [&[scale], &[0.0]], &Serial));
            assert!(error < 1e-6, "{error:e} with {isa}");
        }
    }
}

#[test]
fn nan_reaches_its_group_alone() {
    for isa in isas() {
        let of = GroupNorm { has_silu: true, isa, ..SHAPE };
        let mut input = Numbers(2).tensor(8 * 9);
        input[3] = f32::NAN;
        let found = run(&of, &input, [&[1.0; 8], &[0.0; 8]], &Serial);
        assert!(found[..36].iter().all(|x| x.is_nan()) && found[36..].iter().all(|x| x.is_finite()), "{isa}");
    }
}

#[test]
fn shapes_and_slices_that_do_not_fit_are_refused() {
    let run = |of: GroupNorm, len: usize, channels: usize| {
        let (input, scale, mut output) = (vec![0.0; len], vec![0.0; channels], vec![0.0; len]);
        of.run(&Serial, NormTensors { input: &input, scale: &scale, shift: &scale, output: &mut output })
    };
    assert_eq!(run(SHAPE, 72, 8), Ok(()));
    assert!(matches!(run(SHAPE, 71, 8), Err(Error::Length { what: "the input", .. })));
    assert!(matches!(run(SHAPE, 72, 7), Err(Error::Length { what: "the scale", .. })));
    assert!(matches!(run(GroupNorm { groups: 3, ..SHAPE }, 72, 8), Err(Error::Shape(_))));
    assert!(matches!(run(GroupNorm { groups: 0, ..SHAPE }, 72, 8), Err(Error::Shape(_))));
    assert_eq!(run(GroupNorm { plane: usize::MAX / 4, ..SHAPE }, 72, 8), Err(Error::TooLarge));
}
