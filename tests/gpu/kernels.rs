//! The kernels against plain arithmetic; `kernels.cu` is compiled for the processor.
#![expect(unsafe_code, reason = "a library is loaded")]

use std::path::Path;
use std::sync::{Arc, LazyLock};

use kiln_cuda::{CudaErrorKind, Device, DeviceMemory, Driver, Term};
use kiln_runtime::generator::TorchCpuGenerator;

use super::libraries;

/// A fake device in this process: its driver's library is found by name once it is loaded.
fn device() -> &'static Arc<Device> {
    static DEVICE: LazyLock<Arc<Device>> = LazyLock::new(|| {
        load_globally(&libraries().join("libcuda.so.1"));
        let driver = Driver::open().expect("the fake driver");
        Device::open(&driver, 0).expect("the fake device")
    });
    &DEVICE
}

fn load_globally(path: &Path) {
    // SAFETY: the fake driver's initialisers have no preconditions.
    std::mem::forget(unsafe { libloading::Library::new(path) }.expect("the fake driver"));
}

fn random(n: usize, seed: u64) -> Vec<f32> {
    TorchCpuGenerator::new(seed).randn(&[n]).into_iter().collect()
}

fn upload(values: &[f32]) -> DeviceMemory {
    let bytes: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
    device().upload(&bytes).expect("memory")
}

fn download(memory: &DeviceMemory, n: usize) -> Vec<f32> {
    let mut bytes = vec![0; 4 * n];
    device().read(memory, &mut bytes).expect("bytes");
    bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}

#[track_caller]
fn assert_close(found: &[f32], expected: impl Iterator<Item = f64>) {
    let mut n = 0;
    for (found, expected) in found.iter().zip(expected) {
        assert!(
            (f64::from(*found) - expected).abs() < 1e-5 * expected.abs().max(1.0),
            "{found}, not {expected}"
        );
        n += 1;
    }
    assert_eq!(n, found.len());
}

#[test]
fn sums_of_any_number_of_terms() {
    const N: usize = 1000;
    for n_terms in [0, 1, 31, 32, 33, 100] {
        let values: Vec<Vec<f32>> = (0..n_terms).map(|k| random(N, k)).collect();
        let memories: Vec<DeviceMemory> = values.iter().map(|values| upload(values)).collect();
        let factor = |k: usize| 0.25 * k as f64 - 1.0;
        let terms = memories.iter().enumerate();
        let terms: Vec<Term<'_>> = terms.map(|(k, values)| Term { factor: factor(k), values }).collect();
        let out = upload(&[7.0; N]);
        device().combine(&out, &terms, N).expect("a sum");
        let sum = |i: usize| values.iter().enumerate().map(|(k, x)| factor(k) * f64::from(x[i])).sum();
        assert_close(&download(&out, N), (0..N).map(sum));
    }
}

#[test]
fn a_term_may_be_where_the_sum_goes() {
    let values: Vec<DeviceMemory> = (0..40).map(|k| upload(&[k as f32])).collect();
    let terms: Vec<Term<'_>> = values.iter().map(|values| Term { factor: 1.0, values }).collect();
    device().combine(&values[39], &terms, 1).expect("a sum");
    assert_eq!(download(&values[39], 1), [780.0]);
}

#[test]
fn guidance_and_its_spread() {
    let (rows, n) = (3, 500);
    let prediction = random(2 * rows * n, 5);
    let (without, with) = prediction.split_at(rows * n);
    let (memory, out) = (upload(&prediction), upload(&vec![0.0; rows * n]));
    device().guide(&out, &memory, 7.5, rows * n).expect("guidance");
    let guided: Vec<f64> =
        without.iter().zip(with).map(|(u, c)| f64::from(*u) + 7.5 * (f64::from(*c) - f64::from(*u))).collect();
    assert_close(&download(&out, rows * n), guided.iter().copied());

    device().rescale_spread(&out, &memory, 0.7, [rows, n]).expect("a spread");
    let std = |values: &[f64]| {
        let mean = values.iter().sum::<f64>() / n as f64;
        (values.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / (n - 1) as f64).sqrt()
    };
    let expected = (0..rows * n).map(|i| {
        let row = i / n * n..(i / n + 1) * n;
        let text: Vec<f64> = with[row.clone()].iter().map(|x| f64::from(*x)).collect();
        guided[i] * (0.7 * std(&text) / std(&guided[row]) + 0.3)
    });
    assert_close(&download(&out, rows * n), expected);
}

#[test]
fn what_is_not_finite_is_found() {
    for (value, expected) in
        [(1.0, 0), (f32::NAN, 1), (f32::INFINITY, 1), (f32::NEG_INFINITY, 1), (f32::MAX, 0)]
    {
        let mut values = vec![0.5; 3000];
        values[2999] = value;
        let (memory, flag) = (upload(&values), device().upload(&[0; 4]).expect("a flag"));
        device().find_not_finite(&memory, &flag, 3000).expect("a search");
        let mut found = [9; 4];
        device().read(&flag, &mut found).expect("a flag");
        assert_eq!(u32::from_le_bytes(found), expected, "{value}");
    }
}

#[test]
fn memory_is_as_long_as_it_is() {
    let memory = upload(&[1.0, 2.0]);
    let too_long = [
        device().write(&memory, &[0; 9]),
        device().read(&memory, &mut [0; 9]),
        device().copy((&memory, 4), (&memory, 0), 5),
        device().combine(&memory, &[], 3),
        device().guide(&memory, &memory, 1.0, 2),
        device().find_not_finite(&memory, &memory, usize::MAX),
    ];
    for result in too_long {
        assert_eq!(result.unwrap_err().kind(), CudaErrorKind::Other);
    }
    assert_eq!(download(&memory, 2), [1.0, 2.0]);
}

#[test]
fn more_memory_than_there_is_is_refused() {
    let error = device().allocate(1 << 40).unwrap_err();
    assert_eq!(error.kind(), CudaErrorKind::OutOfMemory);
    assert!(error.to_string().starts_with("cuda:0 (Fake GPU) has no 1048576 MiB more: "), "{error}");
}
