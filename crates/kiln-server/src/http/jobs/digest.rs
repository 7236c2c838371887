//! What tells bodies apart: their values, whatever the order of keys and the spaces between.

use serde_json::Value;

/// The digest of a JSON body.
pub(super) fn digest(body: &[u8]) -> String {
    let mut hasher = blake3::Hasher::new();
    add(&mut hasher, &serde_json::from_slice(body).unwrap_or_default());
    hasher.finalize().to_hex().to_string()
}

/// Each value begins with its kind and its length, so that no two are written the same.
fn add(hasher: &mut blake3::Hasher, value: &Value) {
    let mut put = |kind: &str, text: &str| {
        hasher.update(format!("{kind}{}:", text.len()).as_bytes());
        hasher.update(text.as_bytes());
    };
    match value {
        Value::String(text) => put("text", text),
        Value::Array(values) => {
            put("list", &values.len().to_string());
            values.iter().for_each(|value| add(hasher, value));
        }
        Value::Object(fields) => {
            put("object", &fields.len().to_string());
            let mut fields: Vec<_> = fields.iter().collect();
            fields.sort_by_key(|(name, _)| *name);
            for (name, value) in fields {
                add(hasher, &Value::String(name.clone()));
                add(hasher, value);
            }
        }
        plain => put("plain", &plain.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::digest;

    #[test]
    fn order_and_spaces_do_not_count_and_values_do() {
        let same = digest(br#"{"prompt":"a","loras":{"x":1,"y":2},"n":1}"#);
        assert_eq!(digest(br#" {"n": 1, "loras": {"y": 2, "x": 1}, "prompt": "\u0061"}"#), same);
        for other in [
            &br#"{"prompt":"b","loras":{"x":1,"y":2},"n":1}"#[..],
            br#"{"prompt":"a","loras":{"x":2,"y":1},"n":1}"#,
            br#"{"prompt":"a","loras":{"x":1,"y":2},"n":"1"}"#,
            br#"{"prompt":"a","loras":{"x":1,"y":2}}"#,
            br#"{"prompt":"a","loras":{"x":1},"y":2,"n":1}"#,
        ] {
            assert_ne!(digest(other), same, "{}", String::from_utf8_lossy(other));
        }
    }
}
