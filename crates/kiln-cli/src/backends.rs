//! What runs engines, as the command line asks for it.

use std::panic::resume_unwind;
use std::sync::Arc;
use std::thread;

use kiln_runtime::{Backend, Backends, Device, Libraries, Library, Notice, Opened, Place, Target};

use crate::args::ExecutionArgs;
use crate::failure::Failure;
use crate::model::Model;
use crate::output;
use crate::progress::Bar;

impl ExecutionArgs {
    /// Backends of the device and runner that were asked for.
    pub(crate) fn backends(self) -> Backends {
        Backends::new(libraries()).device(self.device).runner(self.backend).threads(self.threads)
    }
}

/// Those of the environment, or else fetched ones.
pub(crate) fn libraries() -> Libraries {
    Libraries::new().from_environment().fetch_with(|library| Ok(fetch(library)?))
}

/// Fetches a library unless it is there, saying so in one line.
pub(crate) fn fetch(library: Library) -> Result<std::path::PathBuf, kiln_native::Error> {
    if library.can_be_fetched() && kiln_native::install_dir(library).is_ok_and(|folder| !folder.exists()) {
        let cache = kiln_native::cache_dir()?;
        output::say(&format!("fetching {library} with pip into {}", cache.display()));
    }
    let bar = Bar::bytes("fetching");
    Ok(kiln_native::install(library, &mut |progress| bar.installing(progress))?.path)
}

/// Where a model's engines run; what `on_host` says keeps those of a checkpoint on the processor, unless a device was
/// asked for.
pub(crate) fn place(model: &Model, backends: &Backends, on_host: Option<&str>) -> Result<Place, Failure> {
    let place = match model {
        Model::Bundle(bundle) => backends.place_for(bundle)?,
        Model::Folder(_) | Model::File(_) => backends.choose(on_host)?,
    };
    place.notices().iter().for_each(say);
    Ok(place)
}

/// Opens what runs engines in a place.
pub(crate) fn open(backends: &Backends, place: &Place) -> Result<Arc<dyn Backend>, Failure> {
    Ok(told(backends.open_at(place)?, place))
}

/// The backend, after telling what is not as it was preferred to be beyond what was told of its place.
fn told(opened: Opened, place: &Place) -> Arc<dyn Backend> {
    opened.notices.iter().filter(|notice| !place.notices().contains(notice)).for_each(say);
    opened.backend
}

/// Opens what runs engines in a place while `make` makes them.
///
/// Engines come first where making them needs the device too, and where a library has to be fetched, which is told of.
pub(crate) fn open_while<T>(
    backends: &Backends,
    place: &Place,
    make: impl FnOnce() -> Result<T, Failure>,
) -> Result<(T, Arc<dyn Backend>), Failure> {
    let library = backends.libraries().path(Library::OnnxRuntimeCpu);
    let is_at_hand = place.gpu().is_none() && !matches!(library, Ok(None));
    thread::scope(|scope| {
        let opening = is_at_hand.then(|| scope.spawn(|| backends.open_at(place)));
        let made = make()?;
        let opened = match opening {
            Some(opening) => opening.join().unwrap_or_else(|panic| resume_unwind(panic)),
            None => backends.open_at(place),
        };
        Ok((made, told(opened?, place)))
    })
}

/// Opens what runs the processor's engines.
pub(crate) fn on_host(args: ExecutionArgs) -> Result<Arc<dyn Backend>, Failure> {
    let backends = args.backends().device(Device::Cpu);
    open(&backends, &backends.place(Target::Cpu)?)
}

fn say(notice: &Notice) {
    output::say(&notice.to_string());
}
