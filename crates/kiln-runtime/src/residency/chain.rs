//! A component as one network, whatever segments it is made of.

use std::collections::BTreeMap;
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;

use kiln_bundle::{AxisSize, Component, ComponentName, PortInfo, Segment, TensorFile};
use kiln_engine::{Placement, Tensor, TensorView};
use ndarray::{ArrayViewD, Axis, Slice, concatenate};

use super::{Residency, joined};
use crate::{Error, MemoryOptions, Offload};

/// Least rows of a batch for each lane: fewer do not gain.
const ROWS_PER_LANE: usize = 2;

/// Most rows that run together where weights are mapped, those of a picture under guidance. Which ones do is the same
/// whatever is offloaded, and so are the pictures.
pub(super) const ROWS_TOGETHER: usize = 2;

/// A component as the chain of its segments, which are loaded when they run, if they are not loaded yet.
pub(crate) struct Chain<'a> {
    pub(super) residency: &'a mut Residency,
    name: ComponentName,
    pub(super) component: Arc<Component>,
    /// Its weight file, where weights are prefetched.
    weights: Option<TensorFile>,
}

/// What a part of the batch reads of a component's inputs.
pub(super) type Given<'a> = Vec<(&'a str, TensorView<'a>)>;

/// What the segments made for one part of the batch, as long as it is needed.
pub(super) type Made = BTreeMap<String, Rc<Tensor>>;

impl<'a> Chain<'a> {
    pub(super) fn new(residency: &'a mut Residency, name: ComponentName) -> Result<Chain<'a>, Error> {
        let component = residency.component(name)?.clone();
        let streams = residency.memory.offload == Offload::Sequential && residency.memory.prefetch > 0;
        let weights = match &component.weights {
            Some(file) if streams => {
                let opened = TensorFile::open(&residency.bundle.path(file));
                Some(opened.map_err(|e| Error::Component { component: name, reason: e.to_string() })?)
            }
            _ => None,
        };
        Ok(Chain { residency, name, component, weights })
    }

    /// What it reads.
    pub(crate) fn inputs(&self) -> &[PortInfo] {
        &self.component.inputs
    }

    /// What it makes.
    pub(crate) fn outputs(&self) -> &[PortInfo] {
        &self.component.outputs
    }

    /// The error of a component without an output of floats.
    pub(crate) fn no_output(&self) -> Error {
        self.refuse("has no output of floats".into())
    }

    /// Another component of the same bundle, for a moment.
    pub(crate) fn other(&mut self, name: ComponentName) -> Result<Chain<'_>, Error> {
        Chain::new(self.residency, name)
    }

    /// Lets go, under offload, of what ran beside this component.
    pub(crate) fn release_others(&mut self) {
        if self.residency.memory.offload != Offload::None {
            let name = self.name;
            self.residency.release(|held| held == name);
        }
    }

    /// The device that it computes on, where that is not the host.
    #[cfg(feature = "cuda")]
    pub(crate) fn device(&self) -> Option<Arc<kiln_cuda::Device>> {
        self.residency.backend.device().cloned()
    }

    /// Runs once; `inputs` in any order, the results in the order of [`Chain::outputs`], in memory of the host.
    pub(crate) fn run(&mut self, inputs: &[(&str, TensorView<'_>)]) -> Result<Vec<Tensor>, Error> {
        let made = self.run_where_it_is(inputs)?;
        self.finished(made)
    }

    /// What was made, in memory of the host.
    pub(super) fn finished(&self, made: Vec<Tensor>) -> Result<Vec<Tensor>, Error> {
        let made = made.into_iter().map(Tensor::into_host).collect::<Result<Vec<_>, _>>()?;
        let is_finite =
            |tensor: &Tensor| tensor.f32().is_none_or(|floats| floats.iter().all(|x| x.is_finite()));
        match made.iter().all(is_finite) {
            true => Ok(made),
            false => Err(self
                .blamed(Error::Overflow { component: self.name, precision: self.component.precision.clone() })),
        }
    }

    /// The error, or that of weights which are not finite where there are such.
    pub(crate) fn blamed(&self, error: Error) -> Error {
        let Some(weights) = &self.component.weights else { return error };
        let path = self.residency.bundle.path(weights);
        match TensorFile::open(&path).and_then(|file| file.not_finite()) {
            Ok(names) if names.is_empty() => error,
            Ok(names) => Error::Weights { reason: self.not_finite(&names), path },
            Err(error) => Error::Weights { reason: error.reason(), path },
        }
    }

    fn not_finite(&self, names: &[String]) -> String {
        let others = match names.len() - 1 {
            0 => String::new(),
            1 => ", and so does another one".into(),
            n => format!(", and so do {n} others"),
        };
        format!("'{}' of {} holds NaN or infinity{others}", names[0], self.name)
    }

    /// The same, with the results where the engines made them.
    pub(crate) fn run_where_it_is(&mut self, inputs: &[(&str, TensorView<'_>)]) -> Result<Vec<Tensor>, Error> {
        if let Some((name, _)) =
            inputs.iter().find(|(name, _)| !self.inputs().iter().any(|port| port.name == *name))
        {
            return Err(self.refuse(format!("has no input '{name}'")));
        }
        let parts: Vec<Given<'_>> =
            self.ranges(self.rows(inputs)).into_iter().map(|rows| self.part(inputs, rows)).collect();
        let made = parts.iter().map(|_| Made::new()).collect();
        let mut made = self.run_segments(&parts, made, 0..self.component.segments.len())?;
        self.take_outputs(&mut made)
    }

    /// What the last segments made for each part of the batch, as the component's outputs.
    pub(super) fn take_outputs(&self, made: &mut [Made]) -> Result<Vec<Tensor>, Error> {
        let outputs = self.component.outputs.iter();
        outputs.map(|port| self.joined(&port.name, has_batch(port), made)).collect()
    }

    /// Runs segments for each part of the batch, for which those before made `made`; what is made then and read later.
    pub(super) fn run_segments(
        &mut self,
        parts: &[Given<'_>],
        mut made: Vec<Made>,
        segments: Range<usize>,
    ) -> Result<Vec<Made>, Error> {
        let together = match self.residency.placement() {
            Placement::Mapped if self.residency.memory.offload != Offload::Sequential => ROWS_TOGETHER,
            Placement::Mapped | Placement::Packed => parts.len(),
        };
        for (parts, made) in parts.chunks(together).zip(made.chunks_mut(together)) {
            self.run_together(parts, made, segments.clone())?;
        }
        Ok(made)
    }

    /// Under offload, asks for the weights of the component that runs next while this one finishes.
    pub(crate) fn prefetch_next(&mut self, next: ComponentName) -> Result<(), Error> {
        let MemoryOptions { offload, prefetch, .. } = self.residency.memory;
        match (offload, self.residency.backend.swaps()) {
            _ if prefetch == 0 => Ok(()),
            (Offload::Model, true) => self.residency.prefetch_component(next),
            (Offload::Model | Offload::Sequential, false) => {
                self.residency.prefetch_pages(next);
                Ok(())
            }
            (Offload::None, _) | (Offload::Sequential, true) => Ok(()),
        }
    }

    /// Runs each segment for all parts before the next segment.
    ///
    /// What segments make for each other is dropped when its last reader has run.
    fn run_together(
        &mut self,
        parts: &[Given<'_>],
        made: &mut [Made],
        segments: Range<usize>,
    ) -> Result<(), Error> {
        let (name, component) = (self.name, self.component.clone());
        let placement = self.residency.placement();
        for i in segments {
            let segment = &component.segments[i];
            self.residency.prefetch(self.weights.as_ref(), name, i)?;
            self.residency.with_engine(name, i, |engine| {
                let at_once = match placement {
                    Placement::Packed => parts.len(),
                    Placement::Mapped if joined::gains(segment, &reads(segment, &parts[0], &made[0])) => {
                        ROWS_TOGETHER
                    }
                    Placement::Mapped => 1,
                };
                for (given, made) in parts.chunks(at_once).zip(made.chunks_mut(at_once)) {
                    let each = given.iter().zip(&*made).map(|(given, made)| reads(segment, given, made));
                    let each: Vec<Given<'_>> = each.collect();
                    let outputs = match placement {
                        Placement::Packed => engine.run_each(&each)?,
                        Placement::Mapped => joined::run(engine, &each)?,
                    };
                    for (made, outputs) in made.iter_mut().zip(outputs) {
                        made.extend(segment.makes.iter().cloned().zip(outputs.into_iter().map(Rc::new)));
                        made.retain(|name, _| component.is_read_after(name, i));
                    }
                }
                Ok(())
            })?;
            self.residency.has_run(name, &component, i);
        }
        Ok(())
    }

    /// Rows of the batch.
    fn rows(&self, inputs: &[(&str, TensorView<'_>)]) -> usize {
        let batched = inputs.iter().find(|(name, _)| self.port(name).is_some_and(has_batch));
        batched.map_or(1, |(_, view)| view.shape()[0])
    }

    /// The rows of each part of a batch: row by row where weights are mapped, in parts for the backend's lanes where there are
    /// rows enough, else all together.
    ///
    /// Packed weights are few, and small products gain from more rows, as all do on a device. Large ones do not, and a row
    /// alone takes the least memory.
    pub(super) fn ranges(&self, rows: usize) -> Vec<Range<usize>> {
        let n_parts = if self.inputs().iter().any(has_batch) { self.n_parts(rows) } else { 1 };
        (0..n_parts).map(|i| rows * i / n_parts..rows * (i + 1) / n_parts).collect()
    }

    /// Rows of the inputs.
    pub(super) fn part<'v>(&self, inputs: &'v [(&'v str, TensorView<'_>)], rows: Range<usize>) -> Given<'v> {
        let of_part = inputs.iter().map(|(name, view)| match self.port(name).is_some_and(has_batch) {
            true => (*name, rows_of(view, rows.clone())),
            false => (*name, view.reborrow()),
        });
        of_part.collect()
    }

    pub(super) fn port(&self, name: &str) -> Option<&PortInfo> {
        self.inputs().iter().find(|port| port.name == name)
    }

    fn n_parts(&self, rows: usize) -> usize {
        let lanes = self.residency.lanes();
        match self.residency.placement() {
            _ if self.residency.backend.format().is_for_device() => 1,
            Placement::Mapped => rows.max(1),
            Placement::Packed if rows >= ROWS_PER_LANE * lanes => lanes,
            Placement::Packed => 1,
        }
    }

    /// What was made of this name for all parts of the batch.
    pub(super) fn joined(&self, name: &str, has_batch: bool, made: &mut [Made]) -> Result<Tensor, Error> {
        let rows: Option<Vec<Rc<Tensor>>> = made.iter_mut().map(|made| made.remove(name)).collect();
        let mut rows = rows.ok_or_else(|| self.refuse(format!("made no '{name}'")))?;
        if rows.len() == 1 || !has_batch {
            let last = Rc::try_unwrap(rows.swap_remove(0));
            return last.map_err(|_| self.refuse(format!("'{name}' is read elsewhere")));
        }
        let views: Option<Vec<ArrayViewD<'_, f32>>> = rows.iter().map(|row| row.f32()).collect();
        let views = views.ok_or_else(|| self.refuse(format!("'{name}' holds no floats")))?;
        Ok(concatenate(Axis(0), &views).map_err(|e| self.refuse(e.to_string()))?.into())
    }

    pub(super) fn refuse(&self, reason: String) -> Error {
        Error::Component { component: self.name, reason }
    }
}

/// What a segment reads: inputs of the component, and what segments before it made.
fn reads<'v>(
    segment: &'v Segment,
    given: &'v [(&str, TensorView<'_>)],
    made: &'v Made,
) -> Vec<(&'v str, TensorView<'v>)> {
    let find = |name: &'v String| {
        let given = || given.iter().find(|(given, _)| given == name).map(|(_, view)| view.reborrow());
        made.get(name.as_str()).map(|made| made.view()).or_else(given).map(|view| (name.as_str(), view))
    };
    segment.reads.iter().filter_map(find).collect()
}

pub(super) fn has_batch(port: &PortInfo) -> bool {
    matches!(port.shape.first(), Some(AxisSize::Dynamic(symbol)) if symbol == "batch")
}

/// Rows of a batch in memory of the host.
pub(super) fn rows_of<'v>(view: &'v TensorView<'_>, rows: Range<usize>) -> TensorView<'v> {
    let at = Slice::from(rows);
    match view {
        TensorView::F32(view) => TensorView::F32(view.slice_axis(Axis(0), at)),
        TensorView::I64(view) => TensorView::I64(view.slice_axis(Axis(0), at)),
        _ => view.reborrow(),
    }
}
