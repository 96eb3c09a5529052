//! What every backend of a pool must do, on the real thing: this host, a simulated pool, and a
//! Kubernetes cluster.

#[path = "../support/mod.rs"]
mod support;

mod conformance;
mod host;
mod kubernetes;
mod life;
mod simulated;
