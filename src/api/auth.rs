//! Authentication middleware: admits holders of the token, and only under the broker's own host name.

use http::{Request, Response, StatusCode};
use subtle::ConstantTimeEq;
use tonic::Status;
use tonic::body::Body;
use tower_http::cors::{AllowOrigin, CorsLayer};

use super::connect;
use super::connection::ConnectionInfo;
use super::http::{WITHOUT_TOKEN, is_plain};
use super::middleware::{Inner, Middleware, ResponseFuture};

/// Refuses requests without the token, for a foreign host, or from a foreign web page.
///
/// A port that runs commands must serve neither every local user nor every web page that a browser on
/// the machine has open. The token keeps out the former. The Host check keeps out the latter, which
/// could otherwise reach a loopback port under a domain name of their own (DNS rebinding).
#[derive(Clone, Debug)]
pub(super) struct Auth {
    token: std::sync::Arc<str>,
}

impl Auth {
    /// Admits requests that carry `token`.
    pub(super) fn new(token: &str) -> Self {
        Self { token: token.into() }
    }

    /// Checks host, origin and token, in this order.
    ///
    /// # Errors
    /// `PERMISSION_DENIED` for a foreign host or origin, `UNAUTHENTICATED` without the right token.
    fn authorize<B>(&self, request: &Request<B>) -> Result<(), Status> {
        let host = request.uri().authority().map(http::uri::Authority::as_str);
        let header = request.headers().get(http::header::HOST).and_then(|value| value.to_str().ok());
        let host = host.or(header).unwrap_or_default();
        if !is_loopback(host) {
            let message = format!(
                "host {:?} is not a loopback address: use 127.0.0.1 or localhost",
                crate::model::text::escape(host)
            );
            return Err(Status::permission_denied(message));
        }
        if let Some(origin) = request.headers().get(http::header::ORIGIN)
            && !origin.to_str().is_ok_and(is_own_origin)
        {
            return Err(Status::permission_denied("requests from foreign web pages are refused"));
        }
        let path = request.uri().path();
        // The health status is no secret, and a health probe should need no token.
        if path.starts_with("/grpc.health.v1.Health/") || WITHOUT_TOKEN.contains(&path) {
            return Ok(());
        }
        let given = request.headers().get(http::header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        let given = given.and_then(|text| text.strip_prefix("Bearer "));
        match given {
            Some(token) if token.as_bytes().ct_eq(self.token.as_bytes()).into() => {
                if let Some(connection) = request.extensions().get::<ConnectionInfo>() {
                    connection.set_authenticated();
                }
                Ok(())
            }
            Some(_) => Err(Status::unauthenticated("invalid token: use the one in the file DATA/token")),
            None => Err(Status::unauthenticated(
                "missing token: send `authorization: Bearer TOKEN` with the token in the file DATA/token",
            )),
        }
    }
}

/// Lets web pages that this machine serves, on whatever port, read responses (CORS). They need the token all the same.
pub(super) fn own_pages() -> CorsLayer {
    let own = |origin: &http::HeaderValue, _: &http::request::Parts| origin.to_str().is_ok_and(is_own_origin);
    CorsLayer::new()
        .allow_origin(AllowOrigin::predicate(own))
        .allow_methods([http::Method::GET, http::Method::POST])
        .allow_headers(tower_http::cors::AllowHeaders::mirror_request())
        .expose_headers(
            ["grpc-status", "grpc-message", "grpc-status-details-bin"].map(http::HeaderName::from_static),
        )
        .max_age(std::time::Duration::from_secs(3_600))
}

/// True for a web page that is served from a loopback address.
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

impl Middleware for Auth {
    fn handle<S: Inner>(&self, inner: &mut S, request: Request<Body>) -> ResponseFuture<S::Error> {
        match self.authorize(&request) {
            Ok(()) => Box::pin(inner.call(request)),
            Err(status) => {
                let response = match &request {
                    request if is_plain(request.uri().path()) => plain_refusal(&status),
                    request if connect::is_grpc(request) => status.into_http(),
                    _ => connect::refusal(&request, &status),
                };
                Box::pin(async move { Ok(response) })
            }
        }
    }
}

/// A refusal for clients that don't speak gRPC.
fn plain_refusal(status: &Status) -> Response<Body> {
    let mut response = Response::new(Body::new(format!("{}\n", status.message())));
    *response.status_mut() = match status.code() {
        tonic::Code::Unauthenticated => StatusCode::UNAUTHORIZED,
        _ => StatusCode::FORBIDDEN,
    };
    response
}

#[cfg(test)]
mod tests {
    use super::{is_loopback, is_own_origin};

    #[test]
    fn only_pages_of_this_machine_have_the_brokers_origin() {
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
