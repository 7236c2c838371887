//! `txt2img` and `img2img` as jobs.

use std::ops::Range;

use axum::body::Bytes;
use kiln_runtime::scheduler::{WEB_UI_SAMPLERS, WEB_UI_SCHEDULES, WebUiSampler, WebUiSchedule};
use kiln_runtime::{Control, Hires, Request, Size, Upscaler, Variation};

use super::answer::Answer;
use super::fields::{Fields, invalid};
use super::options::{self, Settings};
use super::paint::{self, Task};
use super::tables::{IMG2IMG, TXT2IMG};
use super::{controlnet, echo, prompt};
use crate::fault::shown;
use crate::http::drawing::new_seed;
use crate::http::error::ApiError;
use crate::{ModelCard, Spec};
use serde_json::Value;

/// What to draw for a call, and what to answer.
pub(super) struct Plan {
    /// One per iteration.
    pub(super) specs: Vec<Spec>,
    pub(super) answer: Answer,
    /// The settings, where the call changes them for good.
    pub(super) settings: Option<Settings>,
}

/// The weight of the prompt where a call says none.
const GUIDANCE: f64 = 7.0;

/// How much is changed where a call does not say.
const STRENGTH: f64 = 0.75;

impl Plan {
    /// Reads a call. Decodes and resizes pictures: off the threads that answer.
    pub(super) fn read(
        task: &'static str,
        body: &Bytes,
        models: &[ModelCard],
        mut settings: Settings,
    ) -> Result<Plan, ApiError> {
        let fields = Fields::of(body, if task == "txt2img" { &TXT2IMG } else { &IMG2IMG })?;
        let mut comments = Vec::new();
        settings.apply(&fields.object("override_settings"), models, &mut comments)?;
        let changes = fields.flag("override_settings_restore_afterwards") == Some(false);
        let model = match fields.choice("model") {
            Some(name) => options::find(models, name)?,
            None => settings.model(models)?,
        };
        let reader = Reader { fields: &fields, model, settings: &settings };
        let mut plan = reader.plan(task, comments)?;
        plan.settings = changes.then(|| settings.clone());
        Ok(plan)
    }
}

struct Reader<'a> {
    fields: &'a Fields,
    model: &'a ModelCard,
    settings: &'a Settings,
}

impl Reader<'_> {
    fn plan(&self, task: &'static str, mut comments: Vec<String>) -> Result<Plan, ApiError> {
        let (fields, model) = (self.fields, self.model);
        let (sent, negative) = self.texts()?;
        let mut read = prompt::read(sent, &model.loras)?;
        comments.extend(read.unknown.iter().map(|name| format!("Networks not found: {name}")));
        if fields.flag("disable_extra_networks") == Some(true) {
            read.loras.clear();
        }
        let (n_iter, batch_size) = self.counts()?;
        let seeds = self.seeds(n_iter * batch_size);
        let size = self.size()?;
        let mut request = self.request(size, negative)?;
        let (mut init, mut paste) = (None, None);
        match task {
            "txt2img" => request.hires = self.hires(size)?,
            _ => {
                let Task { init: found, paste: behind } = paint::task(fields, model, size, STRENGTH)?;
                (init, paste) = (Some(found), behind);
            }
        }
        request.controls = self.controls(init.as_ref(), size)?;
        request.init = init.map(|init| init.0);
        let answer = Answer {
            prompt: sent.to_owned(),
            negative_prompt: negative.to_owned(),
            seeds: seeds.own.clone(),
            subseeds: seeds.others.clone(),
            subseed_strength: seeds.strength.unwrap_or(0.0),
            batch_size,
            strength: fields.number("denoising_strength"),
            clip_skip: request.clip_skip + 1,
            model: model.name.clone(),
            model_hash: options::hash(model).to_owned(),
            format: self.settings.format,
            sends_images: fields.flag("send_images") != Some(false),
            comments,
            parameters: echo::parameters(task, fields)?,
            paste,
        };
        let specs =
            (0..n_iter).map(|i| self.spec(&request, &read, &seeds, i * batch_size..(i + 1) * batch_size));
        Ok(Plan { specs: specs.collect(), answer, settings: None })
    }

    fn texts(&self) -> Result<(&str, &str), ApiError> {
        let text = |key: &str| self.fields.text(key).unwrap_or_default();
        let (prompt, negative) = (text("prompt"), text("negative_prompt"));
        let limit = self.model.limits.prompt_bytes;
        match [prompt, negative].into_iter().find(|text| text.len() > limit) {
            Some(text) => Err(invalid("prompt", format!("{} bytes, the limit is {limit}", text.len()))),
            None => Ok((prompt, negative)),
        }
    }

    /// What all iterations have in common, without pictures.
    fn request(&self, size: Size, negative: &str) -> Result<Request, ApiError> {
        let steps = self.fields.whole("steps");
        let mut request = Request::new("")
            .size(size)
            .steps(steps.and_then(|steps| usize::try_from(steps).ok()))
            .guidance_scale(self.fields.number("cfg_scale").unwrap_or(GUIDANCE) as f32)
            .clip_skip(self.clip_skip())
            .generator(self.settings.generator);
        request.negative_prompts.extend(Some(negative.to_owned()).filter(|text| !text.is_empty()));
        self.schedule(&mut request)?;
        Ok(request)
    }

    /// An iteration: these of all pictures.
    fn spec(&self, request: &Request, prompt: &prompt::Prompt, seeds: &Seeds, these: Range<usize>) -> Spec {
        let mut request = request.clone().prompts(vec![prompt.text.clone(); these.len()]);
        request.seeds = seeds.own[these.clone()].to_vec();
        let others = seeds.others[these].to_vec();
        request.variation = seeds.strength.map(|strength| Variation { seeds: others, strength });
        Spec { model: self.model.name.clone(), loras: prompt.loras.clone(), request }
    }

    /// Iterations and pictures of each.
    fn counts(&self) -> Result<(usize, usize), ApiError> {
        let count = |key: &str| self.fields.whole(key).unwrap_or(1) as usize;
        let (n_iter, batch_size) = (count("n_iter"), count("batch_size"));
        let limit = self.model.limits.pictures;
        match n_iter * batch_size > limit {
            true => {
                Err(invalid("batch_size", format!("{n_iter} x {batch_size} pictures, the limit is {limit}")))
            }
            false => Ok((n_iter, batch_size)),
        }
    }

    /// Picture i has seed + i, or with a variation the variation's seed + i.
    fn seeds(&self, n: usize) -> Seeds {
        let first = self.fields.seed("seed").unwrap_or_else(new_seed);
        let other = self.fields.seed("subseed").unwrap_or_else(new_seed);
        let strength = self.fields.number("subseed_strength").unwrap_or(0.0) as f32;
        let following = |first: u64, step: u64| (0..n as u64).map(|i| first.wrapping_add(i * step)).collect();
        Seeds {
            own: following(first, u64::from(strength == 0.0)),
            others: following(other, 1),
            strength: (strength > 0.0).then_some(strength),
        }
    }

    /// The model's own where a side is not given; within the model's limits, before anything is made of it.
    fn size(&self) -> Result<Size, ApiError> {
        let limits = self.model.limits;
        let side = |key: &str, own: u32| {
            let side = self.fields.whole(key).and_then(|side| u32::try_from(side).ok()).unwrap_or(own);
            match side > limits.side {
                true => Err(invalid(key, format!("{side}, the limit is {}", limits.side))),
                false => Ok(side),
            }
        };
        let own = self.model.size;
        let size = Size::new(side("width", own.width)?, side("height", own.height)?);
        match size.area() > limits.pixels {
            true => Err(invalid("width", format!("{size} pixels, the limit is {} in all", limits.pixels))),
            false => Ok(size),
        }
    }

    fn clip_skip(&self) -> usize {
        let last = self.fields.whole("clip_skip");
        last.map_or(self.settings.clip_skip, |last| usize::try_from(last.max(1) - 1).unwrap_or_default())
    }

    /// The scheduler, and its noise: clients send an `eta` of 1 whatever the sampler, which samplers with noise of
    /// their own mean and DDIM does not.
    fn schedule(&self, request: &mut Request) -> Result<(), ApiError> {
        let sampler = self.fields.choice("sampler_name").or(self.fields.choice("sampler_index"));
        let schedule = self.fields.choice("scheduler").map(schedule).transpose()?;
        request.scheduler = match sampler {
            None => self.model.scheduler.clone(),
            Some(name) => Some(scheduler(name, schedule)?),
        };
        let eta = self.fields.number("eta").map(|eta| eta as f32).filter(|eta| *eta != 1.0);
        let name = request.scheduler.as_deref().unwrap_or("ddim");
        let has_noise = ["euler-a", "kdpm2-a", "dpm++2m-sde"].iter().any(|with| name.starts_with(with));
        match (eta, name) {
            (Some(eta), _) if has_noise => {
                Err(invalid("eta", format!("{eta}: this sampler draws with 1 alone")))
            }
            (eta, "ddim") => {
                request.eta = eta.unwrap_or(self.settings.eta_ddim);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn hires(&self, size: Size) -> Result<Option<Hires>, ApiError> {
        let fields = self.fields;
        if fields.flag("enable_hr") != Some(true) {
            return Ok(None);
        }
        for key in ["firstphase_width", "firstphase_height"] {
            if fields.number(key).is_some_and(|side| side != 0.0) {
                return Err(invalid(key, "is not read; give the first size as width and height"));
            }
        }
        for (key, first) in [
            ("hr_prompt", "prompt"),
            ("hr_negative_prompt", "negative_prompt"),
            ("hr_sampler_name", "sampler_name"),
            ("hr_scheduler", "scheduler"),
        ] {
            let is_same = |text: &str| text.to_ascii_lowercase().starts_with("use same") || text.is_empty();
            let other = fields.text(key).filter(|text| !is_same(text) && Some(*text) != fields.text(first));
            if other.is_some() {
                return Err(invalid(key, "the second pass has the first one's"));
            }
        }
        if let Some(name) = fields.choice("hr_checkpoint_name").filter(|name| *name != "Use same checkpoint") {
            options::find(std::slice::from_ref(self.model), name)
                .map_err(|_| invalid("hr_checkpoint_name", "the second pass has the first one's"))?;
        }
        let upscaler = match fields.text("hr_upscaler") {
            Some("Lanczos" | "lanczos") => Upscaler::Pixels,
            _ => Upscaler::Latents,
        };
        let steps = fields.whole("hr_second_pass_steps").filter(|steps| *steps > 0);
        let strength = fields.number("denoising_strength").unwrap_or(STRENGTH);
        let hires = Hires::new(self.factor(size)?).strength(strength).upscaler(upscaler);
        let hires = hires.steps(steps.and_then(|steps| usize::try_from(steps).ok()));
        if let Some(steps) = hires.steps.filter(|steps| *steps > self.model.limits.steps) {
            let limit = self.model.limits.steps;
            return Err(invalid("hr_second_pass_steps", format!("{steps}, the limit is {limit}")));
        }
        Ok(Some(hires))
    }

    /// The second pass's factor: `hr_scale`, or what leads to `hr_resize_x` and `hr_resize_y`.
    fn factor(&self, size: Size) -> Result<f32, ApiError> {
        let side = |key: &str| self.fields.number(key).filter(|side| *side > 0.0);
        let (x, y) = (side("hr_resize_x"), side("hr_resize_y"));
        let (x, y) = (x.map(|x| x / f64::from(size.width)), y.map(|y| y / f64::from(size.height)));
        match (x, y) {
            (None, None) => match self.fields.number("hr_scale").unwrap_or(2.0) {
                scale if (1.0..=8.0).contains(&scale) => Ok(scale as f32),
                scale => Err(invalid("hr_scale", format!("{scale}; the second pass's factor is from 1 to 8"))),
            },
            (Some(x), Some(y)) if (x / y - 1.0).abs() > 0.01 => {
                Err(invalid("hr_resize_x", "the second pass has the first one's proportions"))
            }
            (x, y) => Ok(x.or(y).unwrap_or(1.0) as f32),
        }
    }

    fn controls(&self, init: Option<&paint::Ready>, size: Size) -> Result<Vec<Control>, ApiError> {
        let scripts = self.fields.object("alwayson_scripts");
        let mut controls = Vec::new();
        for (name, script) in scripts.iter() {
            let args = script.get("args").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
            match name.eq_ignore_ascii_case("controlnet") {
                true => controls = controlnet::units(args, self.model, init, size)?,
                false if is_off(args) => {}
                false => {
                    let reason = format!("'{}': kiln has no such script", shown(name));
                    return Err(invalid("alwayson_scripts", reason));
                }
            }
        }
        Ok(controls)
    }
}

/// Whether a script is sent along without being switched on.
fn is_off(args: &[Value]) -> bool {
    args.first().is_none_or(|first| first.is_null() || *first == false)
}

struct Seeds {
    own: Vec<u64>,
    others: Vec<u64>,
    strength: Option<f32>,
}

fn schedule(name: &str) -> Result<WebUiSchedule, ApiError> {
    WebUiSchedule::named(name).ok_or_else(|| {
        let known: Vec<&str> = WEB_UI_SCHEDULES.iter().map(|schedule| schedule.label).collect();
        invalid("scheduler", format!("'{}' is not one of this server's: {}", shown(name), known.join(", ")))
    })
}

fn scheduler(name: &str, schedule: Option<WebUiSchedule>) -> Result<String, ApiError> {
    let Some((sampler, own)) = WebUiSampler::with_schedule(name) else {
        let known: Vec<&str> = WEB_UI_SAMPLERS.iter().map(|sampler| sampler.name).collect();
        return Err(invalid(
            "sampler_name",
            format!("'{}' is not one of this server's: {}", shown(name), known.join(", ")),
        ));
    };
    let scheduler = sampler.scheduler(own.or(schedule));
    scheduler.map_err(|_| invalid("scheduler", format!("{} has no choice of schedules", sampler.name)))
}
