//! A client of the API: an address and its token.

use std::time::Duration;

use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Endpoint;
use tonic::{Request, Status};

use super::patience::Patient;
use super::proto::v1;
use crate::model::limit::MESSAGE_BYTES_MAX;

/// A connection to a broker, made when it is first used and again when it broke. Calls that the broker
/// refuses for a while are repeated when it asks them to be.
#[derive(Clone, Debug)]
pub struct Client {
    channel: Patient,
    token: Token,
}

/// Puts the token on every request.
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

type Service = InterceptedService<Patient, Token>;

/// Answers may be lists of full pages.
const ANSWER_BYTES_MAX: usize = 64 * 1024 * 1024;

impl Client {
    /// A client of the broker at `url`, such as `http://127.0.0.1:7411`.
    ///
    /// # Errors
    /// If `url` is not one of HTTP, or the token can't be in a header.
    pub fn new(url: &str, token: Option<&str>) -> anyhow::Result<Self> {
        let (scheme, address) = url.split_once("://").unwrap_or(("http", url));
        // Going on in plain text where TLS is asked for would give the token away.
        anyhow::ensure!(
            scheme == "http",
            "server {url:?}: {scheme:?} is not spoken yet, only http: write {address} or http://{address}"
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
        Ok(Self { channel: Patient::new(endpoint.connect_lazy(), address), token: Token(token) })
    }

    /// JobService.
    pub fn jobs(&self) -> v1::job_service_client::JobServiceClient<Service> {
        v1::job_service_client::JobServiceClient::with_interceptor(self.channel.clone(), self.token.clone())
            .max_decoding_message_size(ANSWER_BYTES_MAX)
    }

    /// PoolService.
    pub fn pools(&self) -> v1::pool_service_client::PoolServiceClient<Service> {
        v1::pool_service_client::PoolServiceClient::with_interceptor(self.channel.clone(), self.token.clone())
            .max_decoding_message_size(ANSWER_BYTES_MAX)
    }

    /// QueueService.
    pub fn queues(&self) -> v1::queue_service_client::QueueServiceClient<Service> {
        v1::queue_service_client::QueueServiceClient::with_interceptor(
            self.channel.clone(),
            self.token.clone(),
        )
        .max_decoding_message_size(ANSWER_BYTES_MAX)
    }

    /// AgentService.
    pub fn agents(&self) -> v1::agent_service_client::AgentServiceClient<Service> {
        v1::agent_service_client::AgentServiceClient::with_interceptor(
            self.channel.clone(),
            self.token.clone(),
        )
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
    }
}
