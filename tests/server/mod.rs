//! `kiln serve`, as its clients see it: the real process, over sockets.

mod bounds;
#[cfg(target_os = "linux")]
mod disk;
mod edits;
mod file;
mod grpc;
mod hf;
mod hosts;
mod jobs;
mod links;
mod oip;
mod openai;
mod openapi;
mod operation;
#[cfg(feature = "otel")]
mod otel;
mod page;
mod sdapi;
mod stream;
#[cfg(target_os = "linux")]
mod stuck;
pub(crate) mod variables;

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

use crate::fixtures::{onnxruntime, scratch};
pub(crate) use edits::png;

/// How long a server may take for anything.
const PATIENCE: Duration = Duration::from_secs(120);

/// What a server says while it serves, in its folder.
const LOG: &str = "log";

/// A running server with a folder of its own.
pub(crate) struct Server {
    pub(crate) child: Child,
    pub(crate) address: SocketAddr,
    pub(crate) state: TempDir,
    flags: Vec<String>,
    variables: Vec<(String, String)>,
}

/// What a server answers.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// Names in small letters.
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {}", self.text()))
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str())
    }

    #[track_caller]
    pub(crate) fn expect(self, status: u16) -> Answer {
        assert_eq!(self.status, status, "{}", self.text());
        self
    }
}

impl Server {
    /// A server of the small model.
    pub(crate) fn start(flags: &[&str]) -> Server {
        Server::start_with(flags, &[])
    }

    /// The same with environment variables.
    pub(crate) fn start_with(flags: &[&str], variables: &[(&str, &str)]) -> Server {
        onnxruntime();
        let flags: Vec<String> = flags.iter().map(|flag| (*flag).to_owned()).collect();
        let variables: Vec<(String, String)> =
            variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let state = scratch();
        let (child, address) = launch(state.path(), &flags, &variables);
        Server { child, address, state, flags, variables }
    }

    /// Kills the process and starts another one over the same folder.
    pub(crate) fn restart(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        (self.child, self.address) = launch(self.state.path(), &self.flags, &self.variables);
    }

    /// The file of what it says while it serves.
    pub(crate) fn log(&self) -> PathBuf {
        self.state.path().join(LOG)
    }

    pub(crate) fn signal(&self, signal: i32) {
        signal_to(&self.child, signal);
    }

    #[track_caller]
    pub(crate) fn wait(&mut self) -> std::process::ExitStatus {
        let end = Instant::now() + PATIENCE;
        while Instant::now() < end {
            if let Some(status) = self.child.try_wait().expect("a process") {
                return status;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        panic!("the server does not end");
    }

    pub(crate) fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).expect("a connection");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        stream
    }

    /// Sends a request and reads the whole answer.
    #[track_caller]
    pub(crate) fn request(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        let mut stream = self.connect();
        send(&mut stream, method, path, headers, body);
        answer(&mut BufReader::new(stream))
    }

    #[track_caller]
    pub(crate) fn get(&self, path: &str) -> Answer {
        self.request("GET", path, &[], b"")
    }

    #[track_caller]
    pub(crate) fn post(&self, path: &str, body: &Value) -> Answer {
        self.request("POST", path, &[("content-type", "application/json")], body.to_string().as_bytes())
    }
}

/// Sends a signal to a child.
pub(crate) fn signal_to(child: &Child, signal: i32) {
    let pid = i32::try_from(child.id()).expect("a process");
    #[expect(unsafe_code, reason = "no other way sends a signal")]
    // SAFETY: the process is a child that has not been waited for.
    let sent = unsafe { libc::kill(pid, signal) };
    assert_eq!(sent, 0);
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn launch(state: &Path, flags: &[String], variables: &[(String, String)]) -> (Child, SocketAddr) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_kiln"))
        .arg("serve")
        .args(["--listen", "127.0.0.1:0", "--log-format", "json", "--state"])
        .arg(state.join("state"))
        .args(flags)
        .env("KILN_ENGINE_CACHE", state.join("engines"))
        .envs(variables.iter().map(|(name, value)| (name, value)))
        .stderr(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .expect("kiln runs");
    let mut lines = BufReader::new(child.stderr.take().expect("a pipe"));
    let mut said = String::new();
    let address = loop {
        let mut line = String::new();
        assert_ne!(lines.read_line(&mut line).expect("a line"), 0, "the server ended: {said}");
        if let Some((_, address)) = line.split_once("serving on http") {
            let address = address.trim_start_matches('s').trim_start_matches("://").trim();
            break address.parse().unwrap_or_else(|e| panic!("{address}: {e}"));
        }
        said += &line;
    };
    let mut log = File::options().create(true).append(true).open(state.join(LOG)).expect("a file");
    std::thread::spawn(move || std::io::copy(&mut lines, &mut log));
    (child, address)
}

pub(crate) fn send(stream: &mut TcpStream, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) {
    let mut head = format!("{method} {path} HTTP/1.1\r\nhost: kiln.localhost\r\nconnection: close\r\n");
    headers.iter().for_each(|(name, value)| head += &format!("{name}: {value}\r\n"));
    if !body.is_empty() || method == "POST" {
        head += &format!("content-length: {}\r\n", body.len());
    }
    stream.write_all(format!("{head}\r\n").as_bytes()).expect("a head");
    stream.write_all(body).expect("a body");
}

/// Reads an answer's head.
#[track_caller]
pub(crate) fn head(stream: &mut impl BufRead) -> Answer {
    let mut line = || {
        let mut line = String::new();
        stream.read_line(&mut line).expect("a line");
        line.trim_end().to_owned()
    };
    let first = line();
    let status = first.split(' ').nth(1).and_then(|status| status.parse().ok());
    let status = status.unwrap_or_else(|| panic!("no answer but '{first}'"));
    let mut headers = Vec::new();
    while let Some((name, value)) = line().split_once(": ") {
        headers.push((name.to_lowercase(), value.to_owned()));
    }
    Answer { status, headers, body: Vec::new() }
}

/// Reads a whole answer.
#[track_caller]
pub(crate) fn answer(stream: &mut impl BufRead) -> Answer {
    let mut answer = head(stream);
    match answer.header("transfer-encoding") {
        Some("chunked") => {
            while let Some(chunk) = chunk(stream) {
                answer.body.extend(chunk)
            }
        }
        _ => match answer.header("content-length").and_then(|length| length.parse::<u64>().ok()) {
            Some(length) => drop(stream.take(length).read_to_end(&mut answer.body)),
            None => drop(stream.read_to_end(&mut answer.body)),
        },
    }
    answer
}

/// The next chunk of a body that comes in chunks.
pub(crate) fn chunk(stream: &mut impl BufRead) -> Option<Vec<u8>> {
    let mut line = String::new();
    stream.read_line(&mut line).ok()?;
    let length = usize::from_str_radix(line.trim(), 16).ok().filter(|length| *length > 0)?;
    let mut chunk = vec![0; length + 2];
    stream.read_exact(&mut chunk).ok()?;
    chunk.truncate(length);
    Some(chunk)
}

/// Sends a job; its name.
#[track_caller]
pub(crate) fn create(server: &Server, body: &Value) -> String {
    server.post("/v1/jobs", body).expect(202).json()["id"].as_str().expect("a name").to_owned()
}

/// A job as its client sees it.
#[track_caller]
pub(crate) fn show(server: &Server, id: &str) -> Value {
    server.get(&format!("/v1/jobs/{id}")).expect(200).json()
}

/// The same when it has ended.
#[track_caller]
pub(crate) fn ended(server: &Server, id: &str) -> Value {
    eventually(|| Some(show(server, id)).filter(|job| job["ended"].is_u64()))
}

/// Asks until something is so.
#[track_caller]
pub(crate) fn eventually<T>(mut ask: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + PATIENCE;
    while Instant::now() < end {
        if let Some(found) = ask() {
            return found;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    panic!("it never came to that");
}
