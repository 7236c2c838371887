//! Connections.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;

/// How long the headers of a request may take.
const HEADER_TIME: Duration = Duration::from_secs(15);

/// Most connections at once.
const MAX_CONNECTIONS: usize = 16 << 10;

/// Largest headers of a request, in bytes.
const MAX_HEADERS: usize = 64 << 10;

/// How long connections may take to end.
const LAST_WORDS: Duration = Duration::from_secs(10);

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

/// Takes connections from now on: HTTP/1 and HTTP/2, with TLS where there is an acceptor.
pub async fn listen(listener: TcpListener, tls: Option<TlsAcceptor>, router: Router) -> io::Result<Listening> {
    let address = listener.local_addr()?;
    let (stop, stopped) = oneshot::channel();
    let task = tokio::spawn(accept(listener, tls, router, stopped));
    Ok(Listening { address, stop, task })
}

async fn accept(
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    router: Router,
    mut stopped: oneshot::Receiver<()>,
) {
    let graceful = Arc::new(GracefulShutdown::new());
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok(place) = places.clone().acquire_owned().await else { break };
        let stream = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = &mut stopped => break,
        };
        match stream {
            Ok((stream, _)) => {
                let _ = stream.set_nodelay(true);
                tokio::spawn(connection(stream, tls.clone(), router.clone(), graceful.clone(), place));
            }
            // Out of file descriptors, or a connection that is gone already.
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
    drop(listener);
    if let Ok(graceful) = Arc::try_unwrap(graceful) {
        let _ = tokio::time::timeout(LAST_WORDS, graceful.shutdown()).await;
    }
}

async fn connection(
    stream: TcpStream,
    tls: Option<TlsAcceptor>,
    router: Router,
    graceful: Arc<GracefulShutdown>,
    place: OwnedSemaphorePermit,
) {
    match tls {
        None => serve(stream, router, graceful).await,
        Some(tls) => {
            if let Ok(Ok(stream)) = tokio::time::timeout(HEADER_TIME, tls.accept(stream)).await {
                serve(stream, router, graceful).await;
            }
        }
    }
    drop(place);
}

async fn serve<S>(stream: S, router: Router, graceful: Arc<GracefulShutdown>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut builder = Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEADER_TIME).max_buf_size(MAX_HEADERS);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_header_list_size(MAX_HEADERS as u32)
        .max_concurrent_streams(128)
        .keep_alive_interval(Duration::from_secs(30));
    let connection =
        builder.serve_connection_with_upgrades(TokioIo::new(stream), TowerToHyperService::new(router));
    let connection = graceful.watch(connection.into_owned());
    drop(graceful);
    // A client that breaks off is none of the server's faults.
    let _ = connection.await;
}
