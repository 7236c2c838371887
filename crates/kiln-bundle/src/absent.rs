//! What may help where a path leads to nothing.

use std::path::Path;

const DOWNLOAD: &str = "kiln downloads no models; fetch this one with Hugging Face's command line (hf download) and \
                        give the folder that it prints";

/// What may help somebody who names a path that does not exist.
pub fn hint(path: &Path) -> Option<String> {
    let text = path.to_string_lossy();
    if let Some(rest) = text.strip_prefix("file:") {
        let path = rest.trim_start_matches("//");
        return Some(format!("kiln takes paths, not addresses: {path}"));
    }
    if ["https:/", "http:/", "hf:/", "s3:/", "gs:/"].iter().any(|scheme| text.starts_with(scheme)) {
        return Some("kiln downloads nothing; fetch it first, and give its path".into());
    }
    if text.starts_with('~') {
        return Some("only a shell reads ~, and only unquoted at the start; give the whole path".into());
    }
    if text.contains('$') || text.starts_with('%') {
        return Some("only a shell reads variables, and not in single quotes; give the whole path".into());
    }
    if text.starts_with(['\'', '"']) {
        return Some("the quotation marks are part of what kiln was given".into());
    }
    is_repository(&text).then(|| DOWNLOAD.into())
}

/// Whether it looks like `owner/name` of a hub, perhaps with a revision.
fn is_repository(text: &str) -> bool {
    let text = text.strip_prefix("hf:").unwrap_or(text);
    let (name, revision) = text.split_once(['@', ':']).unwrap_or((text, "main"));
    let is_part = |part: &str| {
        !part.is_empty()
            && part != "."
            && part != ".."
            && part.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
    };
    let is_file = Path::new(name).extension().is_some_and(|ending| ending == "safetensors");
    name.split('/').count() == 2 && name.split('/').all(is_part) && is_part(revision) && !is_file
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_are_no_paths_are_told_apart() {
        for (text, part) in [
            ("owner/name", "hf download"),
            ("owner/name@fp16", "hf download"),
            ("hf:owner/name", "hf download"),
            ("https://huggingface.co/owner/name", "fetch it first"),
            ("file:///models/a", "not addresses: /models/a"),
            ("~/models/a", "only a shell reads ~"),
            ("$HOME/models/a", "only a shell reads variables"),
            ("'/models/a'", "quotation marks"),
        ] {
            assert!(hint(Path::new(text)).is_some_and(|hint| hint.contains(part)), "{text}");
        }
        for text in ["a", "/models/a", "./a", "../a", "a/b/c", "loras/a.safetensors", "C:a.safetensors"] {
            assert_eq!(hint(Path::new(text)), None, "{text}");
        }
    }
}
