//! A pipeline that several threads use.

use std::ops::{Deref, DerefMut};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::{self, ThreadId};

use super::Pipeline;
use crate::Error;

/// A pipeline that several threads use: they wait for each other. A callback of a run that would wait for that run is
/// refused.
pub struct SharedPipeline {
    pipeline: Mutex<Pipeline>,
    /// The thread that has it.
    holder: Mutex<Option<ThreadId>>,
}

impl SharedPipeline {
    /// Shares a pipeline.
    pub fn new(pipeline: Pipeline) -> SharedPipeline {
        SharedPipeline { pipeline: Mutex::new(pipeline), holder: Mutex::new(None) }
    }

    /// Waits until no other thread has it.
    ///
    /// # Errors
    ///
    /// [`Error::Recursion`] where this thread has it, and [`Error::Broken`] after a panic while a thread had it.
    pub fn hold(&self) -> Result<Held<'_>, Error> {
        if *self.holder() == Some(thread::current().id()) {
            return Err(Error::Recursion);
        }
        let pipeline = self.pipeline.lock().map_err(|_| Error::Broken)?;
        *self.holder() = Some(thread::current().id());
        Ok(Held { pipeline, of: self })
    }

    fn holder(&self) -> MutexGuard<'_, Option<ThreadId>> {
        self.holder.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A pipeline that one thread has.
pub struct Held<'a> {
    pipeline: MutexGuard<'a, Pipeline>,
    of: &'a SharedPipeline,
}

impl Deref for Held<'_> {
    type Target = Pipeline;

    fn deref(&self) -> &Pipeline {
        &self.pipeline
    }
}

impl DerefMut for Held<'_> {
    fn deref_mut(&mut self) -> &mut Pipeline {
        &mut self.pipeline
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        *self.of.holder() = None;
    }
}
