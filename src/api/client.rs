//! A client of the API.

use std::time::Duration;

use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Endpoint;
use tonic::{Request, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use super::proto::v1;
use super::retry::RetryChannel;
use crate::model::limit::MESSAGE_BYTES_MAX;

/// A client of one broker. It connects at the first call and reconnects when the connection breaks. Calls
/// that the broker refuses with a retry delay are repeated for up to a minute. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Client {
    channel: RetryChannel,
    token: Token,
}

/// Adds the token to every request.
#[derive(Clone, Debug)]
pub struct Token(Option<MetadataValue<Ascii>>);

impl Interceptor for Token {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(token) = &self.0 {
            request.metadata_mut().insert("authorization", token.clone());
        }
        Ok(request)
    }
}

type Service = InterceptedService<RetryChannel, Token>;

/// Bytes of one response, which may be a list of full pages.
const RESPONSE_BYTES_MAX: usize = 64 * 1024 * 1024;

impl Client {
    /// A client of the broker at `url`, such as `http://127.0.0.1:7411` or `127.0.0.1:7411`. It does not
    /// connect yet. Without `token` the broker answers only health checks.
    ///
    /// # Errors
    /// If `url` is not a valid HTTP URL, or `token` can't be sent in a header.
    pub fn new(url: &str, token: Option<&str>) -> anyhow::Result<Self> {
        let (scheme, address) = url.split_once("://").unwrap_or(("http", url));
        // Plain text where TLS was asked for would disclose the token.
        anyhow::ensure!(
            scheme == "http",
            "server {url:?}: scheme {scheme:?} is not supported, only http: use {address} or http://{address}"
        );
        let (address, url) = (address.trim_end_matches('/'), format!("http://{address}"));
        let endpoint =
            Endpoint::from_shared(url.clone()).map_err(|error| anyhow::anyhow!("server {url:?}: {error}"))?;
        let endpoint = endpoint
            .connect_timeout(Duration::from_secs(5))
            .tcp_nodelay(true)
            .http2_keep_alive_interval(Duration::from_secs(20))
            .keep_alive_timeout(Duration::from_secs(10));
        let token = token.map(|token| format!("Bearer {}", token.trim()).parse()).transpose()?;
        Ok(Self { channel: RetryChannel::new(endpoint.connect_lazy(), address), token: Token(token) })
    }

    /// Returns whether the broker can write its journal. A broker that can't answers reads from its last state.
    ///
    /// # Errors
    /// The status of the call.
    pub async fn can_write(&self) -> Result<bool, Status> {
        let service = v1::job_service_server::SERVICE_NAME.to_owned();
        let mut client = HealthClient::new(self.channel.clone());
        let status = client.check(HealthCheckRequest { service }).await?.into_inner().status;
        Ok(status == ServingStatus::Serving as i32)
    }

    /// A client of JobService.
    pub fn jobs(&self) -> v1::job_service_client::JobServiceClient<Service> {
        v1::job_service_client::JobServiceClient::with_interceptor(self.channel.clone(), self.token.clone())
            .max_decoding_message_size(RESPONSE_BYTES_MAX)
    }

    /// A client of PoolService.
    pub fn pools(&self) -> v1::pool_service_client::PoolServiceClient<Service> {
        v1::pool_service_client::PoolServiceClient::with_interceptor(self.channel.clone(), self.token.clone())
            .max_decoding_message_size(RESPONSE_BYTES_MAX)
    }

    /// A client of QueueService.
    pub fn queues(&self) -> v1::queue_service_client::QueueServiceClient<Service> {
        v1::queue_service_client::QueueServiceClient::with_interceptor(
            self.channel.clone(),
            self.token.clone(),
        )
        .max_decoding_message_size(RESPONSE_BYTES_MAX)
    }

    /// A client of EventService.
    pub fn events(&self) -> v1::event_service_client::EventServiceClient<Service> {
        v1::event_service_client::EventServiceClient::with_interceptor(
            self.channel.clone(),
            self.token.clone(),
        )
        .max_decoding_message_size(RESPONSE_BYTES_MAX)
    }

    /// A client of AgentService.
    pub fn agents(&self) -> v1::agent_service_client::AgentServiceClient<Service> {
        v1::agent_service_client::AgentServiceClient::with_interceptor(
            self.channel.clone(),
            self.token.clone(),
        )
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
    }
}
