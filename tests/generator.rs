//! Random numbers against torch's.

use kiln_runtime::generator::TorchCpuGenerator;
use ndarray::ArrayD;
use proptest::prelude::*;

use crate::support::References;

#[track_caller]
fn assert_same_bits(what: &str, found: &ArrayD<f32>, expected: &ArrayD<f32>) {
    assert_eq!(found.shape(), expected.shape(), "{what}");
    for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
        assert_eq!(found.to_bits(), expected.to_bits(), "{what}: element {i} is {found:e}, not {expected:e}");
    }
}

#[test]
fn randn_is_torchs_bit_for_bit() {
    let references = References::open("torch_randn.safetensors");
    let names = references.names();
    assert!(!names.is_empty());
    for name in names {
        let expected = references.f32(&name);
        let parts: Vec<&str> = name.split('.').collect();
        let mut generator = TorchCpuGenerator::new(parts[1].parse().expect("a seed"));
        if parts[2] == "second" {
            generator.randn(expected.shape());
        }
        assert_same_bits(&name, &generator.randn(expected.shape()), &expected);
    }
}

#[test]
fn only_the_low_32_bits_of_a_seed_count() {
    let first = TorchCpuGenerator::new(5).randn(&[3, 7]);
    assert_same_bits("seed", &TorchCpuGenerator::new(5 + (1 << 32)).randn(&[3, 7]), &first);
}

#[test]
fn an_odd_number_of_small_draws_leaves_one_number_for_the_next() {
    let mut once = TorchCpuGenerator::new(1);
    let mut twice = TorchCpuGenerator::new(1);
    let whole: Vec<f32> = once.randn(&[8]).into_iter().collect();
    let parts: Vec<f32> = twice.randn(&[3]).into_iter().chain(twice.randn(&[5])).collect();
    assert_eq!(parts, whole);
}

#[test]
fn an_empty_tensor_draws_nothing() {
    let mut generator = TorchCpuGenerator::new(1);
    assert_eq!(generator.randn(&[0, 4]).shape(), [0, 4]);
    assert_same_bits("next", &generator.randn(&[16]), &TorchCpuGenerator::new(1).randn(&[16]));
}

proptest! {
    #[test]
    fn every_number_is_finite_and_likely(seed: u64, n in 0usize..200) {
        let numbers = TorchCpuGenerator::new(seed).randn(&[n]);
        prop_assert_eq!(numbers.len(), n);
        prop_assert!(numbers.iter().all(|x| x.abs() < 9.0));
    }
}
