use std::cmp::Ordering;
use std::fmt;
use std::ops::Deref;
use std::str::FromStr;

/// Longest name in bytes.
const MAX_LEN: usize = 47;

/// Name of a component in its model, such as `text_encoder` or `unet`: up to 47 lower-case letters, digits and underscores.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct ComponentName {
    len: u8,
    /// Zero behind the name.
    bytes: [u8; MAX_LEN],
}

/// A text that is not a [`ComponentName`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InvalidName(String);

impl ComponentName {
    /// The name, where it is known when the program is compiled.
    ///
    /// # Panics
    ///
    /// Where the text is not a name, which stops the compiler if the call is in a constant.
    pub const fn literal(name: &'static str) -> ComponentName {
        match ComponentName::checked(name.as_bytes()) {
            Some(name) => name,
            None => panic!("not a component name"),
        }
    }

    const fn checked(name: &[u8]) -> Option<ComponentName> {
        if name.is_empty() || name.len() > MAX_LEN {
            return None;
        }
        let mut bytes = [0; MAX_LEN];
        let mut i = 0;
        while i < name.len() {
            if !matches!(name[i], b'a'..=b'z' | b'0'..=b'9' | b'_') {
                return None;
            }
            bytes[i] = name[i];
            i += 1;
        }
        Some(ComponentName { len: name.len() as u8, bytes })
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        // Only ASCII is ever stored.
        std::str::from_utf8(&self.bytes[..usize::from(self.len)]).unwrap_or_default()
    }
}

impl Deref for ComponentName {
    type Target = str;

    fn deref(&self) -> &str {
        self.as_str()
    }
}

impl FromStr for ComponentName {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<ComponentName, InvalidName> {
        ComponentName::checked(text.as_bytes()).ok_or_else(|| InvalidName(text.chars().take(64).collect()))
    }
}

impl fmt::Display for InvalidName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "'{}' is not a component name: expected 1 to {MAX_LEN} lower-case letters, digits and underscores",
            self.0
        )
    }
}

impl std::error::Error for InvalidName {}

impl fmt::Display for ComponentName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl fmt::Debug for ComponentName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

impl PartialOrd for ComponentName {
    fn partial_cmp(&self, other: &ComponentName) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for ComponentName {
    fn cmp(&self, other: &ComponentName) -> Ordering {
        self.as_str().cmp(other.as_str())
    }
}

#[cfg(feature = "serde")]
impl serde::Serialize for ComponentName {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

#[cfg(feature = "serde")]
impl<'de> serde::Deserialize<'de> for ComponentName {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<ComponentName, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_lower_case_identifiers_of_a_limited_length() {
        const UNET: ComponentName = ComponentName::literal("unet");
        assert_eq!("unet".parse(), Ok(UNET));
        assert_eq!(format!("{UNET:<6}|"), "unet  |");
        for text in ["", "UNet", "a b", "../unet", "unet.onnx", "é", &"a".repeat(48)] {
            assert!(text.parse::<ComponentName>().is_err(), "{text}");
        }
        assert!("a".repeat(47).parse::<ComponentName>().is_ok());
    }

    #[test]
    fn names_sort_as_their_texts() {
        let name = |text: &str| text.parse::<ComponentName>().expect("a name");
        assert!(name("a") < name("ab") && name("ab") < name("b"));
    }

    #[cfg(feature = "serde")]
    #[test]
    fn names_are_checked_when_they_are_read() {
        assert_eq!(serde_json::from_str::<ComponentName>("\"unet\"").expect("a name").as_str(), "unet");
        let error = serde_json::from_str::<ComponentName>("\"../x\"").expect_err("not a name");
        assert!(error.to_string().contains("not a component name"), "{error}");
    }
}
