//! Batches whose rows share inputs, as the halves of a guided batch do: they differ in the prompt alone, which the first layers
//! of a denoiser do not read (classifier-free guidance, Ho and Salimans 2022).

use std::ops::Range;
use std::rc::Rc;

use kiln_bundle::{AxisSize, PortInfo, Segment};
use kiln_engine::{Tensor, TensorView};
use ndarray::Axis;

use super::chain::{Chain, Given, Made, has_batch, rows_of};
use super::reuse::Reuse;
use crate::Error;

/// Which row of the shared inputs each row of a batch has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sources(Vec<usize>);

/// Rows of an input: a piece of it where they lie one behind the other, else a copy.
enum Rows<'v> {
    Lent(TensorView<'v>),
    Copied(Tensor),
}

impl Rows<'_> {
    fn view(&self) -> TensorView<'_> {
        match self {
            Rows::Lent(view) => view.reborrow(),
            Rows::Copied(tensor) => tensor.view(),
        }
    }
}

impl Sources {
    /// Adds the rows of `n` samples, once or, under guidance, twice.
    pub(crate) fn add(&mut self, n: usize, is_guided: bool) {
        let first = self.n_shared();
        for _ in 0..if is_guided { 2 } else { 1 } {
            self.0.extend(first..first + n);
        }
    }

    /// Rows of the shared inputs.
    fn n_shared(&self) -> usize {
        self.0.iter().max().map_or(0, |last| last + 1)
    }

    fn are_distinct(&self) -> bool {
        self.0.len() == self.n_shared()
    }

    /// The shared rows of rows of the batch, where they lie one behind the other.
    fn run(&self, rows: &Range<usize>) -> Option<Range<usize>> {
        let own = &self.0[rows.clone()];
        let first = *own.first()?;
        own.iter().copied().eq(first..first + own.len()).then_some(first..first + own.len())
    }

    /// Rows of the batch of what has a row for each shared one; none of what has not.
    fn select(&self, view: &TensorView<'_>, rows: &Range<usize>) -> Option<Tensor> {
        match view {
            _ if view.shape().first() != Some(&self.n_shared()) => None,
            TensorView::F32(view) => Some(Tensor::F32(view.select(Axis(0), &self.0[rows.clone()]))),
            TensorView::I64(view) => Some(Tensor::I64(view.select(Axis(0), &self.0[rows.clone()]))),
            _ => None,
        }
    }

    /// Whether an input has a row for each of the batch.
    fn are_rows_of(&self, port: &PortInfo) -> bool {
        has_batch(port) || port.shape.first() == Some(&AxisSize::Fixed(self.0.len() as u64))
    }
}

impl Chain<'_> {
    /// Runs once; like [`Chain::run`], but that `shared` has only the rows that `sources` names, and `own` all rows. Segments at
    /// the beginning that read nothing of `own` run for the rows of `shared` alone, and those between a denoiser's ends as
    /// `reuse` says.
    pub(crate) fn run_sharing(
        &mut self,
        shared: &[(&str, TensorView<'_>)],
        own: &[(&str, TensorView<'_>)],
        sources: &Sources,
        reuse: Reuse<'_>,
    ) -> Result<Vec<Tensor>, Error> {
        let n_sharing = if sources.are_distinct() { 0 } else { self.n_sharing(shared) };
        let n_sharing = match reuse {
            Reuse::Replay(_) => n_sharing.min(self.ends()?.early),
            Reuse::Nothing | Reuse::Record(_) => n_sharing,
        };
        let ranges = self.ranges(sources.0.len());
        let made = match n_sharing {
            0 => ranges.iter().map(|_| Made::new()).collect(),
            n => {
                let parts = self.ranges(sources.n_shared());
                let parts: Vec<Given<'_>> = parts.into_iter().map(|rows| self.part(shared, rows)).collect();
                let made = parts.iter().map(|_| Made::new()).collect();
                let made = self.run_segments(&parts, made, 0..n)?;
                self.distributed(made, sources, &ranges)?
            }
        };
        let read = shared.iter().filter(|(name, _)| self.is_read_from(n_sharing, name));
        let rows_of_part = |rows: &Range<usize>| -> Vec<_> {
            read.clone().map(|(name, view)| (*name, self.own_rows(name, view, sources, rows))).collect()
        };
        let spread: Vec<_> = ranges.iter().map(rows_of_part).collect();
        let parts = ranges.iter().zip(&spread).map(|(rows, spread)| {
            let mut part = self.part(own, rows.clone());
            part.extend(spread.iter().map(|(name, rows)| (*name, rows.view())));
            part
        });
        let parts: Vec<Given<'_>> = parts.collect();
        let mut made = self.run_rest(&parts, made, n_sharing, (&ranges, reuse))?;
        let outputs = self.take_outputs(&mut made)?;
        self.finished(outputs)
    }

    /// Segments at the beginning that read nothing but `shared`; none where an engine was built for so many rows.
    fn n_sharing(&self, shared: &[(&str, TensorView<'_>)]) -> usize {
        let is_fixed = |name: &str| {
            let axis = self.port(name).and_then(|port| port.shape.first());
            matches!(axis, Some(AxisSize::Fixed(n)) if *n > 1)
        };
        if self.residency.backend().format().is_for_device() || shared.iter().any(|(name, _)| is_fixed(name)) {
            return 0;
        }
        let segments = &self.component.segments;
        let is_known = |name: &String, before: &[Segment]| {
            shared.iter().any(|(shared, _)| shared == name)
                || before.iter().any(|segment| segment.makes.contains(name))
        };
        let shares = |i: &usize| segments[*i].reads.iter().all(|name| is_known(name, &segments[..*i]));
        (0..segments.len() - 1).take_while(shares).count()
    }

    fn is_read_from(&self, segment: usize, name: &str) -> bool {
        self.component.segments[segment..].iter().any(|segment| segment.reads.iter().any(|read| read == name))
    }

    /// A part's rows of a shared input, or all of one that has no rows.
    fn own_rows<'v>(
        &self,
        name: &str,
        view: &'v TensorView<'_>,
        sources: &Sources,
        rows: &Range<usize>,
    ) -> Rows<'v> {
        if !self.port(name).is_some_and(|port| sources.are_rows_of(port)) {
            return Rows::Lent(view.reborrow());
        }
        match sources.run(rows) {
            Some(run) => Rows::Lent(rows_of(view, run)),
            None => sources.select(view, rows).map_or_else(|| Rows::Lent(view.reborrow()), Rows::Copied),
        }
    }

    /// What was made for the shared rows, for each part of the batch.
    fn distributed(
        &self,
        mut made: Vec<Made>,
        sources: &Sources,
        ranges: &[Range<usize>],
    ) -> Result<Vec<Made>, Error> {
        if made.len() == sources.n_shared() && ranges.len() == sources.0.len() {
            return Ok(sources.0.iter().map(|&row| made[row].clone()).collect());
        }
        let names: Vec<String> = made.first().into_iter().flat_map(Made::keys).cloned().collect();
        let mut parts: Vec<Made> = ranges.iter().map(|_| Made::new()).collect();
        for name in names {
            let all = Rc::new(self.joined(&name, true, &mut made)?);
            for (part, rows) in parts.iter_mut().zip(ranges) {
                let own = sources.select(&all.view(), rows).map_or_else(|| all.clone(), Rc::new);
                part.insert(name.clone(), own);
            }
        }
        Ok(parts)
    }
}
