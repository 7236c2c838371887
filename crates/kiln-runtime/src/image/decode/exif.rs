//! How pictures are turned.

use super::Rgb;

/// How a picture is turned by its EXIF data, from 1 to 8 (EXIF 2.3, tag 0x0112).
pub(super) fn orientation(exif: &[u8]) -> Option<u16> {
    let is_little = match exif.get(..4)? {
        [b'I', b'I', 42, 0] => true,
        [b'M', b'M', 0, 42] => false,
        _ => return None,
    };
    let u16_at = |at: usize| {
        let bytes: [u8; 2] = exif.get(at..at.checked_add(2)?)?.try_into().ok()?;
        Some(if is_little { u16::from_le_bytes(bytes) } else { u16::from_be_bytes(bytes) })
    };
    let u32_at = |at: usize| {
        let [a, b] = [u16_at(at)?, u16_at(at.checked_add(2)?)?].map(u32::from);
        Some(if is_little { b << 16 | a } else { a << 16 | b })
    };
    let folder = usize::try_from(u32_at(4)?).ok()?;
    let entries = (0..usize::from(u16_at(folder)?)).map(|i| folder.checked_add(2 + 12 * i));
    for entry in entries {
        let entry = entry?;
        if (u16_at(entry)?, u16_at(entry + 2)?, u32_at(entry + 4)?) == (0x0112, 3, 1) {
            return u16_at(entry + 8).filter(|turn| (1..=8).contains(turn));
        }
    }
    None
}

impl Rgb {
    /// The picture upright, for an orientation of EXIF.
    pub(super) fn turned(&self, orientation: u16) -> Rgb {
        let is_transposed = orientation >= 5;
        let (mirrors_x, mirrors_y) =
            (matches!(orientation, 2 | 3 | 7 | 8), matches!(orientation, 3 | 4 | 6 | 7));
        let (width, height) = if is_transposed { (self.height, self.width) } else { (self.width, self.height) };
        let mut data = Vec::with_capacity(self.data.len());
        for y in 0..height {
            for x in 0..width {
                let (x, y) = if is_transposed { (y, x) } else { (x, y) };
                let x = if mirrors_x { self.width - 1 - x } else { x };
                let y = if mirrors_y { self.height - 1 - y } else { y };
                let at = (y as usize * self.width as usize + x as usize) * 3;
                data.extend_from_slice(&self.data[at..at + 3]);
            }
        }
        Rgb { width, height, data, alpha_varies: self.alpha_varies }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Red, green, blue and white, from the upper left to the lower right.
    fn corners() -> Rgb {
        let pixels = [[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255]];
        Rgb { width: 2, height: 2, data: pixels.concat(), alpha_varies: false }
    }

    #[track_caller]
    fn check_turn(orientation: u16, expected: [usize; 4]) {
        let (before, after) = (corners().data, corners().turned(orientation).data);
        let pixels = before.chunks(3).collect::<Vec<_>>();
        assert_eq!(after, expected.map(|i| pixels[i]).concat(), "{orientation}");
    }

    #[test]
    fn pictures_are_turned_as_exif_says() {
        check_turn(1, [0, 1, 2, 3]);
        check_turn(2, [1, 0, 3, 2]);
        check_turn(3, [3, 2, 1, 0]);
        check_turn(4, [2, 3, 0, 1]);
        check_turn(5, [0, 2, 1, 3]);
        check_turn(6, [2, 0, 3, 1]);
        check_turn(7, [3, 1, 2, 0]);
        check_turn(8, [1, 3, 0, 2]);
    }

    #[test]
    fn malformed_exif_data_turns_nothing() {
        let sized = |n: u16| [&b"II*\0\x08\0\0\0"[..], &n.to_le_bytes()].concat();
        for exif in [&b""[..], b"II*\0", b"II*\0\xff\xff\xff\xff", &sized(u16::MAX), &sized(0)] {
            assert_eq!(orientation(exif), None);
        }
        let entry = [&sized(1)[..], &[0x12, 1, 3, 0, 1, 0, 0, 0, 6, 0, 0, 0]].concat();
        assert_eq!(orientation(&entry), Some(6));
    }
}
