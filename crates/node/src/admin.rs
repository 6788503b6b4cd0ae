//! The admin service: what operators ask of a node, answered for the whole cluster.

mod answers;
mod drains;
mod groups;
mod invariants;
mod peers;
mod service;
mod sight;
mod watching;

pub use groups::Kept as KeptGroups;
pub use peers::{LocalSessions, Peers};
pub use service::Admin;
pub use sight::Sight;
pub use watching::Watching;

use std::{future::Future, sync::Arc, time::Duration};

use proto::admin::admin_server::AdminServer;
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::Server;

use crate::readiness::Readiness;

/// How often the health service looks.
const HEALTH: Duration = Duration::from_millis(250);
/// Calls in work on one connection; further ones wait.
const CALLS: usize = 64;
/// Calls that one connection may have open, in work or waiting.
const STREAMS: u32 = 128;
/// Calls that were taken back before anybody looked at them, at a time: beyond it the connection ends.
const TAKEN_BACK: usize = 20;
/// Calls that ended by a fault of the caller: beyond it the connection ends.
const FAULTS: usize = 128;
/// Largest request, in bytes.
const REQUEST_BYTES: usize = 64 * 1024;
/// Largest head of a request, in bytes.
const HEAD_BYTES: u32 = 16 * 1024;

/// The name in the health service that says whether the process works, ready or not.
pub const LIVE: &str = "live";

/// Serves admin, health and reflection on a listener until `stop` is done.
pub async fn serve(
    admin: Admin,
    readiness: Arc<Readiness>,
    listener: TcpListener,
    stop: impl Future<Output = ()>,
) -> Result<(), tonic::transport::Error> {
    let (health, health_service) = tonic_health::server::health_reporter();
    let watch = tokio::spawn(async move {
        let mut tick = tokio::time::interval(HEALTH);
        loop {
            tokio::select! {
                _ = tick.tick() => {}
                () = readiness.changed() => {}
            }
            // the empty name stands for the whole server (gRPC health checking protocol)
            let status = |well| match well {
                true => tonic_health::ServingStatus::Serving,
                false => tonic_health::ServingStatus::NotServing,
            };
            health.set_service_status(LIVE, status(readiness.not_live().is_empty())).await;
            let status = status(readiness.not_ready().is_empty());
            health.set_service_status("rookery.admin.v1.Admin", status).await;
            health.set_service_status("", status).await;
        }
    });
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(proto::DESCRIPTORS)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1();
    let reflection = match reflection {
        Ok(service) => service,
        Err(e) => panic!("the descriptors that were compiled in are whole: {e}"),
    };
    let served = Server::builder()
        .concurrency_limit_per_connection(CALLS)
        .max_concurrent_streams(STREAMS)
        .http2_max_pending_accept_reset_streams(Some(TAKEN_BACK))
        .http2_max_local_error_reset_streams(Some(FAULTS))
        .http2_max_header_list_size(HEAD_BYTES)
        .add_service(AdminServer::new(admin).max_decoding_message_size(REQUEST_BYTES))
        .add_service(health_service.max_decoding_message_size(REQUEST_BYTES))
        .add_service(reflection.max_decoding_message_size(REQUEST_BYTES))
        .serve_with_incoming_shutdown(TcpListenerStream::new(listener), stop)
        .await;
    watch.abort();
    served
}
