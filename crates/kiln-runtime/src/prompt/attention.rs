//! The syntax that weighs words (AUTOMATIC1111's `prompt_parser.py`, diffusers' community pipeline
//! `lpw_stable_diffusion.py`).

/// Factor of one pair of brackets.
const STEP: f32 = 1.1;

/// Most brackets that are open at once.
const MAX_DEPTH: usize = 1000;

/// Part of a prompt.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Piece {
    /// Words and their weight.
    Text(String, f32),
    /// The border of a block.
    Break,
}

/// Splits a prompt into pieces of one weight.
///
/// `(a)` multiplies by 1.1, `[a]` divides by it, `(a:1.5)` multiplies by 1.5; brackets nest. A bracket that is not closed
/// holds until the end; one that was not opened is text. A backslash takes a bracket or backslash as it is.
///
/// # Errors
///
/// Where so many brackets are open at once that each of them would weigh all words again.
pub(super) fn parse(prompt: &str) -> Result<Vec<Piece>, String> {
    let mut parser = Parser::default();
    let mut rest = prompt;
    while let Some(c) = rest.chars().next() {
        let mut taken = c.len_utf8();
        match c {
            '\\' => match rest[1..].chars().next().filter(|next| r"\()[]".contains(*next)) {
                Some(next) => {
                    parser.text.push(next);
                    taken += 1;
                }
                None => parser.text.push(c),
            },
            '(' => parser.open(&mut |parser| parser.round.push(parser.pieces.len())),
            '[' => parser.open(&mut |parser| parser.square.push(parser.pieces.len())),
            ')' if !parser.round.is_empty() => parser.close_round(STEP),
            ']' if !parser.square.is_empty() => parser.close_square(),
            ':' if !parser.round.is_empty() => match weight(&rest[1..]) {
                Some((weight, length)) => {
                    parser.close_round(weight);
                    taken += length;
                }
                None => parser.text.push(c),
            },
            _ => parser.text.push(c),
        }
        if parser.round.len() + parser.square.len() > MAX_DEPTH {
            return Err(format!("opens more than {MAX_DEPTH} brackets inside each other"));
        }
        rest = &rest[taken..];
    }
    Ok(parser.finish())
}

#[derive(Default)]
struct Parser {
    pieces: Vec<Piece>,
    text: String,
    /// Where the brackets that are open began.
    round: Vec<usize>,
    square: Vec<usize>,
}

impl Parser {
    /// Ends the text so far; the word `BREAK` in it becomes a border.
    fn flush(&mut self) {
        let text = std::mem::take(&mut self.text);
        for (i, part) in split_at_breaks(&text).into_iter().enumerate() {
            if i > 0 {
                self.pieces.push(Piece::Break);
            }
            if !part.is_empty() {
                self.pieces.push(Piece::Text(part.to_owned(), 1.0));
            }
        }
    }

    fn open(&mut self, push: &mut dyn FnMut(&mut Parser)) {
        self.flush();
        push(self);
    }

    fn close_round(&mut self, factor: f32) {
        self.flush();
        let start = self.round.pop().unwrap_or(0);
        self.multiply(start, factor);
    }

    fn close_square(&mut self) {
        self.flush();
        let start = self.square.pop().unwrap_or(0);
        self.multiply(start, 1.0 / STEP);
    }

    fn multiply(&mut self, start: usize, factor: f32) {
        for piece in self.pieces.iter_mut().skip(start) {
            if let Piece::Text(_, weight) = piece {
                *weight *= factor;
            }
        }
    }

    fn finish(mut self) -> Vec<Piece> {
        self.flush();
        for start in std::mem::take(&mut self.round) {
            self.multiply(start, STEP);
        }
        for start in std::mem::take(&mut self.square) {
            self.multiply(start, 1.0 / STEP);
        }
        self.pieces.dedup_by(|next, last| match (next, last) {
            (Piece::Text(next, weight), Piece::Text(last, last_weight)) if *weight == *last_weight => {
                last.push_str(next);
                true
            }
            _ => false,
        });
        self.pieces
    }
}

/// The text around each `BREAK` that is a word of its own, without the spaces beside it.
fn split_at_breaks(text: &str) -> Vec<&str> {
    const WORD: &str = "BREAK";
    let mut parts = Vec::new();
    let mut start = 0;
    for (at, _) in text.match_indices(WORD) {
        let ends_word = |c: char| !(c.is_alphanumeric() || c == '_');
        let alone_before = text[..at].chars().next_back().is_none_or(ends_word);
        let alone_after = text[at + WORD.len()..].chars().next().is_none_or(ends_word);
        if alone_before && alone_after {
            parts.push(text[start..at].trim_end());
            start = at + WORD.len();
        }
    }
    parts.push(if start == 0 { text } else { text[start..].trim_start() });
    parts
}

/// `1.2)` as a weight and its length in bytes, the bracket included.
fn weight(rest: &str) -> Option<(f32, usize)> {
    let is_of_number = |c: char| c.is_ascii_digit() || "+-.".contains(c) || c.is_whitespace();
    let end = rest.find(|c| !is_of_number(c)).filter(|&end| rest[end..].starts_with(')'))?;
    let weight = rest[..end].trim().parse().ok().filter(|weight: &f32| weight.is_finite())?;
    Some((weight, end + 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(prompt: &str, expected: &[(&str, f32)]) {
        let found: Vec<(String, f32)> = parse(prompt)
            .expect("pieces")
            .into_iter()
            .map(|piece| match piece {
                Piece::Text(text, weight) => (text, (weight * 1000.0).round() / 1000.0),
                Piece::Break => ("BREAK".into(), -1.0),
            })
            .collect();
        let expected: Vec<(String, f32)> = expected.iter().map(|(text, w)| ((*text).to_owned(), *w)).collect();
        assert_eq!(found, expected, "{prompt}");
    }

    #[test]
    fn brackets_weigh_words() {
        check("normal text", &[("normal text", 1.0)]);
        check("an (important) word", &[("an ", 1.0), ("important", 1.1), (" word", 1.0)]);
        check("(unbalanced", &[("unbalanced", 1.1)]);
        check("unopened) ] here", &[("unopened) ] here", 1.0)]);
        check(r"\(literal\]", &[("(literal]", 1.0)]);
        check("(unnecessary)(parens)", &[("unnecessaryparens", 1.1)]);
        check("[a (b:1.3)] c", &[("a ", 0.909), ("b", 1.182), (" c", 1.0)]);
        check(
            "a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).",
            &[
                ("a ", 1.0),
                ("house", 1.573),
                (" ", 1.1),
                ("on", 1.0),
                (" a ", 1.1),
                ("hill", 0.55),
                (", sun, ", 1.1),
                ("sky", 1.464),
                (".", 1.1),
            ],
        );
        check("(time 12:30)", &[("time 12", 30.0)]);
        check("(a:b)", &[("a:b", 1.1)]);
        check("", &[]);
    }

    #[test]
    fn brackets_are_inside_each_other_up_to_a_depth() {
        let nested = |n: usize| parse(&("(a".repeat(n) + &"b)".repeat(n)));
        assert!(nested(MAX_DEPTH).is_ok());
        let error = nested(1 << 20).expect_err("refused");
        assert_eq!(error, "opens more than 1000 brackets inside each other");
        check(&"(a)".repeat(1 << 18), &[(&"a".repeat(1 << 18), 1.1)]);
    }

    #[test]
    fn break_starts_a_block() {
        check("a BREAK b", &[("a", 1.0), ("BREAK", -1.0), ("b", 1.0)]);
        check("BREAKFAST", &[("BREAKFAST", 1.0)]);
        check("(a BREAK b:2)", &[("a", 2.0), ("BREAK", -1.0), ("b", 2.0)]);
    }
}
