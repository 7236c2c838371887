//! Jobs of one model that share evaluations of the denoiser; they join and leave between steps.

use std::ops::Deref;
use std::sync::Arc;
use std::time::Instant;

use kiln_runtime::infotext::{Infotext, Names};
use kiln_runtime::{Drawing, Error, Output, Session, Watch};

use super::Loaded;
use crate::metrics::End;
use crate::preview::LatentColours;
use crate::pulse::Work;
use crate::service::Shared;
use crate::{Fault, Finished, Job, LoraChoice, Phase, Spec};

/// What the jobs of a batch have in common, and how many pictures fit.
pub(super) struct Batch<'a> {
    shared: &'a Shared,
    capacity: usize,
    model: String,
    loras: Vec<LoraChoice>,
}

/// A job that is being drawn.
struct Member {
    job: Begun,
    drawing: Drawing,
}

/// A job that has begun: it ends, even where what draws it panics.
struct Begun(Arc<Job>);

impl Deref for Begun {
    type Target = Job;

    fn deref(&self) -> &Job {
        &self.0
    }
}

impl Drop for Begun {
    fn drop(&mut self) {
        self.0.enter(Phase::Failed(Fault::unknown()));
    }
}

impl<'a> Batch<'a> {
    pub(super) fn new(shared: &'a Shared, capacity: usize, spec: &Spec) -> Batch<'a> {
        Batch { shared, capacity, model: spec.model.clone(), loras: spec.loras.clone() }
    }

    /// Draws a job, and all that join it, until none is left.
    pub(super) fn run(&self, loaded: &mut Loaded, first: Arc<Job>) -> Result<(), Error> {
        let names = loaded.names();
        let Loaded { pipeline, colours, .. } = loaded;
        let mut session = pipeline.session();
        let mut members = Vec::new();
        self.begin(&mut session, &mut members, first);
        while !members.is_empty() {
            self.leave_cancelled(&mut members);
            self.join(&mut session, &mut members);
            self.advance(&mut session, &mut members, colours.as_ref());
            let (done, left) = members.into_iter().partition(|member: &Member| member.drawing.is_denoised());
            members = left;
            for member in done {
                self.finish(&mut session, member, colours, &names);
            }
        }
        Ok(())
    }

    /// Takes in what waits and fits.
    fn join(&self, session: &mut Session<'_>, members: &mut Vec<Member>) {
        loop {
            let n_pictures: usize = members.iter().map(|member| member.drawing.n_pictures()).sum();
            let fits = |job: &Job| {
                job.spec.model == self.model
                    && job.spec.loras == self.loras
                    && n_pictures + job.spec.request.prompts.len() <= self.capacity
            };
            match self.shared.queue.next_fitting(fits) {
                Some(job) => self.begin(session, members, job),
                None => return,
            }
        }
    }

    fn begin(&self, session: &mut Session<'_>, members: &mut Vec<Member>, job: Arc<Job>) {
        let job = Begun(job);
        job.begin();
        job.enter(Phase::Loading);
        self.shared.metrics.waited(&self.model, job.age());
        let watch = Watch::new().cancel(&job.cancel);
        self.shared.pulse.begin(&self.model, Work::Drawing);
        match session.begin(&job.spec.request, watch) {
            Ok(mut drawing) => {
                drawing.keep_estimates(true);
                job.enter(Phase::Drawing { step: 0, steps: drawing.steps() });
                members.push(Member { job, drawing });
            }
            Err(error) => self.fail(&job, &error),
        }
    }

    fn leave_cancelled(&self, members: &mut Vec<Member>) {
        members.retain(|member| {
            let stays = !member.job.is_cancelled();
            if !stays {
                self.shared.metrics.ended(&self.model, End::Cancelled);
                member.job.enter(Phase::Cancelled);
            }
            stays
        });
    }

    fn advance(&self, session: &mut Session<'_>, members: &mut Vec<Member>, colours: Option<&LatentColours>) {
        let begun = Instant::now();
        self.shared.pulse.begin(&self.model, Work::Drawing);
        let mut drawings: Vec<&mut Drawing> = members.iter_mut().map(|member| &mut member.drawing).collect();
        let results = session.advance(&mut drawings);
        let cost = members.iter().map(|member| member.job.cost / member.drawing.steps().max(1) as f64).sum();
        self.shared.speeds.note(&self.model, cost, begun.elapsed());
        let n_pictures = members.iter().map(|member| member.drawing.n_pictures()).sum();
        self.shared.metrics.evaluated(&self.model, n_pictures);
        let mut results = results.into_iter();
        members.retain(|member| match results.next() {
            Some(Err(error)) => {
                self.fail(&member.job, &error);
                false
            }
            _ => {
                let (step, steps) = (member.drawing.step(), member.drawing.steps());
                member.job.enter(Phase::Drawing { step, steps });
                let estimate = member.drawing.estimate().zip(colours);
                let preview = estimate.and_then(|(latents, colours)| colours.picture(latents));
                preview.into_iter().for_each(|preview| member.job.show(step, preview));
                true
            }
        });
    }

    fn finish(
        &self,
        session: &mut Session<'_>,
        member: Member,
        colours: &mut Option<LatentColours>,
        names: &Names,
    ) {
        let Member { job, drawing } = member;
        job.enter(Phase::Decoding);
        self.shared.pulse.begin(&self.model, Work::Decoding);
        let output = session.finish(drawing, Watch::new().cancel(&job.cancel));
        let output = output.and_then(|output| Ok((texts(session, &job, names)?, output)));
        match output {
            Ok((infotexts, Output { images, latents, timings, .. })) => {
                self.shared.metrics.took(&self.model, timings);
                self.shared.metrics.ended(&self.model, End::Done);
                let finished = Arc::new(Finished { images, infotexts, timings });
                job.enter(Phase::Done(finished.clone()));
                let picture = &finished.images[0];
                match colours {
                    Some(colours) => colours.learn(&latents, picture),
                    None => *colours = LatentColours::fit(&latents, picture),
                }
            }
            Err(error) => self.fail(&job, &error),
        }
    }

    fn fail(&self, job: &Job, error: &Error) {
        if job.is_cancelled() {
            self.shared.metrics.ended(&self.model, End::Cancelled);
            return job.enter(Phase::Cancelled);
        }
        self.shared.metrics.ended(&self.model, End::Failed);
        tracing::error!(job = %job.id, "{error}");
        job.enter(Phase::Failed(Fault::of(error)));
    }
}

/// How each picture of a job was made.
fn texts(session: &Session<'_>, job: &Job, names: &Names) -> Result<Vec<String>, Error> {
    let request = &job.spec.request;
    let text = Infotext::new(&session.pipeline().resolve(request)?, names);
    Ok((0..request.prompts.len()).map(|i| text.of(i)).collect())
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use kiln_runtime::Request;

    use super::*;
    use crate::{ClientId, FaultKind, JobId};

    fn job() -> Arc<Job> {
        let spec = Spec { model: "shapes".into(), request: Request::new("a star"), loras: Vec::new() };
        Arc::new(Job::new(JobId::random(), spec, ClientId::default(), 1.0))
    }

    #[test]
    fn all_jobs_of_a_batch_end_where_it_panics() {
        let jobs = [job(), job(), job()];
        jobs[2].enter(Phase::Cancelled);
        let drawn = jobs.clone();
        let outcome = catch_unwind(AssertUnwindSafe(move || {
            let _members = drawn.map(Begun);
            panic!("as an engine might");
        }));
        assert!(outcome.is_err());
        let is_failed = |job: &Arc<Job>| {
            matches!(job.status().phase, Phase::Failed(Fault { kind: FaultKind::Internal, .. }))
        };
        assert!(is_failed(&jobs[0]) && is_failed(&jobs[1]));
        assert_eq!(jobs[2].status().phase, Phase::Cancelled);
    }
}
