//! The gRPC API: services over a running broker, conversion of messages, error mapping, authentication.

mod admission;
pub mod agent;
mod attempts;
mod auth;
mod body_limit;
pub mod change;
pub mod client;
mod codec;
mod connect;
pub mod connection;
pub mod convert;
mod dependencies;
pub mod descriptor;
pub mod error;
mod events;
mod http;
mod in_flight;
mod job;
mod logs;
mod measured;
mod middleware;
mod mutation;
mod page;
mod pool;
pub mod proto;
mod queue;
mod rerun;
mod response_limit;
mod response_stream;
pub mod retry;
mod selection;
mod units;
mod watch;

use std::sync::Arc;
use std::time::Duration;

use middleware::Before;
use tokio::net::TcpListener;
use tokio::sync::watch::Receiver;
use tonic::service::Routes;
use tonic::transport::Server;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

use crate::model::limit::MESSAGE_BYTES_MAX;
use crate::model::memory::MemoryBudget;
use crate::runtime::handle::Handle;
use proto::v1;

/// Bytes of one response, which may be a list of full pages.
const RESPONSE_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Concurrent streams on one connection.
const STREAMS_MAX: u32 = 1_024;
/// Bytes of a request's headers, which carry a token and an address. Continuation frames beyond it end
/// the connection.
const HEADER_BYTES_MAX: u32 = 16 * 1024;
/// Bytes of one frame, the minimum that HTTP/2 allows: a longer frame would only delay the others.
const FRAME_BYTES_MAX: u32 = 16 * 1024;
/// Streams that the client opened and reset before they were accepted, beyond which the connection ends:
/// a flood of them makes the server start work in vain (CVE-2023-44487, rapid reset).
const RESETS_PENDING_MAX: usize = 20;
/// Streams that this side reset for the client's errors, beyond which the connection ends: as many as a
/// client that miscounts its streams may lose at once.
const RESETS_MAX: usize = STREAMS_MAX as usize;
/// How long a request may take until its response begins. A stream may last longer: its response begins
/// at once.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a connection may stay open before a request with the token arrives on it.
const AUTH_TIMEOUT: Duration = Duration::from_secs(30);

/// What clients may take.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Mutations of one client in a second.
    pub mutations_per_s: u32,
    /// Connections at once.
    pub connections_max: usize,
    pub memory: MemoryBudget,
}

/// Serves the API on `listener` until `stop` ends.
///
/// # Errors
/// The transport's error if it can't serve.
pub async fn serve(
    broker: Handle,
    listener: TcpListener,
    token: &str,
    limits: Limits,
    stop: impl Future<Output = ()>,
) -> Result<(), tonic::transport::Error> {
    let admission = admission::AdmissionQueue::new(limits.mutations_per_s);
    let mutations = mutation::Mutations { broker: broker.clone(), admission };
    let (write_error, metrics, plain) = (broker.write_error(), broker.metrics().clone(), broker.clone());
    let jobs = job::Jobs { broker: broker.clone(), mutations: mutations.clone() };
    let events = v1::event_service_server::EventServiceServer::new(events::Events { jobs: jobs.clone() })
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(RESPONSE_BYTES_MAX);
    let jobs = v1::job_service_server::JobServiceServer::new(jobs)
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(RESPONSE_BYTES_MAX);
    let pools = pool::Pools {
        broker: broker.clone(),
        mutations: mutations.clone(),
        planning: Arc::new(tokio::sync::Semaphore::new(1)),
    };
    let pools = v1::pool_service_server::PoolServiceServer::new(pools)
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(RESPONSE_BYTES_MAX);
    let queues = queue::Queues { broker: broker.clone(), mutations };
    let queues = v1::queue_service_server::QueueServiceServer::new(queues)
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(RESPONSE_BYTES_MAX);
    let agents = v1::agent_service_server::AgentServiceServer::new(agent::Agents { broker })
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX);
    let (reporter, health) = tonic_health::server::health_reporter();
    let report = report_health(reporter, write_error);
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(proto::DESCRIPTOR)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        // Generic clients print an error's details only if they can look their types up.
        .register_encoded_file_descriptor_set(tonic_types::pb::FILE_DESCRIPTOR_SET)
        .build_v1();
    let responses = response_limit::LimitResponses::new(limits.memory.responses);
    let bodies = body_limit::LimitBodies::new(limits.memory.requests);
    let mut server = Server::builder()
        // For plain HTTP, JSON and gRPC-Web.
        .accept_http1(true)
        .http2_keepalive_interval(Some(Duration::from_secs(20)))
        .http2_keepalive_timeout(Some(Duration::from_secs(10)))
        .max_concurrent_streams(STREAMS_MAX)
        .timeout(REQUEST_TIMEOUT)
        .http2_max_header_list_size(HEADER_BYTES_MAX)
        .max_frame_size(FRAME_BYTES_MAX)
        .http2_max_pending_accept_reset_streams(Some(RESETS_PENDING_MAX))
        .http2_max_local_error_reset_streams(Some(RESETS_MAX))
        .layer(auth::own_pages())
        .layer(Before(measured::Measure(metrics)))
        .layer(Before(in_flight::CountInFlight))
        .layer(Before(auth::Auth::new(token)))
        .layer(Before(http::PlainHttp::new(plain)))
        .layer(Before(connect::Connect { bodies: bodies.clone(), responses: responses.clone() }))
        // Inside of it requests and responses are those of gRPC.
        .layer(tonic_web::GrpcWebLayer::new())
        .layer(Before(responses))
        .layer(Before(bodies));
    let mut routes = Routes::new(health);
    routes = routes.add_service(jobs).add_service(pools).add_service(queues);
    routes = routes.add_service(events).add_service(agents);
    match reflection {
        Ok(reflection) => routes = routes.add_service(reflection),
        Err(error) => {
            tracing::error!(%error, "reflection is off: the compiled definitions can't be decoded");
        }
    }
    let router = server.add_routes(routes);
    let incoming = connection::accept(listener, limits.connections_max, AUTH_TIMEOUT);
    tokio::select! {
        served = router.serve_with_incoming_shutdown(incoming, stop) => served,
        () = report => Ok(()),
    }
}

/// Reports as long as the server runs whether the services can do their work. The whole server, `""`, is serving: it
/// answers reads even if the journal can't be written.
async fn report_health(reporter: HealthReporter, mut write_error: Receiver<Option<String>>) {
    let services = [
        v1::job_service_server::SERVICE_NAME,
        v1::pool_service_server::SERVICE_NAME,
        v1::queue_service_server::SERVICE_NAME,
        v1::event_service_server::SERVICE_NAME,
        v1::agent_service_server::SERVICE_NAME,
    ];
    loop {
        let status = match *write_error.borrow_and_update() {
            None => ServingStatus::Serving,
            Some(_) => ServingStatus::NotServing,
        };
        for service in services {
            reporter.set_service_status(service, status).await;
        }
        if write_error.changed().await.is_err() {
            // The broker's thread and all handles are gone. The server ends by its own condition.
            return std::future::pending().await;
        }
    }
}
