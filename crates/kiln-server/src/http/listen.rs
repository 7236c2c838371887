//! Connections.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::response::Response;
use http_body_util::BodyExt;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;

use super::peers::{Guest, Peers};

/// How long the headers of a request may take, and what comes before them.
const HEADER_TIME: Duration = Duration::from_secs(15);

/// How long a connection of HTTP/2 may have no request.
const IDLE: Duration = Duration::from_secs(120);

/// Most connections at once.
const MAX_CONNECTIONS: usize = 16 << 10;

/// Most connections of one address that is not this machine's.
const MAX_OF_ONE: usize = MAX_CONNECTIONS / 4;

/// Most connections that wait to be taken.
const BACKLOG: u32 = 4096;

/// Largest headers of a request, in bytes.
pub(super) const MAX_HEADERS: usize = 64 << 10;

/// How long connections may take to end.
const LAST_WORDS: Duration = Duration::from_secs(10);

/// How a connection of HTTP/2 begins (RFC 9113, 3.4).
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// A server that takes connections.
pub struct Listening {
    address: SocketAddr,
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl Listening {
    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Whether it takes connections.
    pub fn is_alive(&self) -> bool {
        !self.task.is_finished()
    }

    /// Takes no more connections and waits for those that are open, within bounds.
    pub async fn stop(self) {
        let _ = self.stop.send(());
        let _ = self.task.await;
    }
}

/// What encrypts connections, if anything; a later one is for connections that come later.
pub type Tls = watch::Receiver<Option<TlsAcceptor>>;

/// Opens a port. Called within a runtime.
pub fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    // As the standard library does: elsewhere it would share the port.
    #[cfg(unix)]
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Takes connections from now on: HTTP/1 and HTTP/2, with TLS where there is an acceptor.
pub async fn listen(listener: TcpListener, tls: Tls, router: Router) -> io::Result<Listening> {
    let address = listener.local_addr()?;
    let (stop, stopped) = oneshot::channel();
    let task = tokio::spawn(accept(listener, tls, router, stopped));
    Ok(Listening { address, stop, task })
}

async fn accept(listener: TcpListener, tls: Tls, router: Router, mut stopped: oneshot::Receiver<()>) {
    let (ending, ends) = watch::channel(());
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let peers = Peers::new(MAX_OF_ONE);
    loop {
        let Ok(place) = places.clone().acquire_owned().await else { break };
        let stream = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = &mut stopped => break,
        };
        match stream {
            Ok((stream, peer)) => {
                let Some(guest) = peers.enter(peer.ip()) else { continue };
                let _ = stream.set_nodelay(true);
                let tls = tls.borrow().clone();
                tokio::spawn(connection(stream, tls, router.clone(), ends.clone(), (place, guest)));
            }
            // Out of file descriptors, or a connection that is gone already.
            Err(_) => sleep(Duration::from_millis(50)).await,
        }
    }
    drop((listener, ends));
    let _ = ending.send(());
    let _ = timeout(LAST_WORDS, ending.closed()).await;
}

async fn connection(
    stream: TcpStream,
    tls: Option<TlsAcceptor>,
    router: Router,
    ends: watch::Receiver<()>,
    held: (OwnedSemaphorePermit, Guest),
) {
    match tls {
        None => {
            if let Ok(Ok(is_http2)) = timeout(HEADER_TIME, begins_http2(&stream)).await {
                serve(stream, is_http2, router, ends).await;
            }
        }
        Some(tls) => {
            if let Ok(Ok(stream)) = timeout(HEADER_TIME, tls.accept(stream)).await {
                let is_http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
                serve(stream, is_http2, router, ends).await;
            }
        }
    }
    drop(held);
}

/// Whether a connection's first bytes are those of HTTP/2; they are left to be read.
async fn begins_http2(stream: &TcpStream) -> io::Result<bool> {
    let mut first = [0; PREFACE.len()];
    loop {
        match stream.peek(&mut first).await? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            n if first[..n] != PREFACE[..n] => return Ok(false),
            n if n == PREFACE.len() => return Ok(true),
            // The rest is on its way, and peeking does not wait for it.
            _ => sleep(Duration::from_millis(20)).await,
        }
    }
}

async fn serve<S>(stream: S, is_http2: bool, router: Router, mut ends: watch::Receiver<()>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let requests = Requests::default();
    let service = TowerToHyperService::new(router);
    let counted = requests.clone();
    let service = service_fn(move |request| counted.count(service.call(request)));
    let builder = builder(is_http2);
    let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
    tokio::select! {
        // A client that breaks off is none of the server's faults.
        _ = connection.as_mut() => return,
        _ = ends.changed() => {}
        () = requests.rest(), if is_http2 => {}
    }
    connection.as_mut().graceful_shutdown();
    match ends.has_changed() {
        Ok(false) => drop(timeout(LAST_WORDS, connection).await),
        // Whoever ends the server waits no longer than that.
        _ => drop(connection.await),
    }
}

/// The requests of a connection.
#[derive(Clone, Default)]
struct Requests {
    n: Arc<AtomicUsize>,
    /// Held by those whose answers have not been sent.
    open: Arc<()>,
}

impl Requests {
    /// Counts a request until its answer has been sent.
    fn count<F>(&self, answer: F) -> impl Future<Output = F::Output> + use<F>
    where
        F: Future<Output = Result<Response, Infallible>>,
    {
        self.n.fetch_add(1, Ordering::Relaxed);
        let open = self.open.clone();
        async move {
            let response = answer.await?;
            Ok(response.map(|body| {
                Body::new(body.map_frame(move |frame| {
                    let _ = &open;
                    frame
                }))
            }))
        }
    }

    /// Waits until there was none for a while.
    async fn rest(&self) {
        loop {
            let before = self.n.load(Ordering::Relaxed);
            sleep(IDLE).await;
            if self.n.load(Ordering::Relaxed) == before && Arc::strong_count(&self.open) == 1 {
                return;
            }
        }
    }
}

fn builder(is_http2: bool) -> Builder<TokioExecutor> {
    let mut builder = Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEADER_TIME).max_buf_size(MAX_HEADERS);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_header_list_size(MAX_HEADERS as u32)
        .max_concurrent_streams(128)
        .keep_alive_interval(Duration::from_secs(30));
    if is_http2 { builder.http2_only() } else { builder.http1_only() }
}

#[cfg(test)]
mod tests {
    use axum::routing::get;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    async fn server() -> Listening {
        let listener = bind(SocketAddr::from(([127, 0, 0, 1], 0))).expect("a port");
        let router = Router::new().route("/", get(async || "hello"));
        let (_, tls) = watch::channel(None);
        listen(listener, tls, router).await.expect("a server")
    }

    /// What a server says to these bytes until it closes the connection, and how long that takes.
    async fn said(address: SocketAddr, bytes: &[u8]) -> (Vec<u8>, Duration) {
        let begun = std::time::Instant::now();
        let mut stream = TcpStream::connect(address).await.expect("a connection");
        stream.write_all(bytes).await.expect("bytes are sent");
        let mut answer = Vec::new();
        let _ = timeout(Duration::from_secs(60), stream.read_to_end(&mut answer)).await.expect("an end");
        (answer, begun.elapsed())
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn connections_that_say_nothing_are_closed() {
        let server = server().await;
        let address = server.address();
        let begins: [&[u8]; 5] = [b"", b"PR", &PREFACE[..12], b"GET / HTTP/1.1\r\nhost: x", b"P"];
        let all = begins.map(|bytes| tokio::spawn(said(address, bytes)));
        for (task, bytes) in all.into_iter().zip(begins) {
            let (_, took) = task.await.expect("a task");
            assert!(took < 2 * HEADER_TIME, "{bytes:?}: {took:?}");
        }
        let (answer, _) = said(address, b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await;
        assert!(answer.ends_with(b"hello"), "{}", String::from_utf8_lossy(&answer));
        server.stop().await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_rests_when_all_its_answers_are_sent() {
        let requests = Requests::default();
        let answer = requests.count(async { Ok(Response::new(Body::from("hello"))) }).await.expect("an answer");
        assert!(timeout(5 * IDLE, requests.rest()).await.is_err(), "an answer is under way");
        drop(answer);
        assert!(timeout(3 * IDLE, requests.rest()).await.is_ok());
    }
}
