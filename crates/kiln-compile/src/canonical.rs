//! The text that cache keys are digests of.
//!
//! A line with the version of the form, then JSON in one line: no white space, the keys of every object in the order of
//! their bytes, strings and numbers as `serde_json` writes them. Keys depend on what is written here and on nothing else:
//! not on the names of Rust's types, nor on how they are printed for debugging.

use serde_json::Value;

/// The version of the form; another one makes every key another key.
const VERSION: &str = "kiln key 1";

/// The canonical text of a value.
pub(crate) fn text(value: &Value) -> String {
    let mut text = format!("{VERSION}\n");
    write(value, &mut text);
    text
}

/// BLAKE3 digest of a canonical text, in hexadecimal.
pub(crate) fn digest(text: &str) -> String {
    blake3::hash(text.as_bytes()).to_hex().to_string()
}

fn write(value: &Value, text: &mut String) {
    match value {
        Value::Object(map) => {
            // The map's own order depends on the features that serde_json is built with.
            let mut entries: Vec<(&String, &Value)> = map.iter().collect();
            entries.sort_unstable_by_key(|(key, _)| *key);
            list(text, ['{', '}'], entries, |text, (key, value)| {
                text.push_str(&Value::String(key.clone()).to_string());
                text.push(':');
                write(value, text);
            });
        }
        Value::Array(values) => list(text, ['[', ']'], values, |text, value| write(value, text)),
        scalar => text.push_str(&scalar.to_string()),
    }
}

fn list<T>(
    text: &mut String,
    [open, close]: [char; 2],
    items: impl IntoIterator<Item = T>,
    mut write: impl FnMut(&mut String, T),
) {
    text.push(open);
    for (i, item) in items.into_iter().enumerate() {
        if i > 0 {
            text.push(',');
        }
        write(text, item);
    }
    text.push(close);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_sorted_at_every_depth_and_lists_keep_their_order() {
        let value = serde_json::json!({ "b": [2, 1.5, null], "a": { "d": "\"", "c": true } });
        assert_eq!(text(&value), "kiln key 1\n{\"a\":{\"c\":true,\"d\":\"\\\"\"},\"b\":[2,1.5,null]}");
    }

    #[test]
    fn no_two_values_share_a_text() {
        let values = [
            r#"{"a":"b"}"#,
            r#"{"a":["b"]}"#,
            r#"["a","b"]"#,
            r#"["a,b"]"#,
            r#"{"a":null}"#,
            "{}",
            "[]",
            r#"["1"]"#,
            "[1]",
            "[1.0]",
            r#"[[],[]]"#,
            "[[[]]]",
        ];
        let texts = values.map(|value| text(&serde_json::from_str(value).expect("JSON")));
        let different: std::collections::BTreeSet<&String> = texts.iter().collect();
        assert_eq!(different.len(), values.len());
    }
}
