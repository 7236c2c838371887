//! What whoever draws a job tells of it while it does. Nothing depends on it: a process that misses an event learns the end
//! from the record.

use std::sync::Arc;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use kiln_runtime::image::RgbImage;
use kiln_server::{Job, Phase, Status};
use serde::{Deserialize, Serialize};

/// Longest side of a preview.
const MAX_SIDE: u32 = 512;

/// How far a job is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "phase")]
pub(crate) enum Event {
    Loading,
    Drawing {
        step: usize,
        steps: usize,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        preview: Option<Preview>,
    },
    Decoding,
}

/// What a picture looks like so far.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Preview {
    step: usize,
    width: u32,
    height: u32,
    /// Rows of RGB in base64.
    rgb: String,
}

impl Event {
    /// What there is to tell of a state; `with_preview` adds what the picture looks like.
    pub(crate) fn of(status: &Status, with_preview: bool) -> Option<Event> {
        let preview = || status.preview.as_ref().map(|(step, image)| Preview::of(*step, image));
        match status.phase {
            Phase::Loading => Some(Event::Loading),
            Phase::Drawing { step, steps } => {
                Some(Event::Drawing { step, steps, preview: with_preview.then(preview).flatten() })
            }
            Phase::Decoding => Some(Event::Decoding),
            _ => None,
        }
    }

    /// Tells it of a job that is drawn elsewhere.
    pub(crate) fn tell(self, job: &Job) {
        match self {
            Event::Loading => job.enter(Phase::Loading),
            Event::Decoding => job.enter(Phase::Decoding),
            Event::Drawing { step, steps, preview } => {
                job.enter(Phase::Drawing { step, steps });
                if let Some((step, image)) = preview.and_then(Preview::image) {
                    job.show(step, Arc::unwrap_or_clone(image));
                }
            }
        }
    }
}

impl Preview {
    fn of(step: usize, image: &RgbImage) -> Preview {
        let rgb = BASE64_STANDARD.encode(image.data());
        Preview { step, width: image.width(), height: image.height(), rgb }
    }

    fn image(self) -> Option<(usize, Arc<RgbImage>)> {
        if self.width.max(self.height) > MAX_SIDE {
            return None;
        }
        let data = BASE64_STANDARD.decode(self.rgb).ok()?;
        let image = RgbImage::from_raw(self.width, self.height, data).ok()?;
        Some((self.step, Arc::new(image)))
    }
}

#[cfg(test)]
mod tests {
    use kiln_runtime::Request;
    use kiln_server::{ClientId, JobId, Spec};

    use super::*;

    #[test]
    fn events_carry_the_step_and_the_preview() {
        let image = RgbImage::from_raw(2, 1, vec![1, 2, 3, 4, 5, 6]).expect("a picture");
        let status =
            Status { phase: Phase::Drawing { step: 3, steps: 9 }, preview: Some((2, Arc::new(image))) };
        let text = serde_json::to_string(&Event::of(&status, true).expect("an event")).expect("JSON");
        let spec = Spec { model: "shapes".into(), loras: Vec::new(), request: Request::new("a star") };
        let job = Job::new(JobId::random(), spec, ClientId::default(), 1.0);
        serde_json::from_str::<Event>(&text).expect("an event").tell(&job);
        assert_eq!(job.status(), status);
        let silly = r#"{"phase":"drawing","step":1,"steps":9,"preview":{"step":1,"width":4000000000,"height":1,"rgb":""}}"#;
        serde_json::from_str::<Event>(silly).expect("an event").tell(&job);
        assert_eq!(job.status().preview, status.preview);
    }
}
