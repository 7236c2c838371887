//! Progress bars on stderr; none where stderr is not a terminal.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use kiln_compile::Progress as Compiling;
use kiln_native::Progress as Installing;

use crate::output;

const BYTES: &str = "{prefix:>10} [{bar:30}] {decimal_bytes}/{decimal_total_bytes}, {eta} left {msg}";
const COUNT: &str = "{prefix:>10} [{bar:30}] {pos}/{len}, {eta} left";
const WORK: &str = "{prefix:>10} {spinner} {msg}";
const STEPS: &str = "{prefix:>10} [{bar:30}] step {pos}/{len}, {msg}, {eta} left";

pub(crate) struct Bar(ProgressBar);

impl Bar {
    fn new(template: &str, prefix: &'static str, total: u64) -> Bar {
        let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
        let bar = ProgressBar::new(total).with_style(style.progress_chars("=> ")).with_prefix(prefix);
        bar.enable_steady_tick(Duration::from_millis(100));
        Bar(bar)
    }

    pub(crate) fn bytes(prefix: &'static str) -> Bar {
        Bar::new(BYTES, prefix, 0)
    }

    pub(crate) fn steps(total: usize) -> Bar {
        Bar::new(STEPS, "sampling", total as u64)
    }

    pub(crate) fn count(prefix: &'static str) -> Bar {
        Bar::new(COUNT, prefix, 0)
    }

    /// For work of which nobody knows how much is left.
    pub(crate) fn spinner(prefix: &'static str) -> Bar {
        Bar::new(WORK, prefix, 0)
    }

    pub(crate) fn at(&self, done: u64, total: u64) {
        self.0.set_length(total);
        self.0.set_position(done);
    }

    pub(crate) fn step(&self, step: usize) {
        self.0.set_position(step as u64);
        self.0.set_message(format!("{:.2} it/s", step as f64 / self.0.elapsed().as_secs_f64().max(1e-9)));
    }

    pub(crate) fn message(&self, message: String) {
        self.0.set_message(message);
    }

    pub(crate) fn installing(&self, progress: Installing) {
        match progress {
            Installing::Fetching { done, total } => self.at(done.min(total), total),
            Installing::Verifying => self.message("verifying".into()),
            Installing::Unpacking => self.message("unpacking".into()),
            _ => {}
        }
    }

    pub(crate) fn compiling(&self, progress: Compiling) {
        match progress {
            Compiling::Tracing(role) => self.message(format!("tracing {role}")),
            Compiling::Writing { component, done, total } => {
                self.at(done, total);
                self.message(component.to_string());
            }
            Compiling::Building(role) => self.message(format!("building {role}")),
            Compiling::DecomposedAttention { component, n } => self.0.suspend(|| {
                output::say(&format!(
                    "{component}: TensorRT has no fused kernel for {n} of its attentions, which take several"
                ));
            }),
            Compiling::LeftOut(notice) => self.0.suspend(|| output::say(&notice)),
            Compiling::Sealing => self.message("taking digests".into()),
            _ => {}
        }
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
