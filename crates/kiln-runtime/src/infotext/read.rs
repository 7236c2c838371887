//! Reading such texts.

/// Least pairs that tell a line of settings from a prompt's last one.
const LEAST_PAIRS: usize = 3;

/// What a text says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Parameters {
    /// The prompt, with its LoRAs.
    pub prompt: String,
    /// The negative prompt.
    pub negative_prompt: String,
    /// The settings, in their order.
    pub settings: Vec<(String, String)>,
}

impl Parameters {
    /// The setting of this name.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.settings.iter().find(|(found, _)| found == key).map(|(_, value)| &**value)
    }
}

/// Reads a text as AUTOMATIC1111's web UI does (`infotext_utils.py`): the last line has the settings, if it has at least
/// three; the negative prompt begins at the line that says so.
pub fn parse(text: &str) -> Parameters {
    let text = text.trim();
    let (above, last) = text.rsplit_once('\n').unwrap_or(("", text));
    let settings = pairs(last);
    let (texts, settings) = match settings.len() < LEAST_PAIRS {
        true => (text, Vec::new()),
        false => (above, settings),
    };
    let (mut prompt, mut negative) = (Vec::new(), Vec::new());
    let mut is_negative = false;
    for line in texts.lines().map(str::trim) {
        let rest = line.strip_prefix("Negative prompt:").map(str::trim);
        is_negative |= rest.is_some();
        let lines = if is_negative { &mut negative } else { &mut prompt };
        lines.push(rest.unwrap_or(line));
    }
    Parameters { prompt: prompt.join("\n"), negative_prompt: negative.join("\n"), settings }
}

/// `key: value` or `key: "quoted value"`, between commas.
fn pairs(line: &str) -> Vec<(String, String)> {
    let mut pairs = Vec::new();
    let mut rest = line.trim();
    while let Some((key, after)) = rest.split_once(':') {
        let after = after.trim_start();
        let (value, left) = value(after);
        // What stands between a comma and the last one before a colon is no key.
        let key = key.rsplit(',').next().unwrap_or_default().trim();
        if is_key(key) {
            pairs.push((key.to_owned(), value));
        }
        rest = left;
    }
    pairs
}

fn is_key(key: &str) -> bool {
    !key.is_empty() && key.chars().all(|c| c.is_alphanumeric() || " _-/".contains(c))
}

/// A value, and what stands behind its comma.
fn value(text: &str) -> (String, &str) {
    if text.starts_with('"') {
        let mut values = serde_json::Deserializer::from_str(text).into_iter::<String>();
        if let Some(Ok(value)) = values.next() {
            let rest = text[values.byte_offset()..].trim_start();
            return (value, rest.strip_prefix(',').unwrap_or(rest));
        }
    }
    let (value, rest) = text.split_once(',').unwrap_or((text, ""));
    (value.trim().to_owned(), rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_web_uis_write_is_read_back() {
        let text = "a cat, (red:1.2)\nsecond line <lora:ink:0.5>\nNegative prompt: bad: worse\nand this\nSteps: 20, \
                    Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7, Seed: 1, Size: 512x768, Model: a-b_c, \
                    Lora hashes: \"ink: 0123456789ab, x: 1\", Version: v1.10.1";
        let read = parse(text);
        assert_eq!(read.prompt, "a cat, (red:1.2)\nsecond line <lora:ink:0.5>");
        assert_eq!(read.negative_prompt, "bad: worse\nand this");
        assert_eq!(read.settings.len(), 9);
        assert_eq!(read.get("Sampler"), Some("DPM++ 2M"));
        assert_eq!(read.get("Lora hashes"), Some("ink: 0123456789ab, x: 1"));
        assert_eq!(read.get("Version"), Some("v1.10.1"));
    }

    #[test]
    fn a_text_without_settings_is_a_prompt() {
        for text in ["", "a cat", "ratio 1:2, x: y", "a\nb: c, d: e", "\u{0}:::,,\"", "\"a: b", "Size: \"512"] {
            let read = parse(text);
            assert_eq!((read.prompt.as_str(), read.settings.len()), (text.trim(), 0), "{text}");
        }
        assert_eq!(parse("Negative prompt: x").negative_prompt, "x");
    }
}
