//! Prompts in every syntax: tags, weights, blocks and tokens.
#![no_main]

use std::cell::RefCell;

use kiln_fuzz::within_a_second;
use kiln_runtime::{Pipeline, PromptSyntax, Request};
use libfuzzer_sys::fuzz_target;

thread_local! {
    static PIPELINE: RefCell<Pipeline> = kiln_fuzz::small_pipeline().into();
}

fuzz_target!(|prompts: &str| within_a_second(|| PIPELINE.with_borrow_mut(|pipeline| {
    let (prompt, negative) = prompts.split_once('\n').unwrap_or((prompts, ""));
    for syntax in [PromptSyntax::Weighted, PromptSyntax::Plain] {
        let request = Request::new(prompt).negative_prompt(negative).prompt_syntax(syntax).steps(1);
        assert!(pipeline.generate(&request).is_err());
    }
})));
