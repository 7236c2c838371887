use kiln_kernels::{Attention, AttentionTensors, Element, Error, Isa, Parallel, Serial, Threads};
use proptest::prelude::*;

use crate::reference::{Numbers, error, isas, root_mean_square, rounded};

const SHAPE: Attention = Attention {
    batch: 1,
    queries: 8,
    keys: 8,
    heads: 1,
    head_size: 8,
    scale: 0.4,
    is_causal: false,
    products: Element::F32,
    isa: Isa::Portable,
};

struct Case {
    query: Vec<f32>,
    key: Vec<f32>,
    value: Vec<f32>,
}

impl Case {
    fn new(of: &Attention, seed: u64) -> Case {
        let mut numbers = Numbers(seed);
        let width = of.batch * of.heads * of.head_size;
        let [query, key, value] = [of.queries, of.keys, of.keys].map(|n| numbers.tensor(n * width));
        Case { query, key, value }
    }

    /// Scratch and output are full of NaN before, so that what is read before it is written shows.
    fn run(&self, of: &Attention, pool: &dyn Parallel) -> Vec<f32> {
        let mut output = vec![f32::NAN; self.query.len()];
        let mut scratch = vec![f32::NAN; of.scratch_len(pool.lanes()).expect("a scratch")];
        let Case { query, key, value } = self;
        let tensors = AttentionTensors { query, key, value, output: &mut output, scratch: &mut scratch };
        of.run(pool, tensors).expect("a run");
        output
    }

    /// By definition, in f64.
    fn reference(&self, of: &Attention) -> Vec<f64> {
        let width = of.heads * of.head_size;
        let head = |values: &[f32], row: usize, head: usize| -> Vec<f64> {
            let start = row * width + head * of.head_size;
            values[start..start + of.head_size].iter().map(|&x| x.into()).collect()
        };
        let mut output = vec![0.0; self.query.len()];
        for at in 0..of.batch * of.queries * of.heads {
            let (row, h) = (at / of.heads, at % of.heads);
            let (image, i) = (row / of.queries, row % of.queries);
            let query = head(&self.query, row, h);
            let keys: Vec<usize> = (0..if of.is_causal { i + 1 } else { of.keys }).collect();
            let scores: Vec<f64> = keys
                .iter()
                .map(|&key| {
                    let key = head(&self.key, image * of.keys + key, h);
                    query.iter().zip(key).map(|(q, k)| q * k).sum::<f64>() * f64::from(of.scale)
                })
                .collect();
            let maximum = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let weights: Vec<f64> = scores.iter().map(|score| (score - maximum).exp()).collect();
            let sum: f64 = weights.iter().sum();
            for (&key, weight) in keys.iter().zip(weights) {
                let value = head(&self.value, image * of.keys + key, h);
                for (element, x) in value.into_iter().enumerate() {
                    output[row * width + h * of.head_size + element] += weight / sum * x;
                }
            }
        }
        output
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn attention_is_the_mean_by_definition(
        (batch, heads, head_size) in (1..3usize, 1..4usize, 1..150usize),
        (queries, keys) in (1..220usize, 1..420usize),
        (seed, is_causal) in (0..1000u64, any::<bool>()),
    ) {
        let keys = if is_causal { queries } else { keys };
        for isa in isas() {
            for (products, bound) in [(Element::F32, 3e-5), (Element::Bf16, 2e-2)] {
                let scale = 1.0 / (head_size as f32).sqrt();
                let of = Attention { batch, queries, keys, heads, head_size, scale, is_causal, products, isa };
                let case = Case::new(&of, seed);
                let found = case.run(&of, &Threads::new(1 + seed as usize % 3));
                let expected = case.reference(&of);
                let error = match products {
                    Element::F32 => error(&expected, &found),
                    // The largest of many roundings to 8 bits has no near bound.
                    _ => root_mean_square(&expected, &found),
                };
                prop_assert!(error < bound, "{error:e} of {of:?}");
            }
        }
    }
}

#[test]
fn heads_of_every_width_and_several_chunks_of_keys_are_exact() {
    for isa in isas() {
        for (head_size, keys) in [(40, 1024), (64, 777), (80, 300), (160, 257), (512, 600)] {
            let scale = 1.0 / (head_size as f32).sqrt();
            let of = Attention { queries: 130, keys, head_size, heads: 2, scale, isa, ..SHAPE };
            let case = Case::new(&of, 11);
            let error = error(&case.reference(&of), &case.run(&of, &Threads::new(2)));
            assert!(error < 3e-5, "{error:e} of {of:?}");
        }
    }
}

#[test]
fn scores_of_any_size_keep_their_order() {
    for isa in isas() {
        for scale in [0.0, 1e-6, 300.0, -300.0] {
            let of = Attention { queries: 20, keys: 500, head_size: 16, scale, isa, ..SHAPE };
            let case = Case::new(&of, 3);
            let error = error(&case.reference(&of), &case.run(&of, &Serial));
            assert!(error < 2e-3, "{error:e} of {of:?}");
        }
    }
}

#[test]
fn what_an_image_has_beside_it_changes_no_bit() {
    for isa in isas() {
        for products in [Element::F32, Element::Bf16] {
            let one = Attention { queries: 100, keys: 300, head_size: 40, products, isa, ..SHAPE };
            let two = Attention { batch: 2, ..one };
            let case = Case::new(&two, 9);
            let together = case.run(&two, &Threads::new(2));
            let half = |values: &[f32]| values[values.len() / 2..].to_vec();
            let alone = Case { query: half(&case.query), key: half(&case.key), value: half(&case.value) };
            assert_eq!(alone.run(&one, &Serial), half(&together), "{isa}");
        }
    }
}

#[test]
fn nan_reaches_what_it_reaches_by_definition_and_nothing_else() {
    for isa in isas() {
        let of = Attention { queries: 50, keys: 300, head_size: 8, heads: 2, isa, ..SHAPE };
        let clean = Case::new(&of, 1).run(&of, &Serial);
        let with = |change: fn(&mut Case)| {
            let mut case = Case::new(&of, 1);
            change(&mut case);
            case.run(&of, &Serial)
        };
        // Query 3 of head 0, all of head 1, an element of head 0's values.
        let query = with(|case| case.query[3 * 16] = f32::NAN);
        let key = with(|case| case.key[200 * 16 + 8] = f32::NAN);
        let value = with(|case| case.value[200 * 16 + 5] = f32::NAN);
        for (at, clean) in clean.iter().enumerate() {
            let (row, element) = (at / 16, at % 16);
            for (found, is_nan) in
                [(query[at], row == 3 && element < 8), (key[at], element >= 8), (value[at], element == 5)]
            {
                assert!(if is_nan { found.is_nan() } else { found == *clean }, "{isa}, {row}, {element}");
            }
        }
    }
}

#[test]
fn bf16_costs_what_rounding_does() {
    for isa in isas() {
        let of = Attention { queries: 96, keys: 512, head_size: 40, products: Element::Bf16, isa, ..SHAPE };
        let mut case = Case::new(&of, 5);
        let expected = case.reference(&of);
        let whole = error(&expected, &case.run(&of, &Serial));
        [&mut case.key, &mut case.value].into_iter().for_each(|values| *values = rounded(of.products, values));
        assert!(whole > 1e-4 && whole < 4e-2, "{whole:e} with {isa}");
    }
}

#[test]
fn slices_and_shapes_that_do_not_fit_are_refused() {
    let run = |of: Attention, lens: [usize; 4], scratch: usize| {
        let [query, key, value] = [0, 1, 2].map(|i| vec![0.0; lens[i]]);
        let (mut output, mut scratch) = (vec![0.0; lens[3]], vec![0.0; scratch]);
        let (query, key, value) = (query.as_slice(), key.as_slice(), value.as_slice());
        let tensors = AttentionTensors { query, key, value, output: &mut output, scratch: &mut scratch };
        of.run(&Serial, tensors)
    };
    let scratch = SHAPE.scratch_len(1).expect("a scratch");
    assert_eq!(run(SHAPE, [64; 4], scratch), Ok(()));
    let names = ["the query", "the key", "the value", "the output"];
    for (at, name) in names.into_iter().enumerate() {
        let mut lens = [64; 4];
        lens[at] = 63;
        let refused = run(SHAPE, lens, scratch);
        assert!(matches!(refused, Err(Error::Length { what, .. }) if what == name), "{refused:?}");
    }
    assert!(matches!(run(SHAPE, [64; 4], scratch - 1), Err(Error::Length { what: "the scratch", .. })));
    assert!(matches!(run(Attention { keys: 0, ..SHAPE }, [64; 4], scratch), Err(Error::Shape(_))));
    let longer = Attention { keys: 9, is_causal: true, ..SHAPE };
    assert!(matches!(run(longer, [64, 72, 72, 64], scratch), Err(Error::Shape(_))));
    let huge = Attention { keys: usize::MAX / 8, heads: 64, ..SHAPE };
    assert_eq!(huge.scratch_len(1), Err(Error::TooLarge));
}
