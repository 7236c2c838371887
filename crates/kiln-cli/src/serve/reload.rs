//! What is read anew while the server runs.

use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use kiln_server::Renewer;
use kiln_server::config::ModelConfig;

use super::{bundles, configs, keys, tls};
use crate::args::ServeArgs;
use crate::failure::Failure;
use crate::output;

/// Reads the models file, the keys and the certificate anew.
pub(super) struct Reloads {
    args: Arc<ServeArgs>,
    renewer: Renewer,
    /// The models that are to be served next: the last that were asked for.
    next: Arc<Mutex<Option<Vec<ModelConfig>>>>,
    wake: Sender<()>,
    is_busy: Arc<Mutex<()>>,
}

impl Reloads {
    /// Starts the thread that compiles models, one reload at a time.
    pub(super) fn start(args: &ServeArgs, renewer: Renewer) -> Result<Reloads, Failure> {
        let (wake, woken) = mpsc::channel();
        let next: Arc<Mutex<Option<Vec<ModelConfig>>>> = Arc::default();
        let reloads = Reloads {
            args: Arc::new(args.clone()),
            renewer: renewer.clone(),
            next: next.clone(),
            wake,
            is_busy: Arc::default(),
        };
        let (args, is_busy) = (reloads.args.clone(), reloads.is_busy.clone());
        let work = move || {
            while woken.recv().is_ok() {
                let _busy = is_busy.lock();
                let configs = next.lock().unwrap_or_else(PoisonError::into_inner).take();
                configs.into_iter().for_each(|configs| serve(&args, &renewer, configs));
            }
        };
        thread::Builder::new().name("reload".into()).spawn(work).map_err(Failure::unexpected)?;
        Ok(reloads)
    }

    /// Reads all files. Where one is wrong nothing changes; else keys and certificate hold at once, and the models when they
    /// are compiled.
    pub(super) fn ask(&self) {
        match self.read() {
            Ok(configs) => {
                *self.next.lock().unwrap_or_else(PoisonError::into_inner) = Some(configs);
                let _ = self.wake.send(());
            }
            Err(reason) => output::say(&format!("everything stays as it is: {reason}")),
        }
    }

    fn read(&self) -> Result<Vec<ModelConfig>, String> {
        let of_failure = |failure: Failure| failure.message().to_owned();
        let configs = configs(&self.args).map_err(of_failure)?;
        let keys = keys(&self.args).map_err(of_failure)?;
        self.renewer.access(keys, tls(&self.args).as_ref()).map_err(|error| error.to_string())?;
        Ok(configs)
    }

    /// Whether models are compiled at the moment.
    pub(super) fn is_busy(&self) -> bool {
        self.is_busy.try_lock().is_err()
    }
}

fn serve(args: &ServeArgs, renewer: &Renewer, configs: Vec<ModelConfig>) {
    let stay = |reason: &str| output::say(&format!("the models stay as they are: {reason}"));
    match bundles(&args.drawing, configs) {
        Ok(models) => match renewer.models(&models) {
            Ok(()) => output::say("the models are read anew"),
            Err(error) => stay(&error.to_string()),
        },
        Err(failure) => stay(failure.message()),
    }
}
