//! Generated gRPC code of `/proto`: the messages and services that nodes and operators speak.

/// Encoded `FileDescriptorSet` of all of `/proto`, for server reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

/// What operators ask of a node.
pub mod admin {
    tonic::include_proto!("rookery.admin.v1");
}

/// What nodes say to each other to carry stanzas.
pub mod relay {
    tonic::include_proto!("rookery.relay.v1");
}

/// Agreement between backends.
pub mod raft {
    tonic::include_proto!("rookery.raft.v1");
}

/// How nodes find each other, stay, and follow who is where.
pub mod membership {
    tonic::include_proto!("rookery.membership.v1");
}

/// How a node gets into a cluster, and keeps its certificate young.
pub mod join {
    tonic::include_proto!("rookery.join.v1");
}

/// What nodes ask each other about their sessions.
pub mod sessions {
    tonic::include_proto!("rookery.sessions.v1");
}

/// What nodes ask each other so that an operator sees all of them at any one.
pub mod sight {
    tonic::include_proto!("rookery.sight.v1");
}

/// What backends keep for the other nodes, and the commands of the replicated store.
pub mod store {
    tonic::include_proto!("rookery.store.v1");
}
