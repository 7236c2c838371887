//! By which names a server may be called.

use std::collections::BTreeSet;

/// The names by which the server may be called, each once: those that are allowed, and the machine's own, also as mDNS
/// gives it. An empty one is none.
pub(super) fn named(allowed: &[String]) -> Vec<String> {
    let own = own().into_iter().flat_map(|name| [format!("{name}.local"), name]);
    let mut known = BTreeSet::new();
    let names = allowed.iter().filter(|name| !name.is_empty()).cloned().chain(own);
    names.filter(|name| known.insert(name.clone())).collect()
}

/// The machine's name.
#[cfg(unix)]
pub(crate) fn own() -> Option<String> {
    let name = rustix::system::uname().nodename().to_str().ok()?.to_owned();
    Some(name).filter(|name| !name.is_empty())
}

#[cfg(not(unix))]
pub(crate) fn own() -> Option<String> {
    std::env::var("COMPUTERNAME").ok().filter(|name| !name.is_empty())
}
