use std::fmt;
use std::str::FromStr;

/// Width and height of a picture in pixels. Written `WIDTHxHEIGHT`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(deny_unknown_fields))]
pub struct Size {
    /// Columns.
    pub width: u32,
    /// Rows.
    pub height: u32,
}

impl Size {
    /// A size of so many columns and rows.
    pub const fn new(width: u32, height: u32) -> Size {
        Size { width, height }
    }

    /// A square.
    pub const fn square(side: u32) -> Size {
        Size { width: side, height: side }
    }

    /// Both sides changed alike.
    #[must_use]
    pub fn map(self, change: impl Fn(u32) -> u32) -> Size {
        Size { width: change(self.width), height: change(self.height) }
    }

    /// Number of pixels.
    pub const fn area(self) -> u64 {
        self.width as u64 * self.height as u64
    }

    /// The longer side.
    pub fn longest(self) -> u32 {
        self.width.max(self.height)
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}x{}", self.width, self.height)
    }
}

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Size, String> {
        let side = |text: &str| text.trim().parse().ok().filter(|n: &u32| (1..=1 << 20).contains(n));
        let sides =
            text.split_once('x').and_then(|(width, height)| Some(Size::new(side(width)?, side(height)?)));
        sides.ok_or_else(|| "expected WIDTHxHEIGHT".into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_is_read_as_it_is_written() {
        assert_eq!("640x384".parse(), Ok(Size::new(640, 384)));
        assert_eq!(Size::new(640, 384).to_string(), "640x384");
        for text in ["", "640", "0x8", "8x0", "-8x8", "8x8x8", "1048577x8"] {
            assert_eq!(text.parse::<Size>(), Err("expected WIDTHxHEIGHT".into()), "{text}");
        }
    }
}
