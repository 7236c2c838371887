//! Runs of a denoiser that reuse what its deep layers made in an earlier one (DeepCache, Ma et al. 2023).
//!
//! From step to step, features of a UNet's deep layers change little. The segments at its ends run each time; what the last of
//! them reads of those between is kept.

use std::ops::Range;
use std::rc::Rc;

use kiln_bundle::{ComponentName, Segment};
use kiln_engine::Tensor;
use ndarray::{ArrayD, Axis, Slice, concatenate};

use super::Residency;
use super::chain::{Chain, Given, Made};
use crate::Error;
use crate::architecture::Denoiser;

/// The segments that run each time, and what they read of the others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Ends {
    /// Segments at the beginning.
    pub(super) early: usize,
    /// The first one of those at the end.
    late: usize,
    deep: Vec<String>,
}

impl Ends {
    /// The ends of a denoiser: the fewest segments at its end that read a skip connection from the beginning besides the
    /// timestep's embedding. None where a component has too few segments for that.
    fn of(segments: &[Segment]) -> Option<Ends> {
        let middle = segments.len() / 2;
        let maker = |name: &String| segments.iter().position(|segment| segment.makes.contains(name));
        (middle + 1..segments.len()).rev().find_map(|late| {
            let read = segments[late..].iter().flat_map(|segment| &segment.reads);
            let mut before: Vec<(usize, &String)> =
                read.filter_map(|name| Some((maker(name).filter(|maker| *maker < late)?, name))).collect();
            before.sort();
            before.dedup();
            let n_early = before.iter().take_while(|(maker, _)| *maker < middle).count();
            let (skips, deep) = before.split_at(n_early);
            let ends = Ends {
                early: skips.last()?.0 + 1,
                late,
                deep: deep.iter().map(|(_, name)| (*name).clone()).collect(),
            };
            (skips.len() >= 2 && !deep.is_empty()).then_some(ends)
        })
    }
}

/// What deep segments made, for each row of a batch.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Deep(Vec<(String, ArrayD<f32>)>);

impl Deep {
    pub(crate) fn n_rows(&self) -> usize {
        self.0.first().map_or(0, |(_, values)| values.shape()[0])
    }

    /// That of some rows.
    pub(crate) fn rows(&self, rows: Range<usize>) -> Deep {
        let own = |values: &ArrayD<f32>| values.slice_axis(Axis(0), Slice::from(rows.clone())).to_owned();
        Deep(self.0.iter().map(|(name, values)| (name.clone(), own(values))).collect())
    }

    /// That of several batches as one.
    pub(crate) fn joined(all: &[&Deep]) -> Result<Deep, Error> {
        let first = all.first().map_or(&[][..], |deep| &deep.0);
        let value = |(i, (name, _)): (usize, &(String, ArrayD<f32>))| {
            let views: Vec<_> = all.iter().filter_map(|deep| Some(deep.0.get(i)?.1.view())).collect();
            let joined = concatenate(Axis(0), &views).map_err(|e| Error::Shapes(e.to_string()))?;
            Ok((name.clone(), joined))
        };
        Ok(Deep(first.iter().enumerate().map(value).collect::<Result<_, Error>>()?))
    }
}

/// Which segments of a denoiser run.
pub(crate) enum Reuse<'r> {
    /// All.
    Nothing,
    /// All; what the deep ones make is kept.
    Record(&'r mut Deep),
    /// Those at the ends.
    Replay(&'r Deep),
}

impl Residency {
    /// Refuses requests that leave deep layers out of a denoiser which has none that can be told apart.
    pub(crate) fn check_depth(&self, name: ComponentName, denoiser: &dyn Denoiser) -> Result<(), Error> {
        let component = self.component(name)?;
        let reason = match component.segments.len() {
            _ if !denoiser.has_skip_connections() => "the model has no skip connections around them".into(),
            _ if self.backend().format().is_for_device() => "engines on a device run as a whole".into(),
            _ if Ends::of(&component.segments).is_some() => return Ok(()),
            1 => "the model is compiled into 1 segment, in which they are".into(),
            n => format!(
                "the model is compiled into {n} segments, too few to tell its ends from what is between them"
            ),
        };
        Err(Error::Request { key: "deep every", reason })
    }
}

impl Chain<'_> {
    /// The denoiser's ends.
    pub(super) fn ends(&self) -> Result<Ends, Error> {
        Ends::of(&self.component.segments).ok_or_else(|| self.refuse("has no ends".into()))
    }

    /// Runs what is left of the segments when those of `0..begun` have run, which made `made`.
    pub(super) fn run_rest(
        &mut self,
        parts: &[Given<'_>],
        made: Vec<Made>,
        begun: usize,
        (ranges, reuse): (&[Range<usize>], Reuse<'_>),
    ) -> Result<Vec<Made>, Error> {
        let n = self.component.segments.len();
        let (made, late) = match reuse {
            Reuse::Nothing => (made, begun),
            Reuse::Record(deep) => {
                let ends = self.ends()?;
                let late = ends.late.max(begun);
                let made = self.run_segments(parts, made, begun..late)?;
                *deep = self.kept(&ends, &made)?;
                (made, late)
            }
            Reuse::Replay(deep) => {
                let ends = self.ends()?;
                let mut made = self.run_segments(parts, made, begun..ends.early.max(begun))?;
                for (made, rows) in made.iter_mut().zip(ranges) {
                    let own = deep.rows(rows.clone()).0.into_iter();
                    made.extend(own.map(|(name, values)| (name, Rc::new(Tensor::from(values)))));
                }
                (made, ends.late)
            }
        };
        self.run_segments(parts, made, late..n)
    }

    fn kept(&self, ends: &Ends, made: &[Made]) -> Result<Deep, Error> {
        let value = |name: &String| {
            let rows: Option<Vec<_>> = made.iter().map(|made| made.get(name)?.f32()).collect();
            let joined = rows.and_then(|rows| concatenate(Axis(0), &rows).ok());
            let joined = joined.ok_or_else(|| self.refuse(format!("made no floats '{name}'")))?;
            Ok((name.clone(), joined))
        };
        Ok(Deep(ends.deep.iter().map(value).collect::<Result<_, Error>>()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segments(segments: &[(&[&str], &[&str])]) -> Vec<Segment> {
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        let segment = |(reads, makes): &(&[&str], &[&str])| Segment {
            reads: names(reads),
            makes: names(makes),
            ..Segment::default()
        };
        segments.iter().map(segment).collect()
    }

    #[test]
    fn the_ends_are_the_fewest_segments_that_read_the_first_skip_connection() {
        let unet = segments(&[
            (&["sample", "timestep"], &["embedding", "skip"]),
            (&["skip", "embedding"], &["down"]),
            (&["down", "embedding"], &["middle"]),
            (&["middle", "down", "embedding"], &["up"]),
            (&["up", "skip", "embedding"], &["last"]),
            (&["last"], &["out"]),
        ]);
        let ends = Ends { early: 1, late: 4, deep: vec!["up".into()] };
        assert_eq!(Ends::of(&unet), Some(ends));
    }

    #[test]
    fn a_component_of_few_segments_has_none() {
        let whole = segments(&[(&["sample", "timestep"], &["out"])]);
        let chain = segments(&[(&["sample"], &["a"]), (&["a"], &["b"]), (&["b"], &["out"])]);
        assert_eq!([whole, chain].map(|segments| Ends::of(&segments)), [None, None]);
    }

    #[test]
    fn rows_are_joined_and_parted_again() {
        let deep = |x: f32, rows: usize| Deep(vec![("a".into(), ArrayD::from_elem(vec![rows, 2], x))]);
        let both = Deep::joined(&[&deep(1.0, 2), &deep(2.0, 1)]).expect("rows of one width");
        assert_eq!((both.n_rows(), both.rows(0..2), both.rows(2..3)), (3, deep(1.0, 2), deep(2.0, 1)));
    }
}
