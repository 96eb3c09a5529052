//! The gRPC API: services over a running broker, one translator, one error map, one guard.

pub mod agent;
pub mod client;
mod connection;
pub mod convert;
pub mod described;
pub mod error;
mod guard;
mod intake;
mod job;
mod logs;
mod outlet;
mod page;
pub mod patience;
mod pool;
pub mod proto;
mod queue;
mod rate;
mod walk;
mod watch;

use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tonic::Status;
use tonic::transport::Server;

use crate::model::id::Revision;
use crate::model::limit::{MESSAGE_BYTES_MAX, TOKEN_LEN_MAX};
use crate::runtime::broker::{CallError, Handle};
use crate::state::command::{Command, Request};
use crate::state::decide::Reply;
use crate::state::token::RequestToken;
use proto::v1;

/// Answers may be lists of full pages.
const ANSWER_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Streams at once on one connection.
const STREAMS_MAX: u32 = 1_024;
/// Bytes of a request's headers: a token and an address; continuations beyond it end the connection.
const HEADER_BYTES_MAX: u32 = 16 * 1024;
/// Bytes of one frame, the least that HTTP/2 allows: a longer one would only hold up the others.
const FRAME_BYTES_MAX: u32 = 16 * 1024;
/// Streams that were opened and reset before they were looked at, beyond which the connection ends: a
/// client that floods so gets work begun for nothing (CVE-2023-44487).
const RESETS_PENDING_MAX: usize = 20;
/// Streams that this side reset for the client's errors, beyond which the connection ends: as many as
/// one that miscounts its streams may lose in one go.
const RESETS_MAX: usize = STREAMS_MAX as usize;
/// How long a request may take to come in and be answered. Streams begin with their answer: they
/// live on.
const REQUEST_WAIT: Duration = Duration::from_secs(60);
/// How long a connection may last before a request with the token has come in on it.
const TOKEN_WAIT: Duration = Duration::from_secs(30);

/// Serves the API on `listener` until `stop` ends; each client may send so many mutations a second.
///
/// # Errors
/// What the transport reports.
pub async fn serve(
    broker: Handle,
    listener: TcpListener,
    token: &str,
    mutations_per_s: u32,
    stop: impl Future<Output = ()>,
) -> Result<(), tonic::transport::Error> {
    let gate = rate::Gate::new(mutations_per_s);
    let jobs = job::Jobs { broker: broker.clone(), gate: gate.clone() };
    let jobs = v1::job_service_server::JobServiceServer::new(jobs)
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(ANSWER_BYTES_MAX);
    let pools = pool::Pools {
        broker: broker.clone(),
        gate: gate.clone(),
        planning: Arc::new(tokio::sync::Semaphore::new(1)),
    };
    let pools = v1::pool_service_server::PoolServiceServer::new(pools)
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(ANSWER_BYTES_MAX);
    let queues = queue::Queues { broker: broker.clone(), gate };
    let queues = v1::queue_service_server::QueueServiceServer::new(queues)
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(ANSWER_BYTES_MAX);
    let agents = v1::agent_service_server::AgentServiceServer::new(agent::Agents { broker })
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX);
    let (reporter, health) = tonic_health::server::health_reporter();
    reporter.set_serving::<v1::job_service_server::JobServiceServer<job::Jobs>>().await;
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(proto::DESCRIPTOR)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1();
    let mut server = Server::builder()
        .http2_keepalive_interval(Some(Duration::from_secs(20)))
        .http2_keepalive_timeout(Some(Duration::from_secs(10)))
        .max_concurrent_streams(STREAMS_MAX)
        .timeout(REQUEST_WAIT)
        .http2_max_header_list_size(HEADER_BYTES_MAX)
        .max_frame_size(FRAME_BYTES_MAX)
        .http2_max_pending_accept_reset_streams(Some(RESETS_PENDING_MAX))
        .http2_max_local_error_reset_streams(Some(RESETS_MAX))
        .layer(guard::Guard::new(token))
        .layer(intake::Intake::default());
    let router = server
        .add_service(health)
        .add_service(jobs)
        .add_service(pools)
        .add_service(queues)
        .add_service(agents);
    let router = match reflection {
        Ok(reflection) => router.add_service(reflection),
        Err(error) => {
            tracing::error!(%error, "reflection is off: the compiled definitions can't be read");
            router
        }
    };
    let incoming = connection::accept(listener, connection::most(), TOKEN_WAIT);
    router.serve_with_incoming_shutdown(incoming, stop).await
}

/// A mutation: whose it is, how many jobs it is about, and what is to be done.
struct Mutation<'a> {
    identity: &'a rate::Identity,
    method: &'static str,
    /// An empty one is allowed: such a request is not repeatable.
    token: &'a str,
    /// What tells it from another request with the same token.
    fingerprint: &'a [u8],
    jobs: usize,
    command: Command,
}

/// Has a mutation decided when it is its client's turn.
///
/// # Errors
/// What keeps it from being asked for; within, what is decided against it.
async fn mutate(
    broker: &Handle,
    gate: &rate::Gate,
    mutation: Mutation<'_>,
) -> Result<Result<(Reply, Revision), CallError>, Status> {
    let Mutation { identity, method, token, fingerprint, jobs, command } = mutation;
    if token.len() > TOKEN_LEN_MAX {
        let description = format!("{} bytes, at most {TOKEN_LEN_MAX} are allowed", token.len());
        return Err(error::invalid(convert::invalid("token", description)));
    }
    let principal = identity.principal().clone();
    let token = (!token.is_empty()).then(|| RequestToken::new(&principal, method, token, fingerprint));
    let _pass = gate.enter(identity, jobs).await?;
    Ok(broker.request(Request { principal, token, command }).await)
}
