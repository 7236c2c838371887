//! gRPC: the first byte is the method and whether a prefix of the right length is put before the rest.
#![no_main]

use kiln_fuzz::server::post;
use kiln_fuzz::within_a_second;
use libfuzzer_sys::fuzz_target;

const METHODS: [&str; 4] = ["ModelInfer", "ModelReady", "ModelMetadata", "ModelStreamInfer"];

fuzz_target!(|input: &[u8]| within_a_second(|| {
    let Some((first, rest)) = input.split_first() else { return };
    let first = usize::from(*first);
    let path = format!("/inference.GRPCInferenceService/{}", METHODS[first % 4]);
    let encoding =
        [("content-type", "application/grpc"), ("grpc-encoding", ["gzip", "deflate"][first / 8 % 2])];
    match first / 4 % 2 {
        0 => {
            let prefix = [&[0], &(rest.len() as u32).to_be_bytes()[..]].concat();
            post(&path, &encoding, &[&prefix, rest].concat());
        }
        _ => post(&path, &encoding, rest),
    }
}));
