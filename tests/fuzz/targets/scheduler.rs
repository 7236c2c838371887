//! `scheduler_config.json`, read for its own class and for every other one.
#![no_main]

use kiln_fuzz::within_a_second;
use kiln_runtime::scheduler::{SamplerOptions, SchedulerClass, SchedulerConfig, SchedulerSettings};
use libfuzzer_sys::fuzz_target;

fn sample(config: &SchedulerConfig) {
    let Ok(sampler) = config.sampler(7, &SamplerOptions::default()) else { return };
    assert!(!sampler.timesteps().is_empty());
    let _ = (sampler.init_noise_sigma(), sampler.web_ui_sampler(), sampler.web_ui_schedule());
}

fuzz_target!(|text: &str| within_a_second(|| {
    let Ok(settings) = SchedulerSettings::from_json(text) else { return };
    let names = SchedulerClass::short_names().map(|name| settings.with_scheduler(name));
    names.chain([settings.config()]).flatten().for_each(|config| sample(&config));
    settings.ignored().for_each(drop);
}));
