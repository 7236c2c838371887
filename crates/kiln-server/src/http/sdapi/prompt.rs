//! What prompts say of networks: `<lora:name:0.8>` (AUTOMATIC1111's `extra_networks.py`).

use super::fields::invalid;
use crate::LoraChoice;
use crate::fault::shown;
use crate::http::error::ApiError;

/// Most LoRAs of a prompt.
const MAX_LORAS: usize = 16;

/// A prompt without its networks, and these.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Prompt {
    /// The words.
    pub(super) text: String,
    /// LoRAs that the model has.
    pub(super) loras: Vec<LoraChoice>,
    /// Names of LoRAs that it does not have.
    pub(super) unknown: Vec<String>,
}

/// Reads a prompt for a model that has these LoRAs.
pub(super) fn read(prompt: &str, known: &[String]) -> Result<Prompt, ApiError> {
    let mut read = Prompt::default();
    let mut rest = prompt;
    while let Some(start) = rest.find('<') {
        let (before, from) = rest.split_at(start);
        read.text += before;
        match tag(from) {
            Some((kind, arguments, after)) => {
                read.take(kind, arguments, known)?;
                rest = after;
            }
            None => {
                read.text.push('<');
                rest = &from[1..];
            }
        }
    }
    read.text += rest;
    if !read.loras.is_empty() || !read.unknown.is_empty() {
        read.text = read.text.trim().to_owned();
    }
    match read.loras.len() > MAX_LORAS {
        true => Err(invalid("prompt", format!("{} LoRAs, the limit is {MAX_LORAS}", read.loras.len()))),
        false => Ok(read),
    }
}

/// Kind and arguments of the tag that a text begins with, and what follows it.
fn tag(text: &str) -> Option<(&str, &str, &str)> {
    const KINDS: [&str; 5] = ["lora", "lyco", "loha", "hypernet", "hypernetwork"];
    let (inner, after) = text[1..].split_once('>')?;
    let (kind, arguments) = inner.split_once(':')?;
    KINDS.contains(&kind).then_some((kind, arguments, after))
}

impl Prompt {
    fn take(&mut self, kind: &str, arguments: &str, known: &[String]) -> Result<(), ApiError> {
        let mut parts = arguments.split(':').map(str::trim);
        let name = parts.next().unwrap_or_default();
        if kind.starts_with("hyper") {
            return Err(invalid(
                "prompt",
                format!("hypernetwork '{}': kiln has no hypernetworks", shown(name)),
            ));
        }
        let weight = weight(name, parts)?;
        let found = known.iter().find(|known| known.eq_ignore_ascii_case(name));
        match found {
            None => self.unknown.push(shown(name)),
            Some(name) => match self.loras.iter_mut().find(|lora| lora.name == *name) {
                Some(lora) => lora.weight = weight,
                None => self.loras.push(LoraChoice { name: name.clone(), weight }),
            },
        }
        Ok(())
    }
}

/// The factor of a tag: `0.8`, or equal ones for text encoder and UNet.
fn weight<'a>(name: &str, parts: impl Iterator<Item = &'a str>) -> Result<f32, ApiError> {
    let refuse = |reason: &str| invalid("prompt", format!("LoRA '{}': {reason}", shown(name)));
    let mut weight = None;
    for part in parts {
        let value = match part.split_once('=') {
            Some(("te" | "unet", value)) => value,
            Some(_) => return Err(refuse("has arguments other than weights")),
            None => part,
        };
        let value = value.trim().parse().ok().filter(|value: &f32| value.is_finite());
        let value = value.ok_or_else(|| refuse("its weight is not a number"))?;
        match weight.is_none_or(|weight| weight == value) {
            true => weight = Some(value),
            false => return Err(refuse("text encoder and UNet have one weight")),
        }
    }
    Ok(weight.unwrap_or(1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known() -> Vec<String> {
        vec!["ink".into(), "b".into()]
    }

    #[test]
    fn loras_are_taken_out_of_the_prompt() {
        let prompt = read("a <lora:Ink:0.5> cat <lora:b><lora:other:1>", &known()).expect("a prompt");
        assert_eq!(prompt.text, "a  cat");
        let choice = |name: &str, weight| LoraChoice { name: name.into(), weight };
        assert_eq!(prompt.loras, [choice("ink", 0.5), choice("b", 1.0)]);
        assert_eq!(prompt.unknown, ["other"]);
        let prompt = read("<lora:ink:te=0.5:unet=0.5> x", &known()).expect("a prompt");
        assert_eq!(prompt.loras, [choice("ink", 0.5)]);
    }

    #[test]
    fn other_angles_are_words() {
        for text in ["a < b", "<3", "<toy>", "<lora", "<ü:x>", "<", "a<"] {
            assert_eq!(read(text, &known()).expect("a prompt").text, text);
        }
    }

    #[test]
    fn what_cannot_be_done_is_named() {
        for (text, message) in [
            ("<lora:ink:x>", "prompt: LoRA 'ink': its weight is not a number"),
            ("<lora:ink:1:0.5>", "prompt: LoRA 'ink': text encoder and UNet have one weight"),
            ("<lora:ink:lbw=1>", "prompt: LoRA 'ink': has arguments other than weights"),
            ("<lora:ink:inf>", "prompt: LoRA 'ink': its weight is not a number"),
            ("<hypernet:a:1>", "prompt: hypernetwork 'a': kiln has no hypernetworks"),
        ] {
            assert_eq!(read(text, &known()).expect_err("refused").message, message);
        }
    }
}
