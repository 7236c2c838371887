//! What other programs take for more than words, and kiln does not.

use crate::PromptSyntax;

/// Parts of a prompt that the web UIs act upon (AUTOMATIC1111's `prompt_parser.py`, `extra_networks.py`), with what kiln makes
/// of them.
pub(crate) fn unread(prompt: &str, syntax: PromptSyntax) -> Vec<String> {
    let mut found: Vec<String> =
        networks(prompt).map(|tag| format!("'{tag}' is read as words; {}", instead(tag))).collect();
    if syntax == PromptSyntax::Weighted {
        found.extend(alternations(prompt).map(|part| {
            format!("'{part}' is read as words of less weight; kiln does not change prompts between steps")
        }));
        if prompt.split_whitespace().any(|word| word == "AND") {
            found.push("'AND' is read as a word; kiln does not combine prompts".into());
        }
    }
    found
}

/// `<lora:name:0.8>` and its kin.
fn networks(prompt: &str) -> impl Iterator<Item = &str> {
    const KINDS: [&str; 5] = ["lora:", "lyco:", "loha:", "hypernet:", "hypernetwork:"];
    enclosed(prompt, ['<', '>']).filter_map(|(start, end)| {
        let tag = &prompt[start..=end];
        KINDS.iter().any(|kind| tag[1..].starts_with(kind)).then_some(tag)
    })
}

/// Where two brackets enclose text without either of them: the first byte of each.
fn enclosed(prompt: &str, brackets: [char; 2]) -> impl Iterator<Item = (usize, usize)> {
    let mut start = None;
    prompt.match_indices(brackets).filter_map(move |(at, bracket)| {
        let before = start.take();
        if bracket.starts_with(brackets[0]) {
            start = Some(at);
            return None;
        }
        Some((before?, at))
    })
}

fn instead(tag: &str) -> &'static str {
    match tag.starts_with("<hypernet") {
        true => "kiln has no hypernetworks",
        false => "a LoRA's file and weight are given beside the prompt",
    }
}

/// `[from:to:0.5]`, `[word:0.5]`, `[word::0.5]` and `[a|b]`, without brackets inside.
fn alternations(prompt: &str) -> impl Iterator<Item = &str> {
    let is_escaped = |at: usize| prompt[..at].ends_with('\\');
    enclosed(prompt, ['[', ']']).filter(move |(start, _)| !is_escaped(*start)).filter_map(|(start, end)| {
        let inner = &prompt[start + 1..end];
        let is_switch = inner.rsplit_once(':').is_some_and(|(_, when)| when.trim().parse::<f32>().is_ok());
        (is_switch || inner.contains('|')).then_some(&prompt[start..=end])
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(prompt: &str, expected: &[&str]) {
        let found = unread(prompt, PromptSyntax::Weighted);
        assert_eq!(found.len(), expected.len(), "{found:?}");
        assert!(found.iter().zip(expected).all(|(found, part)| found.starts_with(part)), "{found:?}");
    }

    #[test]
    fn tags_of_web_uis_are_found() {
        check("a <lora:style:0.8> b <hypernet:x:1>", &["'<lora:style:0.8>'", "'<hypernet:x:1>'"]);
        check("[red:blue:0.5] and [cat::10]", &["'[red:blue:0.5]'", "'[cat::10]'"]);
        check("a [red|blue] ball AND a cube", &["'[red|blue]'", "'AND'"]);
        check("<lora:<lora:x:1>> [a[b|c]] ]>", &["'<lora:x:1>'", "'[b|c]'"]);
    }

    /// Each start does not look for its end by itself, nor is told with all that follows.
    #[test]
    fn long_texts_are_read_in_one_pass() {
        let n = 1 << 20;
        for (open, close) in [("<lora:", ">"), ("[a|", "]")] {
            assert_eq!(unread(&(open.repeat(n) + close), PromptSyntax::Weighted).len(), 1);
        }
    }

    #[test]
    fn other_text_is_text() {
        for prompt in [
            "a < b, <toy> and c > d",
            "[less] (more:1.2)",
            "ratio 16:9",
            r"\[a:b:0.5\]",
            "BAND, and",
            "<lora",
            "[a:b]",
        ] {
            check(prompt, &[]);
        }
        assert!(unread("[red|blue] AND x", PromptSyntax::Plain).is_empty());
        assert_eq!(unread("<lora:x:1>", PromptSyntax::Plain).len(), 1);
    }
}
