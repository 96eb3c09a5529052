//! Who may call: holders of the local token, at an address that is the broker's own.

use std::task::{Context, Poll};

use http::{Request, Response};
use tonic::Status;
use tonic::body::Body;
use tower::{Layer, Service};

use super::connection::Admission;

/// Refuses requests without the token or for a foreign host.
///
/// A port that runs commands must serve neither every local user nor every web page that a
/// browser on the machine has open: the token keeps out the first, the Host check the second,
/// which could otherwise reach a loopback port under a name of its own (DNS rebinding).
#[derive(Clone, Debug)]
pub struct Guard {
    token: std::sync::Arc<str>,
}

impl Guard {
    /// Lets in who knows `token`.
    pub fn new(token: &str) -> Self {
        Self { token: token.into() }
    }

    fn check<B>(&self, request: &Request<B>) -> Result<(), Status> {
        let host = request.uri().authority().map(http::uri::Authority::as_str);
        let header = request.headers().get(http::header::HOST).and_then(|value| value.to_str().ok());
        let host = host.or(header).unwrap_or_default();
        if !is_loopback(host) {
            let message = format!(
                "host {:?} is not this broker's: use 127.0.0.1 or localhost",
                crate::model::text::escape(host)
            );
            return Err(Status::permission_denied(message));
        }
        if let Some(origin) = request.headers().get(http::header::ORIGIN)
            && !origin.to_str().is_ok_and(is_own_origin)
        {
            return Err(Status::permission_denied("requests of foreign web pages are not served"));
        }
        let path = request.uri().path();
        // Whether the broker is up is no secret, and what probes it should hold none.
        if path.starts_with("/grpc.health.v1.Health/") {
            return Ok(());
        }
        let given = request.headers().get(http::header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        let given = given.and_then(|text| text.strip_prefix("Bearer "));
        match given {
            Some(token) if same(token, &self.token) => {
                if let Some(admission) = request.extensions().get::<Admission>() {
                    admission.grant();
                }
                Ok(())
            }
            Some(_) => Err(Status::unauthenticated("the token is not this broker's: see DATA/token")),
            None => Err(Status::unauthenticated(
                "a token is needed: send `authorization: Bearer TOKEN` with what DATA/token holds",
            )),
        }
    }
}

/// Compares without telling by its time how much is right.
fn same(left: &str, right: &str) -> bool {
    left.len() == right.len() && left.bytes().zip(right.bytes()).fold(0, |sum, (a, b)| sum | (a ^ b)) == 0
}

/// A web page that the broker's own machine serves.
fn is_own_origin(origin: &str) -> bool {
    origin.split_once("://").is_some_and(|(_, host)| is_loopback(host))
}

fn is_loopback(host: &str) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
        _ => host,
    };
    let name = name.trim_start_matches('[').trim_end_matches(']');
    name.eq_ignore_ascii_case("localhost")
        || name.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

impl<S> Layer<S> for Guard {
    type Service = Guarded<S>;

    fn layer(&self, inner: S) -> Guarded<S> {
        Guarded { inner, guard: self.clone() }
    }
}

/// A service behind the guard.
#[derive(Clone, Debug)]
pub struct Guarded<S> {
    inner: S,
    guard: Guard,
}

impl<S, B> Service<Request<B>> for Guarded<S>
where
    S: Service<Request<B>, Response = Response<Body>>,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = std::pin::Pin<Box<dyn Future<Output = Result<Response<Body>, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        match self.guard.check(&request) {
            Ok(()) => Box::pin(self.inner.call(request)),
            Err(status) => Box::pin(async move { Ok(status.into_http()) }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{is_loopback, is_own_origin};

    #[test]
    fn only_pages_of_this_machine_are_of_the_brokers_origin() {
        assert!(is_own_origin("http://localhost:7411") && is_own_origin("https://127.0.0.1"));
        for origin in ["", "null", "http://evil.example", "http://localhost.evil.example", "localhost"] {
            assert!(!is_own_origin(origin), "{origin}");
        }
    }

    #[test]
    fn only_loopback_hosts_are_the_brokers_own() {
        for host in ["127.0.0.1:7411", "localhost", "LOCALHOST:1", "[::1]:7411", "127.3.2.1"] {
            assert!(is_loopback(host), "{host}");
        }
        for host in ["", "evil.example", "localhost.evil.example:7411", "10.0.0.1", "127.0.0.1.nip.io:80"] {
            assert!(!is_loopback(host), "{host}");
        }
    }
}
