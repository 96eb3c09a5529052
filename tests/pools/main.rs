//! What every backend must do, on real systems: this host, a simulated pool, and a Kubernetes cluster.

#[path = "../support/mod.rs"]
mod support;

mod conformance;
mod host;
mod kubernetes;
mod life;
mod simulated;
