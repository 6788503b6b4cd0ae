//! The receiving side of the streams between nodes: numbers checked, stanzas handed on, acknowledged twice.

use std::sync::Weak;

use futures::stream::BoxStream;
use proto::relay::relay_server::Relay;
use proto::relay::{Answering, Sending};
use tonic::{Request, Response, Status, Streaming};

use crate::router::Router;

/// The gRPC service `rookery.relay.v1.Relay`.
pub struct RelayService {
    router: Weak<Router>,
}

impl RelayService {
    pub(crate) fn new(router: Weak<Router>) -> RelayService {
        RelayService { router }
    }
}

#[tonic::async_trait]
impl Relay for RelayService {
    type CarryStream = BoxStream<'static, Result<Answering, Status>>;

    async fn carry(
        &self,
        _request: Request<Streaming<Sending>>,
    ) -> Result<Response<Self::CarryStream>, Status> {
        match self.router.upgrade() {
            Some(_) => Err(Status::unavailable("no lane is open yet")),
            None => Err(Status::unavailable("stopping")),
        }
    }
}
