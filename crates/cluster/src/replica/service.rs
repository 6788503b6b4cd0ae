//! What a backend answers to frontends: the service `Store`.

use std::{sync::Arc, time::Instant};

use proto::store::{
    self as wire,
    store_server::{Store, StoreServer},
};
use store::{Batch, Engine, StoreError};
use tonic::{Request, Response, Status};

use super::{
    engine::Replica,
    wire::{
        FORMAT, MESSAGE_MAX, Malformed, check_tables, commit_reply, get_reply, read_batch, read_partition,
        read_range, read_table, read_timeout, scan_reply, tables,
    },
};
use crate::identity::is_node;

pub(super) struct Service {
    pub(super) replica: Arc<Replica>,
}

/// The service over a replica, to be mounted on the cluster's listener.
pub(super) fn server(replica: Arc<Replica>) -> StoreServer<Service> {
    StoreServer::new(Service { replica })
        .max_decoding_message_size(MESSAGE_MAX)
        .max_encoding_message_size(MESSAGE_MAX)
}

impl Service {
    async fn commit_checked(
        &self,
        command: Option<wire::Command>,
        deadline: Instant,
    ) -> Result<wire::CommitReply, StoreError> {
        let command = command.ok_or(Malformed("no command"))?;
        if command.format != FORMAT {
            // It must not reach the log, where it would stop every backend that does not know it.
            return Err(Malformed("unknown format of a command").into());
        }
        check_tables(tables(&command))?;
        let batches = command.batches.iter().cloned().map(read_batch).collect::<Result<Vec<_>, _>>()?;
        batches.iter().try_for_each(Batch::check)?;
        self.replica.check_space(&batches)?;
        self.replica.commit_command(&command, deadline).await
    }
}

#[tonic::async_trait]
impl Store for Service {
    async fn get(&self, request: Request<wire::GetRequest>) -> Result<Response<wire::GetReply>, Status> {
        is_node(&request)?;
        let request = request.into_inner();
        let deadline = read_timeout(request.timeout_ms);
        let found = async {
            check_tables([request.table.as_str()].into_iter())?;
            let (partition, table) = (read_partition(request.partition)?, read_table(&request.table)?);
            self.replica.get(&partition, table, &request.key, deadline).await
        };
        Ok(Response::new(get_reply(found.await)))
    }

    async fn scan(&self, request: Request<wire::ScanRequest>) -> Result<Response<wire::ScanReply>, Status> {
        is_node(&request)?;
        let request = request.into_inner();
        let deadline = read_timeout(request.timeout_ms);
        let range = read_range(&request);
        let found = async {
            check_tables([request.table.as_str()].into_iter())?;
            let (partition, table) = (read_partition(request.partition)?, read_table(&request.table)?);
            self.replica.scan(&partition, table, range, deadline).await
        };
        Ok(Response::new(scan_reply(found.await)))
    }

    async fn commit(
        &self,
        request: Request<wire::CommitRequest>,
    ) -> Result<Response<wire::CommitReply>, Status> {
        is_node(&request)?;
        let request = request.into_inner();
        let deadline = read_timeout(request.timeout_ms);
        let reply = self.commit_checked(request.command, deadline).await;
        Ok(Response::new(reply.unwrap_or_else(|e| commit_reply(Err(e)))))
    }
}
