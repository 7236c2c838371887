//! API keys.

use std::collections::HashMap;
use std::fmt;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::http::{HeaderMap, header};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use kiln_bundle::read;
use subtle::ConstantTimeEq;

use crate::ClientId;
use crate::config::ConfigError;

/// Largest file of keys that is read.
const MAX_BYTES: u64 = 1 << 20;

/// The keys that open the server, hashed. A key is its bearer's password: 32 random bytes leave nothing to guess, so that a
/// plain hash is enough.
#[derive(Clone, Default)]
pub struct Keys(Vec<Key>);

#[derive(Clone)]
struct Key {
    name: String,
    hash: blake3::Hash,
    /// Most requests a minute that change something.
    rate: Option<u32>,
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.iter().map(|key| &key.name)).finish()
    }
}

impl Keys {
    /// Reads a file with a line `NAME:HASH` or `NAME:HASH:RATE` per key, where the rate is the most POST and DELETE requests
    /// a minute; empty lines and those that begin with `#` say nothing.
    pub fn read(path: &Path) -> Result<Keys, ConfigError> {
        let refuse = |reason: String| ConfigError { path: path.into(), reason };
        let text = read::text(path, MAX_BYTES, "file of keys");
        let text = text.map_err(|e| e.map(|e| refuse(e.to_string()), refuse))?;
        let lines = text.lines().enumerate().map(|(i, line)| (i + 1, line.trim()));
        let lines = lines.filter(|(_, line)| !line.is_empty() && !line.starts_with('#'));
        let key = |(number, line): (usize, &str)| {
            let refuse = || refuse(format!("line {number} is not NAME:HASH; kiln serve --new-key makes one"));
            let mut parts = line.split(':').map(str::trim);
            let (name, hash, rate) = (parts.next(), parts.next(), parts.next());
            let hash = hash.and_then(|hash| blake3::Hash::from_hex(hash).ok()).ok_or_else(refuse)?;
            let rate =
                rate.map(|rate| rate.parse().ok().filter(|rate| *rate > 0).ok_or_else(refuse)).transpose()?;
            match name.filter(|name| !name.is_empty() && parts.next().is_none()) {
                Some(name) => Ok(Key { name: name.into(), hash, rate }),
                None => Err(refuse()),
            }
        };
        let keys = lines.map(key).collect::<Result<Vec<_>, _>>()?;
        match keys.is_empty() {
            true => Err(refuse("holds no key".into())),
            false => Ok(Keys(keys)),
        }
    }

    /// A new key, and the line of it for the file.
    pub fn new_key(name: &str) -> (String, String) {
        let mut bytes = [0; 32];
        getrandom::fill(&mut bytes).expect("the operating system has random numbers");
        let key = format!("kiln-{}", bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>());
        let line = format!("{name}:{}", blake3::hash(key.as_bytes()).to_hex());
        (key, line)
    }

    /// Whether everybody may come in.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether a client may still come in.
    pub(crate) fn knows(&self, client: &ClientId) -> bool {
        self.is_empty() || self.0.iter().any(|key| key.name == client.0)
    }

    /// Who sends a request: by `Authorization: Bearer KEY`, or by HTTP Basic with the key as password. None for strangers.
    pub fn client(&self, headers: &HeaderMap) -> Option<ClientId> {
        if self.is_empty() {
            return Some(ClientId::default());
        }
        let given = given(headers)?;
        let hash = blake3::hash(given.as_bytes());
        // All keys are compared, so that time does not tell which is near.
        let mut found = None;
        for key in &self.0 {
            if bool::from(key.hash.as_bytes().ct_eq(hash.as_bytes())) {
                found = Some(ClientId(key.name.clone()));
            }
        }
        found
    }
}

/// When each client's requests were let in lately.
#[derive(Debug, Default)]
pub struct Rates(Mutex<HashMap<ClientId, Bucket>>);

/// What is left of a minute's requests.
#[derive(Debug)]
struct Bucket {
    left: f64,
    seen: Instant,
}

impl Rates {
    /// Lets a request in that changes something; otherwise the time until the next one may come.
    pub(crate) fn take(&self, keys: &Keys, client: &ClientId) -> Result<(), Duration> {
        let key = keys.0.iter().find(|key| key.name == client.0);
        let Some(rate) = key.and_then(|key| key.rate).map(f64::from) else { return Ok(()) };
        let mut buckets = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let bucket = buckets.entry(client.clone()).or_insert(Bucket { left: rate, seen: now });
        bucket.left = (bucket.left + (now - bucket.seen).as_secs_f64() * rate / 60.0).min(rate);
        bucket.seen = now;
        match bucket.left >= 1.0 {
            true => {
                bucket.left -= 1.0;
                Ok(())
            }
            false => Err(Duration::from_secs_f64((1.0 - bucket.left) * 60.0 / rate)),
        }
    }
}

fn given(headers: &HeaderMap) -> Option<String> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, rest) = value.split_once(' ')?;
    match scheme.to_ascii_lowercase().as_str() {
        "bearer" => Some(rest.trim().to_owned()),
        "basic" => {
            let text = String::from_utf8(BASE64_STANDARD.decode(rest.trim()).ok()?).ok()?;
            let (_, password) = text.split_once(':')?;
            Some(password.to_owned())
        }
        _ => None,
    }
}
