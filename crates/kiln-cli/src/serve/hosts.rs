//! By which names a server may be called.

use crate::failure::Failure;

/// The names by which the server may be called: those that are allowed, and the machine's own, also as mDNS gives it. An
/// empty one is none.
pub(super) fn named(allowed: &[String]) -> Result<Vec<String>, Failure> {
    let is_name = |name: &str| {
        let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        name.len() <= 253 && name.chars().all(is_plain)
    };
    if let Some(name) = allowed.iter().find(|name| !is_name(name)) {
        let message = format!("--allow-host: '{}' is no host name", name.escape_debug());
        return Err(Failure::usage(message));
    }
    let own = machine().into_iter().flat_map(|name| [format!("{name}.local"), name]);
    Ok(allowed.iter().filter(|name| !name.is_empty()).cloned().chain(own).collect())
}

/// The machine's name.
#[cfg(unix)]
fn machine() -> Option<String> {
    let name = rustix::system::uname().nodename().to_str().ok()?.to_owned();
    Some(name).filter(|name| !name.is_empty())
}

#[cfg(not(unix))]
fn machine() -> Option<String> {
    std::env::var("COMPUTERNAME").ok().filter(|name| !name.is_empty())
}
