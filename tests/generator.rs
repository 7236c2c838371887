//! Random numbers against torch's.

use kiln_runtime::generator::{Generator, GeneratorKind, TorchCpuGenerator, TorchCudaGenerator};
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

/// `torch.manual_seed(0); torch.randn(3, 4, device="cuda")`.
#[test]
fn randn_is_that_of_gpus() {
    let expected: [f64; 12] = [
        -0.92466259,
        -0.42534415,
        -2.6438457,
        0.14518388,
        -0.12086647,
        -0.57972564,
        -0.62285122,
        -0.32838709,
        -1.07454231,
        -0.36314407,
        -1.67105067,
        2.26550497,
    ];
    let found = TorchCudaGenerator::new(0).randn(&[3, 4]);
    assert_eq!(found.shape(), [3, 4]);
    for (found, expected) in found.iter().zip(expected) {
        assert!((f64::from(*found) - expected).abs() < 2e-6, "{found}, not {expected}");
    }
}

#[test]
fn streams_of_a_gpu_do_not_depend_on_how_many_others_there_are() {
    let small = TorchCudaGenerator::new(3).randn(&[5]);
    let large = TorchCudaGenerator::new(3).randn(&[1000]);
    assert!(small.iter().eq(large.iter().take(5)));
    assert!(TorchCudaGenerator::new(1 << 32).randn(&[5]) != TorchCudaGenerator::new(0).randn(&[5]));
}

/// Each draw takes four numbers of a stream, however many of them are used.
#[test]
fn draws_on_a_gpu_advance_by_four() {
    let mut generator = TorchCudaGenerator::new(0);
    let draws: Vec<ArrayD<f32>> = (0..3).map(|_| generator.randn(&[300])).collect();
    assert!(draws[0] != draws[1] && draws[1] != draws[2]);
    let mut other = TorchCudaGenerator::new(0);
    other.randn(&[7]);
    assert_same_bits("second", &other.randn(&[300]), &draws[1]);
    other.randn(&[0]);
    assert_same_bits("third", &other.randn(&[300]), &draws[2]);
}

/// On a GPU of 256 threads, thread `i` draws four numbers for the elements `i`, `i + 256`, ..., and then four more.
#[test]
fn threads_of_a_small_gpu_draw_again() {
    let mut small = TorchCudaGenerator::with_threads(0, 256);
    let numbers = small.randn(&[1030]);
    let one_each = TorchCudaGenerator::new(0).randn(&[1030]);
    assert!(numbers.iter().take(256).eq(one_each.iter().take(256)));
    assert!(numbers[[256]] != one_each[[256]]);
    let mut large = TorchCudaGenerator::new(0);
    large.randn(&[1]);
    let second: Vec<f32> = large.randn(&[6]).into_iter().collect();
    assert_eq!(numbers.iter().skip(1024).copied().collect::<Vec<_>>(), second);
    assert_same_bits("next", &small.randn(&[5]), &large.randn(&[5]));
}

#[test]
fn both_devices_are_one_type() {
    let draw = |kind| Generator::new(kind, 5).randn(&[2, 3]);
    assert_same_bits("cpu", &draw(GeneratorKind::Cpu), &TorchCpuGenerator::new(5).randn(&[2, 3]));
    assert_same_bits("cuda", &draw(GeneratorKind::Cuda), &TorchCudaGenerator::new(5).randn(&[2, 3]));
}

proptest! {
    #[test]
    fn every_number_of_a_gpu_is_finite_and_likely(seed: u64, n in 0usize..3000, threads in 0usize..2000) {
        let numbers = TorchCudaGenerator::with_threads(seed, threads).randn(&[n]);
        prop_assert_eq!(numbers.len(), n);
        prop_assert!(numbers.iter().all(|x| x.abs() < 9.0));
    }

    #[test]
    fn every_number_is_finite_and_likely(seed: u64, n in 0usize..200) {
        let numbers = TorchCpuGenerator::new(seed).randn(&[n]);
        prop_assert_eq!(numbers.len(), n);
        prop_assert!(numbers.iter().all(|x| x.abs() < 9.0));
    }
}
