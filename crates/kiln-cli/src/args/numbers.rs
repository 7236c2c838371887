//! Numbers as arguments have them.

pub(super) fn number(text: &str) -> Result<f64, String> {
    text.parse()
        .ok()
        .filter(|n: &f64| n.is_finite() && *n >= 0.0)
        .ok_or_else(|| "expected a number from 0".into())
}

pub(super) fn share(text: &str) -> Result<f64, String> {
    number(text).ok().filter(|n| *n <= 1.0).ok_or_else(|| "expected a number from 0 to 1".into())
}

/// `X,Y` as top and left.
pub(super) fn point(text: &str) -> Result<[u32; 2], String> {
    let number = |text: &str| text.trim().parse().ok().filter(|n: &u32| *n <= 1 << 20);
    let point = text.split_once(',').and_then(|(left, top)| Some([number(top)?, number(left)?]));
    point.ok_or_else(|| "expected X,Y".into())
}
