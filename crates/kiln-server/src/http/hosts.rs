//! By which names the server may be called.
//!
//! A page whose own name is made to stand for 127.0.0.1 after it was loaded (DNS rebinding) is of the server's origin for the
//! browser, and may send and read everything. But the browser still calls the server by the page's name. With keys there is
//! nothing to guard: a browser gives what it remembers to the origin that it got it from alone.

use std::collections::BTreeSet;
use std::net::IpAddr;

use axum::extract::Request;
use axum::http::{StatusCode, header};

use super::error::ApiError;
use super::schema::shown;

/// Names by which the server may be called.
#[derive(Clone, Debug, Default)]
pub struct Hosts {
    /// Beside addresses and `localhost`, in small letters.
    names: BTreeSet<String>,
    allows_all: bool,
}

impl Hosts {
    /// All names.
    pub fn all() -> Hosts {
        Hosts { allows_all: true, ..Hosts::default() }
    }

    /// These names; addresses, `localhost` and names below it besides.
    pub fn named<'a>(names: impl IntoIterator<Item = &'a str>) -> Hosts {
        Hosts { names: names.into_iter().map(plain).collect(), allows_all: false }
    }

    /// Refuses a request that calls the server by another name, in the header `Host` or in the address that is asked for. A
    /// request that says no name comes from no browser.
    pub(crate) fn check(&self, request: &Request) -> Result<(), ApiError> {
        let authority = request.uri().authority().map(|authority| authority.as_str());
        let hosts = request.headers().get_all(header::HOST).iter().map(|host| host.to_str().unwrap_or("?"));
        let mut called = authority.into_iter().chain(hosts).filter(|host| !host.is_empty());
        match called.find(|host| !self.holds(host)) {
            None => Ok(()),
            Some(host) => Err(refusal(host)),
        }
    }

    /// Whether a name, with or without a port behind it, is one of the server's.
    fn holds(&self, host: &str) -> bool {
        if self.allows_all {
            return true;
        }
        let Some(host) = without_port(host) else { return false };
        let name = plain(host);
        is_address(host) || name == "localhost" || name.ends_with(".localhost") || self.names.contains(&name)
    }
}

fn refusal(host: &str) -> ApiError {
    let message = format!("host: '{}' is no name of this server, unless --allow-host gives it", shown(host));
    let error = ApiError::new(StatusCode::FORBIDDEN, "host_not_allowed", message);
    ApiError { param: Some("Host".into()), ..error }
}

/// A name in small letters and without the dot of the root.
fn plain(name: &str) -> String {
    name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase()
}

/// The host of an authority (RFC 3986, section 3.2); none where it has a user or a port that is no number.
fn without_port(authority: &str) -> Option<&str> {
    let end = match authority.starts_with('[') {
        true => authority.find(']')? + 1,
        false => authority.find(':').unwrap_or(authority.len()),
    };
    let (host, port) = authority.split_at(end);
    let is_port = |port: &str| port.bytes().all(|b| b.is_ascii_digit());
    (port.is_empty() || port.strip_prefix(':').is_some_and(is_port)).then_some(host)
}

/// Whether a host is an address, IPv6 in brackets.
fn is_address(host: &str) -> bool {
    match host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        Some(address) => address.parse::<IpAddr>().is_ok_and(|address| address.is_ipv6()),
        None => host.parse::<IpAddr>().is_ok_and(|address| address.is_ipv4()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_and_names_of_this_machine_are_its_own() {
        let hosts = Hosts::named(["Box.example", "box"]);
        for own in [
            "127.0.0.1",
            "127.0.0.1:7860",
            "192.168.1.7:80",
            "[::1]",
            "[::1]:7860",
            "[fe80::1]:7860",
            "localhost",
            "LocalHost:7860",
            "localhost.",
            "kiln.localhost:1",
            "box",
            "BOX:7860",
            "box.example",
            "box.example.:80",
            "127.0.0.1:",
        ] {
            assert!(hosts.holds(own), "{own}");
        }
        for foreign in [
            "evil.example",
            "evil.example:7860",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "notlocalhost",
            "box.example.evil",
            "sub.box.example",
            "evil@127.0.0.1",
            "127.0.0.1:80:80",
            "127.0.0.1:x",
            "[::1",
            "::1",
            "[127.0.0.1]",
            "[evil]",
            "[::1]evil.example",
            "0x7f.1",
            "2130706433",
            "127.1",
            "?",
            " localhost",
            ".",
            "localhost..",
            "127.0.0.1 ",
            "localhost/",
            "loc\u{212a}lhost",
        ] {
            assert!(!hosts.holds(foreign), "{foreign}");
        }
        assert!(Hosts::all().holds("evil.example"));
    }
}
