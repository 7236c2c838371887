use std::collections::VecDeque;
use std::sync::Arc;

use crate::architecture::Conditioning;

/// What prompts were encoded to, those that were asked for last.
#[derive(Default)]
pub(crate) struct Encodings {
    entries: VecDeque<(EncodingKey, Arc<Conditioning>)>,
    n_bytes: usize,
    max_bytes: usize,
}

/// Digest of everything that an encoding depends on.
pub(crate) type EncodingKey = [u8; 32];

impl Encodings {
    /// None yet, and later no more than so many bytes.
    pub(super) fn new(max_bytes: usize) -> Encodings {
        Encodings { max_bytes, ..Encodings::default() }
    }

    pub(crate) fn get(&mut self, key: &EncodingKey) -> Option<Arc<Conditioning>> {
        let i = self.entries.iter().position(|(found, _)| found == key)?;
        let entry = self.entries.remove(i)?;
        let found = entry.1.clone();
        self.entries.push_back(entry);
        Some(found)
    }

    /// Keeps an encoding that is not too large, and drops those that were asked for the longest ago where there are too
    /// many.
    pub(crate) fn put(&mut self, key: EncodingKey, conditioning: Arc<Conditioning>) {
        if conditioning.n_bytes() > self.max_bytes || self.get(&key).is_some() {
            return;
        }
        self.n_bytes += conditioning.n_bytes();
        self.entries.push_back((key, conditioning));
        while self.n_bytes > self.max_bytes {
            let Some((_, oldest)) = self.entries.pop_front() else { return };
            self.n_bytes -= oldest.n_bytes();
        }
    }
}

#[cfg(test)]
mod tests {
    use ndarray::ArrayD;

    use super::*;

    const MAX_BYTES: usize = 1 << 10;

    fn of_bytes(n: usize) -> Arc<Conditioning> {
        let tensors = vec![("states".into(), ArrayD::zeros(vec![n / 4]))];
        Arc::new(Conditioning { tensors, n_truncated: 0 })
    }

    #[test]
    fn what_was_asked_for_the_longest_ago_leaves_first() {
        let mut encodings = Encodings::new(MAX_BYTES);
        for key in 0..4 {
            encodings.put([key; 32], of_bytes(MAX_BYTES / 4));
        }
        assert!(encodings.get(&[0; 32]).is_some());
        encodings.put([4; 32], of_bytes(MAX_BYTES / 4));
        assert!(encodings.get(&[0; 32]).is_some() && encodings.get(&[1; 32]).is_none());
        encodings.put([4; 32], of_bytes(MAX_BYTES / 4));
        assert_eq!(encodings.n_bytes, MAX_BYTES);
    }

    #[test]
    fn what_is_too_large_to_be_kept_displaces_nothing() {
        let mut encodings = Encodings::new(MAX_BYTES);
        encodings.put([0; 32], of_bytes(MAX_BYTES / 4));
        encodings.put([1; 32], of_bytes(2 * MAX_BYTES));
        assert!(encodings.get(&[1; 32]).is_none() && encodings.get(&[0; 32]).is_some());
    }
}
