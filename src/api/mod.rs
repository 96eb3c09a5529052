//! The gRPC API: services over a running broker, one translator, one error map, one guard.

pub mod agent;
pub mod client;
mod connection;
pub mod convert;
pub mod error;
mod guard;
mod job;
mod logs;
pub mod patience;
mod pool;
pub mod proto;
mod queue;
mod watch;

use std::time::Duration;

use tokio::net::TcpListener;
use tonic::Status;
use tonic::transport::Server;

use crate::model::limit::{MESSAGE_BYTES_MAX, TOKEN_LEN_MAX};
use crate::runtime::broker::Handle;
use crate::state::command::{Command, Request};
use crate::state::job::Principal;
use crate::state::token::RequestToken;
use proto::v1;

/// Answers may be lists of full pages.
const ANSWER_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Streams at once on one connection.
const STREAMS_MAX: u32 = 1_024;
/// How long a request may take to come in and be answered. Streams begin with their answer: they
/// live on.
const REQUEST_WAIT: Duration = Duration::from_secs(60);
/// How long a connection may last before a request with the token has come in on it.
const TOKEN_WAIT: Duration = Duration::from_secs(30);

/// Serves the API on `listener` until `stop` ends.
///
/// # Errors
/// What the transport reports.
pub async fn serve(
    broker: Handle,
    listener: TcpListener,
    token: &str,
    stop: impl Future<Output = ()>,
) -> Result<(), tonic::transport::Error> {
    let jobs = v1::job_service_server::JobServiceServer::new(job::Jobs { broker: broker.clone() })
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(ANSWER_BYTES_MAX);
    let pools = v1::pool_service_server::PoolServiceServer::new(pool::Pools { broker: broker.clone() })
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(ANSWER_BYTES_MAX);
    let queues = v1::queue_service_server::QueueServiceServer::new(queue::Queues { broker: broker.clone() })
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
        .http2_max_header_list_size(16 * 1024)
        .layer(guard::Guard::new(token));
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

/// A mutation with its token. An empty token is allowed: such a request is not repeatable.
fn mutation(token: &str, method: &str, fingerprint: &[u8], command: Command) -> Result<Request, Status> {
    if token.len() > TOKEN_LEN_MAX {
        let description = format!("{} bytes, at most {TOKEN_LEN_MAX} are allowed", token.len());
        return Err(error::invalid(convert::invalid("token", description)));
    }
    let principal = Principal::Anonymous;
    let token = (!token.is_empty()).then(|| RequestToken::new(&principal, method, token, fingerprint));
    Ok(Request { principal, token, command })
}
