//! The metrics port: a small HTTP server that answers `/metrics` in the Prometheus text format, `/ready` and `/live`.

use std::{convert::Infallible, future::Future, sync::Arc, time::Duration};

use bytes::Bytes;
use http_body_util::Full;
use hyper::{
    Method, Request, Response, StatusCode, body::Incoming, header, server::conn::http1, service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{net::TcpListener, sync::Semaphore};

/// Connections at a time; further ones wait to be accepted.
const CONNECTIONS: usize = 16;
/// How long a request may take to arrive.
const REQUEST: Duration = Duration::from_secs(10);
/// How long a connection may live in all; a scraper comes back with another.
const LIFE: Duration = Duration::from_secs(120);

/// Makes the text of `/metrics`.
pub type Page = Arc<dyn Fn() -> String + Send + Sync>;
/// Says what is wrong, one reason after the other; nothing where all is well.
pub type Check = Arc<dyn Fn() -> Vec<String> + Send + Sync>;

/// What is answered.
#[derive(Clone)]
pub struct Pages {
    /// `/metrics`
    pub metrics: Page,
    /// `/ready`: whether the node should get new clients.
    pub ready: Check,
    /// `/live`: whether it works, or should be started again.
    pub live: Check,
}

/// Serves until `stop` is done.
pub async fn serve(listener: TcpListener, pages: Pages, stop: impl Future<Output = ()>) {
    let permits = Arc::new(Semaphore::new(CONNECTIONS));
    let mut stop = std::pin::pin!(stop);
    loop {
        let Ok(permit) = permits.clone().acquire_owned().await else { return };
        let socket = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((socket, _)) => socket,
                Err(error) => {
                    tracing::warn!(%error, "failed to accept on the metrics port");
                    // such as too many open files: trying at once would only burn the core
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            },
            () = &mut stop => return,
        };
        let pages = pages.clone();
        tokio::spawn(async move {
            let answer = service_fn(move |request| {
                let response = answer(&request, &pages);
                async move { Ok::<_, Infallible>(response) }
            });
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(REQUEST)
                .serve_connection(TokioIo::new(socket), answer);
            // a peer that goes away or speaks no HTTP is nothing to report
            let _ = tokio::time::timeout(LIFE, connection).await;
            drop(permit);
        });
    }
}

fn answer(request: &Request<Incoming>, pages: &Pages) -> Response<Full<Bytes>> {
    let path = request.uri().path();
    let read = matches!(*request.method(), Method::GET | Method::HEAD);
    let (status, text) = match path {
        "/metrics" | "/ready" | "/live" if !read => (StatusCode::METHOD_NOT_ALLOWED, "only GET\n".to_owned()),
        "/metrics" => (StatusCode::OK, (pages.metrics)()),
        "/ready" => health("ready", &(pages.ready)()),
        "/live" => health("live", &(pages.live)()),
        _ => (StatusCode::NOT_FOUND, "there are /metrics, /ready and /live\n".to_owned()),
    };
    let kind = match path {
        "/metrics" if read => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        _ => "text/plain; charset=utf-8",
    };
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(kind));
    response
}

fn health(word: &str, wrong: &[String]) -> (StatusCode, String) {
    match wrong {
        [] => (StatusCode::OK, format!("{word}\n")),
        wrong => (StatusCode::SERVICE_UNAVAILABLE, wrong.iter().map(|why| format!("{why}\n")).collect()),
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    async fn ask(path: &str) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let pages = Pages {
            metrics: Arc::new(|| "rookery_sessions 3\n".to_owned()),
            ready: Arc::new(|| vec!["draining: so".to_owned(), "no lease: so".to_owned()]),
            live: Arc::new(Vec::new),
        };
        let server = tokio::spawn(serve(listener, pages, std::future::pending()));
        let mut socket = tokio::net::TcpStream::connect(address).await.unwrap();
        let request = format!("{path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        socket.write_all(request.as_bytes()).await.unwrap();
        let mut text = String::new();
        socket.read_to_string(&mut text).await.unwrap();
        server.abort();
        text
    }

    #[tokio::test]
    async fn each_page_is_at_its_path_and_nowhere_else() {
        for (request, status, end) in [
            ("GET /metrics", 200, "rookery_sessions 3\n"),
            ("GET /ready", 503, "draining: so\nno lease: so\n"),
            ("GET /live", 200, "live\n"),
            ("POST /metrics", 405, "only GET\n"),
            ("POST /ready", 405, "only GET\n"),
            ("GET /", 404, "there are /metrics, /ready and /live\n"),
            ("GET /ready/", 404, "there are /metrics, /ready and /live\n"),
        ] {
            let found = ask(request).await;
            assert!(found.starts_with(&format!("HTTP/1.1 {status}")) && found.ends_with(end), "{found}");
            assert_eq!(found.contains("openmetrics"), request == "GET /metrics", "{found}");
        }
    }
}
