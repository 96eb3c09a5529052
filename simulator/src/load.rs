//! Real traces against a running broker.
