use kiln_kernels::{Error, Serial, Threads, Upsample};
use proptest::prelude::*;

use crate::reference::{Numbers, isas};

proptest! {
    #[test]
    fn every_pixel_becomes_four((planes, height, width) in (1..5usize, 1..20usize, 1..40usize), seed in 0..99u64) {
        let input = Numbers(seed).tensor(planes * height * width);
        for isa in isas() {
            let of = Upsample { planes, size: [height, width], isa };
            let mut output = vec![f32::NAN; 4 * input.len()];
            of.run(&Threads::new(2), &input, &mut output).expect("a run");
            for (at, &found) in output.iter().enumerate() {
                let (row, x) = (at / (2 * width), at % (2 * width));
                let (plane, y) = (row / (2 * height), row % (2 * height));
                prop_assert_eq!(found, input[(plane * height + y / 2) * width + x / 2]);
            }
        }
    }
}

#[test]
fn slices_of_other_lengths_are_refused() {
    let of = Upsample { planes: 2, size: [3, 4], isa: isas()[0] };
    assert_eq!(of.run(&Serial, &[0.0; 24], &mut [0.0; 96]), Ok(()));
    for (input, output) in [(23, 96), (24, 95)] {
        let refused = of.run(&Serial, &vec![0.0; input], &mut vec![0.0; output]);
        assert!(matches!(refused, Err(Error::Length { .. })), "{refused:?}");
    }
}
