//! The standard gRPC services beside the admin service: health and reflection.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tests::nodes::{Layout, Nodes};
use tokio::time::{Instant, interval};
use tonic::transport::Channel;
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};
use tonic_reflection::pb::v1::{
    ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
    server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
};

async fn channel(nodes: &Nodes, at: usize) -> Result<Channel> {
    let admin = format!("http://{}", nodes.nodes[at].admin);
    Ok(Channel::from_shared(admin)?.timeout(Duration::from_secs(5)).connect().await?)
}

async fn health(nodes: &Nodes, at: usize, service: &str) -> Result<ServingStatus> {
    let mut client = HealthClient::new(channel(nodes, at).await?);
    let request = HealthCheckRequest { service: service.to_owned() };
    Ok(client.check(request).await?.into_inner().status())
}

/// The health of the whole node follows its lease a quarter of a second later.
async fn until_health(nodes: &Nodes, wanted: ServingStatus) -> Result<()> {
    let end = Instant::now() + Duration::from_secs(15);
    let mut look = interval(Duration::from_millis(100));
    while health(nodes, 0, "").await? != wanted {
        ensure!(Instant::now() < end, "not `{}`", wanted.as_str_name());
        look.tick().await;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_is_healthy_while_it_holds_its_lease() -> Result<()> {
    let mut nodes = Nodes::start(Layout::Three).await?;
    until_health(&nodes, ServingStatus::Serving).await?;
    ensure!(
        health(&nodes, 0, "rookery.admin.v1.Admin").await? == ServingStatus::Serving,
        "the admin service"
    );
    ensure!(health(&nodes, 0, "no.such.Service").await.is_err(), "a service that is not there is healthy");

    // Without a majority nobody renews its lease.
    nodes.kill(1).await?;
    nodes.kill(2).await?;
    until_health(&nodes, ServingStatus::NotServing).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reflection_shows_the_admin_service() -> Result<()> {
    let nodes = Nodes::start(Layout::One).await?;
    let ask = |request| ServerReflectionRequest { host: String::new(), message_request: Some(request) };
    let requests = [
        ask(MessageRequest::ListServices(String::new())),
        ask(MessageRequest::FileContainingSymbol("rookery.admin.v1.Admin".into())),
    ];
    let mut client = ServerReflectionClient::new(channel(&nodes, 0).await?);
    let asked = futures::stream::iter(requests);
    let mut answers = client.server_reflection_info(asked).await?.into_inner();
    let mut next = async || {
        let answer = answers.message().await?.context("no answer")?;
        answer.message_response.context("an empty answer")
    };
    let MessageResponse::ListServicesResponse(list) = next().await? else { anyhow::bail!("no list") };
    let names: Vec<&str> = list.service.iter().map(|s| s.name.as_str()).collect();
    for name in ["rookery.admin.v1.Admin", "grpc.health.v1.Health"] {
        ensure!(names.contains(&name), "no `{name}` in {names:?}");
    }
    let MessageResponse::FileDescriptorResponse(files) = next().await? else { anyhow::bail!("no files") };
    let has = |word: &str| {
        files.file_descriptor_proto.iter().any(|f| f.windows(word.len()).any(|w| w == word.as_bytes()))
    };
    for word in ["ListSessions", "KickSessionRequest"] {
        ensure!(has(word), "`{word}` is not described");
    }
    Ok(())
}
