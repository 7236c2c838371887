//! From runs that were measured to runs of other sizes.

use kiln_bundle::Sample;

/// What a run takes.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Forecast {
    /// Most bytes that the component takes, its weights among them.
    pub(crate) peak_bytes: f64,
    /// Bytes of these for intermediate results of kiln's kernels, which components use one after the other.
    pub(crate) scratch_bytes: f64,
    /// Bytes that it holds afterwards.
    pub(crate) held_bytes: f64,
    /// Seconds to load it.
    pub(crate) load_seconds: f64,
    /// Seconds to run it.
    pub(crate) seconds: f64,
}

impl Forecast {
    /// A run of `rows` over an area of latents, from samples of one row at growing areas and perhaps one of several rows at
    /// one of these areas; `growth` says how bytes grow.
    pub(crate) fn new(samples: &[Sample], rows: Rows, area: f64, growth: Growth) -> Forecast {
        let single: Vec<&Sample> = samples.iter().filter(|sample| sample.rows == 1).collect();
        let Some(largest) = single.last() else { return Forecast::default() };
        let several = samples.iter().find(|sample| sample.rows > 1);
        let of_area = |several: &Sample| single.iter().find(|one| sample_area(one) == sample_area(several));
        let base = several.and_then(of_area).unwrap_or(largest);
        let points = |value: fn(&Sample) -> f64| -> Vec<[f64; 2]> {
            single.iter().map(|sample| [sample_area(sample), value(sample)]).collect()
        };
        let share = if single.len() > 1 { area / sample_area(base) } else { 1.0 };
        let further_of = |value: fn(&Sample) -> f64, rows: u64| match several {
            Some(several) => {
                let each = (value(several) - value(base)) / (several.rows - 1) as f64;
                each.max(0.0) * (rows - 1) as f64
            }
            None => 0.0,
        };
        let further = |value| further_of(value, rows.at_once);
        let peak = |sample: &Sample| sample.peak_bytes.saturating_sub(sample.scratch_bytes) as f64;
        let scratch = |sample: &Sample| sample.scratch_bytes as f64;
        let held = |sample: &Sample| sample.held_bytes as f64;
        let seconds = |sample: &Sample| sample.seconds;
        let alone = seconds_at(&points(seconds), area);
        let scratch_bytes = within(&points(scratch), area) + further(scratch).min(scratch(base));
        Forecast {
            peak_bytes: peak_at(&points(peak), area, growth) + further(peak) * share + scratch_bytes,
            scratch_bytes,
            held_bytes: peak_at(&points(held), area, Growth::Linear) + further(held) * share,
            load_seconds: largest.load_seconds,
            seconds: alone + further_of(seconds, rows.all) * alone / base.seconds.max(f64::MIN_POSITIVE),
        }
    }
}

/// Rows of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rows {
    pub(crate) all: u64,
    /// Those whose intermediate results are there at once.
    pub(crate) at_once: u64,
}

impl Rows {
    /// So many, all at once.
    pub(crate) fn of(rows: u64) -> Rows {
        Rows { all: rows, at_once: rows }
    }
}

/// How bytes grow with the area.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Growth {
    /// Like the area.
    Linear,
    /// Like its square, as the scores of attention do.
    Quadratic,
}

/// By the line or parabola through the samples next to an area.
fn peak_at(points: &[[f64; 2]], area: f64, growth: Growth) -> f64 {
    let degree = match growth {
        Growth::Linear => 1,
        Growth::Quadratic => 2,
    };
    near(points, area, degree).max(at_least(points, area))
}

/// By the polynomial of a degree through the samples next to an area.
fn near(points: &[[f64; 2]], area: f64, degree: usize) -> f64 {
    let n = (degree + 1).min(points.len());
    let above = points.iter().position(|[x, _]| *x >= area).unwrap_or(points.len() - 1);
    let end = (above + 1).clamp(n, points.len());
    through(&points[end - n..end], area)
}

fn sample_area(sample: &Sample) -> f64 {
    sample.height as f64 * sample.width as f64
}

/// The polynomial through all points (Lagrange's formula).
fn through(points: &[[f64; 2]], x: f64) -> f64 {
    let weight = |i: usize| {
        let others = points.iter().enumerate().filter(|(j, _)| *j != i);
        others.map(|(_, [xj, _])| (x - xj) / (points[i][0] - xj)).product::<f64>()
    };
    points.iter().enumerate().map(|(i, [_, y])| y * weight(i)).sum()
}

/// By the line between the samples next to an area; outside of all of them, what the nearest took.
fn within(points: &[[f64; 2]], area: f64) -> f64 {
    let [first, last] = [0, points.len() - 1].map(|at| points[at][0]);
    near(points, area.max(first).min(last), 1)
}

/// What smaller areas took, larger ones take too.
fn at_least(points: &[[f64; 2]], area: f64) -> f64 {
    points.iter().filter(|[x, _]| *x <= area).map(|[_, y]| *y).fold(0.0, f64::max)
}

/// Work grows with the area, and attention's with its square.
fn seconds_at(points: &[[f64; 2]], area: f64) -> f64 {
    let (Some([a, ya]), Some([b, yb])) = (points.first(), points.last()) else { return 0.0 };
    if a == b {
        return *ya;
    }
    let square = ((yb / b - ya / a) / (b - a)).max(0.0);
    area * (yb / b + square * (area - b))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(rows: u64, side: u64, peak_bytes: u64, seconds: f64) -> Sample {
        let (height, width, scratch_bytes) = (side, side, 0);
        Sample { rows, height, width, peak_bytes, scratch_bytes, held_bytes: 7, load_seconds: 0.5, seconds }
    }

    #[test]
    fn what_kernels_need_grows_no_further_than_it_was_measured() {
        let with =
            |side, peak_bytes, scratch_bytes| Sample { scratch_bytes, ..sample(1, side, peak_bytes, 0.0) };
        let samples = [with(1, 130, 20), with(2, 190, 50)];
        let peak = |area: f64| Forecast::new(&samples, Rows::of(1), area, Growth::Linear).peak_bytes;
        assert!((peak(1.0) - 130.0).abs() < 1e-6 && (peak(4.0) - 190.0).abs() < 1e-6, "as measured");
        assert!((peak(2.5) - 160.0).abs() < 1e-6, "between");
        assert!((peak(16.0) - 310.0).abs() < 1e-6, "{}", peak(16.0));
    }

    #[test]
    fn measured_runs_are_their_own_forecast() {
        let samples = [sample(1, 4, 300, 1.0), sample(1, 8, 700, 5.0), sample(2, 8, 900, 9.0)];
        for measured in samples {
            let area = (measured.height * measured.width) as f64;
            let forecast = Forecast::new(&samples, Rows::of(measured.rows), area, Growth::Linear);
            assert!((forecast.peak_bytes - measured.peak_bytes as f64).abs() < 1e-6, "{forecast:?}");
            assert!((forecast.seconds - measured.seconds).abs() < 1e-9, "{forecast:?}");
            assert_eq!((forecast.held_bytes, forecast.load_seconds), (7.0, 0.5));
        }
    }

    #[test]
    fn bytes_grow_with_the_area_or_its_square() {
        let line = [sample(1, 1, 110, 0.0), sample(1, 2, 140, 0.0)];
        assert!((Forecast::new(&line, Rows::of(1), 9.0, Growth::Linear).peak_bytes - 190.0).abs() < 1e-6);
        let square = |side: u64| sample(1, side, 100 + side.pow(4), 0.0);
        let parabola = [square(2), square(3), square(4)];
        assert!(
            (Forecast::new(&parabola, Rows::of(1), 36.0, Growth::Quadratic).peak_bytes - 1396.0).abs() < 1e-6
        );
    }

    #[test]
    fn another_segment_may_need_most_at_larger_areas() {
        let bend = [sample(1, 1, 110, 0.0), sample(1, 2, 140, 0.0), sample(1, 4, 380, 0.0)];
        let peak = |area: f64| Forecast::new(&bend, Rows::of(1), area, Growth::Linear).peak_bytes;
        assert!(
            (peak(2.5) - 125.0).abs() < 1e-6 && (peak(10.0) - 260.0).abs() < 1e-6,
            "between its neighbours"
        );
        assert!((peak(64.0) - 1340.0).abs() < 1e-6, "by the last two");
    }

    #[test]
    fn larger_areas_never_take_less() {
        let noisy = [sample(1, 1, 110, 0.0), sample(1, 2, 104, 0.0)];
        assert_eq!(Forecast::new(&noisy, Rows::of(1), 9.0, Growth::Linear).peak_bytes, 110.0);
    }

    #[test]
    fn seconds_never_shrink_with_the_area() {
        let noisy = [sample(1, 4, 0, 2.0), sample(1, 8, 0, 4.0)];
        let seconds: Vec<f64> = [16.0, 64.0, 256.0]
            .iter()
            .map(|area| Forecast::new(&noisy, Rows::of(1), *area, Growth::Linear).seconds)
            .collect();
        assert!(seconds.is_sorted(), "{seconds:?}");
    }

    #[test]
    fn one_size_serves_every_size() {
        let fixed = [sample(1, 8, 700, 5.0)];
        assert_eq!(Forecast::new(&fixed, Rows::of(1), 640.0, Growth::Linear).peak_bytes, 700.0);
        assert_eq!(Forecast::new(&fixed, Rows::of(1), 640.0, Growth::Linear).seconds, 5.0);
        let rows = [sample(1, 1, 300, 1.0), sample(2, 1, 400, 2.0)];
        assert_eq!(Forecast::new(&rows, Rows::of(3), 640.0, Growth::Linear).peak_bytes, 500.0);
        let pairs = Forecast::new(&rows, Rows { all: 3, at_once: 2 }, 640.0, Growth::Linear);
        assert_eq!((pairs.peak_bytes, pairs.seconds), (400.0, 3.0));
    }
}
