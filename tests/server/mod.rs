//! The server as its clients see it: a process, a port and bytes.

mod edits;
mod hf;
mod links;
mod openai;
mod stream;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

use crate::fixtures::{copy_folder, onnxruntime, scratch, tiny};

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(120);

/// A running `kiln serve` with a folder of its own; ends when it is dropped.
pub(crate) struct Served {
    process: Child,
    address: String,
    _folder: TempDir,
}

/// What the server answers.
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// Names in small letters.
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

/// An answer that is read while it comes.
pub(crate) struct Reading {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    stream: BufReader<TcpStream>,
}

impl Served {
    /// Serves the small model `tiny`.
    pub(crate) fn start(flags: &[&str]) -> Served {
        Served::start_with(&model(), scratch(), flags)
    }

    /// Serves a model or a models file, with the state in the folder.
    pub(crate) fn start_with(models: &Path, folder: TempDir, flags: &[&str]) -> Served {
        static ENGINES: LazyLock<TempDir> = LazyLock::new(scratch);
        onnxruntime();
        let mut command = Command::new(env!("CARGO_BIN_EXE_kiln"));
        command.arg("serve").arg(models).args(["--listen", "127.0.0.1:0"]).args(flags);
        command.arg("--state").arg(folder.path().join("state")).stdin(Stdio::null()).stderr(Stdio::piped());
        command.env("KILN_ENGINE_CACHE", ENGINES.path()).current_dir(folder.path());
        let mut process = command.spawn().expect("kiln runs");
        let mut lines = BufReader::new(process.stderr.take().expect("a pipe")).lines().map_while(Result::ok);
        let mut seen = Vec::new();
        let address = loop {
            let line = lines.next().unwrap_or_else(|| panic!("it ended: {seen:?}"));
            match line.split_once("serving on ") {
                Some((_, url)) => break url.split("://").nth(1).expect("an address").to_owned(),
                None => seen.push(line),
            }
        };
        std::thread::spawn(move || lines.for_each(drop));
        Served { process, address, _folder: folder }
    }

    /// Host and port.
    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    /// Sends bytes as they are, and gives the connection.
    pub(crate) fn send(&self, bytes: &[u8]) -> TcpStream {
        let mut stream = TcpStream::connect(&self.address).expect("a connection");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        stream.write_all(bytes).expect("the server reads");
        stream
    }

    /// Sends a request, and reads the answer's head.
    pub(crate) fn open(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Reading {
        let has = |name: &str| headers.iter().any(|(key, _)| key.eq_ignore_ascii_case(name));
        let mut head = format!("{method} {path} HTTP/1.1\r\nConnection: close\r\n");
        if !has("host") {
            head.push_str(&format!("Host: {}\r\n", self.address));
        }
        if !has("transfer-encoding") {
            head.push_str(&format!("Content-Length: {}\r\n", body.len()));
        }
        headers.iter().for_each(|(key, value)| head.push_str(&format!("{key}: {value}\r\n")));
        Reading::new(self.send(&[head.as_bytes(), b"\r\n", body].concat()))
    }

    /// Sends a request, and reads the whole answer.
    pub(crate) fn request(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        self.open(method, path, headers, body).rest()
    }

    pub(crate) fn get(&self, path: &str) -> Answer {
        self.request("GET", path, &[], b"")
    }

    pub(crate) fn post(&self, path: &str, body: &Value) -> Answer {
        self.request("POST", path, &[("Content-Type", "application/json")], body.to_string().as_bytes())
    }

    /// Waits until the server says so at a path.
    pub(crate) fn wait_for(&self, path: &str, is_so: impl Fn(&Value) -> bool) {
        let end = Instant::now() + PATIENCE;
        while !is_so(&self.get(path).json()) {
            assert!(Instant::now() < end, "{path}: {}", self.get(path).json());
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Reading {
    /// Reads an answer's head.
    pub(crate) fn new(stream: TcpStream) -> Reading {
        let mut stream = BufReader::new(stream);
        let mut line = || {
            let mut line = String::new();
            stream.read_line(&mut line).expect("a line");
            line.trim_end().to_owned()
        };
        let status = line().split(' ').nth(1).and_then(|code| code.parse().ok()).expect("a status");
        let lines = std::iter::from_fn(|| Some(line()).filter(|line| !line.is_empty()));
        let pairs = lines.filter_map(|line| {
            line.split_once(": ").map(|(key, value)| (key.to_ascii_lowercase(), value.to_owned()))
        });
        let headers = pairs.collect();
        Reading { status, headers, stream }
    }

    /// Reads what is left.
    pub(crate) fn rest(mut self) -> Answer {
        let mut body = Vec::new();
        while let Some(part) = self.part() {
            body.extend(part);
        }
        Answer { status: self.status, headers: self.headers, body }
    }

    /// The next part of the body: a chunk, or all of it. None at its end.
    pub(crate) fn part(&mut self) -> Option<Vec<u8>> {
        let mut part = Vec::new();
        if header(&self.headers, "transfer-encoding") == Some("chunked") {
            let mut line = String::new();
            self.stream.read_line(&mut line).expect("the size of a chunk");
            let n = usize::from_str_radix(line.trim(), 16).expect("the size of a chunk");
            part.resize(n + 2, 0);
            self.stream.read_exact(&mut part).expect("a chunk");
            part.truncate(n);
        } else {
            self.stream.read_to_end(&mut part).expect("a body");
        }
        Some(part).filter(|part| !part.is_empty())
    }
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        header(&self.headers, name)
    }

    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&self.body)))
    }

    /// The body of an answer with status 200.
    #[track_caller]
    pub(crate) fn ok(self) -> Value {
        assert_eq!(self.status, 200, "{}", String::from_utf8_lossy(&self.body));
        self.json()
    }
}

/// A checkpoint named `tiny`, which draws random pictures of 64x64 pixels within milliseconds.
pub(crate) fn model() -> PathBuf {
    static FOLDER: LazyLock<TempDir> = LazyLock::new(|| {
        let folder = scratch();
        copy_folder(tiny().path(), &folder.path().join("tiny"));
        folder
    });
    FOLDER.path().join("tiny")
}

/// A PNG file of the pixels that `pixel` gives for column and row: three bytes each, or four with alpha.
pub(crate) fn png<const N: usize>(width: u32, height: u32, pixel: impl Fn(u32, u32) -> [u8; N]) -> Vec<u8> {
    let mut file = Vec::new();
    let mut encoder = png::Encoder::new(&mut file, width, height);
    encoder.set_color(if N == 4 { png::ColorType::Rgba } else { png::ColorType::Rgb });
    let pixels: Vec<u8> =
        (0..height).flat_map(|y| (0..width).map(move |x| (x, y))).flat_map(|(x, y)| pixel(x, y)).collect();
    let mut writer = encoder.write_header().expect("a header");
    writer.write_image_data(&pixels).expect("pixels");
    writer.finish().expect("a file");
    file
}

fn header<'a>(headers: &'a [(String, String)], name: &str) -> Option<&'a str> {
    headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
}
