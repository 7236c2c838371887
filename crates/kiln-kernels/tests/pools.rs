use kiln_kernels::{Algorithm, Conv, ConvShape, Element, Isa, Parallel, Serial, Threads};

use crate::reference::Case;

/// A pool that claims to have three lanes and does as `calls` says.
struct Odd {
    calls: fn(usize) -> usize,
}

impl Parallel for Odd {
    fn lanes(&self) -> usize {
        3
    }

    fn run(&self, n: usize, task: &(dyn Fn() + Sync)) {
        (0..(self.calls)(n)).for_each(|_| task());
    }
}

/// A pool without lanes.
struct None;

impl Parallel for None {
    fn lanes(&self) -> usize {
        0
    }

    fn run(&self, _: usize, _: &(dyn Fn() + Sync)) {}
}

#[test]
fn no_pool_changes_a_bit_of_the_result() {
    // Few tiles, which lanes share, and more than enough for each.
    for size in [[12, 12], [120, 120]] {
        let shape = ConvShape::same(1, 20, size, 70, 3);
        let case = Case::of_conv(&shape, 6, true);
        for algorithm in [Algorithm::ImplicitGemm, Algorithm::WinogradF2, Algorithm::WinogradF4] {
            let conv = Conv::new(shape, algorithm, Element::F32, Isa::best()).expect("a convolution");
            let expected = case.conv(&conv, &shape, Element::F32, &Serial);
            let pools: [&dyn Parallel; 6] = [
                &Threads::new(2),
                &Threads::new(7),
                &None,
                &Odd { calls: |_| 0 },
                &Odd { calls: |_| 1 },
                &Odd { calls: |n| n + 9 },
            ];
            for (i, pool) in pools.into_iter().enumerate() {
                let found = case.conv(&conv, &shape, Element::F32, pool);
                assert!(found == expected, "pool {i} {algorithm:?} {size:?}");
            }
        }
    }
}

#[test]
fn a_pool_of_threads_passes_a_panic_on_and_works_on() {
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::sync::atomic::{AtomicUsize, Ordering};

    let pool = Threads::new(3);
    for _ in 0..20 {
        let calls = AtomicUsize::new(0);
        let run = || pool.run(9, &|| assert!(calls.fetch_add(1, Ordering::Relaxed) != 4, "the fifth"));
        assert!(catch_unwind(AssertUnwindSafe(run)).is_err());
        let calls = AtomicUsize::new(0);
        pool.run(100, &|| {
            calls.fetch_add(1, Ordering::Relaxed);
        });
        assert_eq!(calls.into_inner(), 100);
    }
}
