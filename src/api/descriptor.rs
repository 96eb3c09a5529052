//! The protocol's compiled definitions: the fields of each message, and the methods of each service.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use prost_reflect::{DescriptorPool, MethodDescriptor};

use super::proto::DESCRIPTOR;

/// The definitions of `weir.v1` and of what it imports, decoded at the first call.
pub fn definitions() -> &'static DescriptorPool {
    // They were compiled with this program. If they can't be decoded, reflection logs it at start.
    static READ: LazyLock<DescriptorPool> =
        LazyLock::new(|| DescriptorPool::decode(DESCRIPTOR).unwrap_or_default());
    &READ
}

/// The methods of all services, by path, such as `/weir.v1.JobService/Submit`.
pub fn methods() -> BTreeMap<String, MethodDescriptor> {
    let services: Vec<_> = definitions().services().collect();
    let methods = services.iter().flat_map(|service| {
        service.methods().map(move |method| (format!("/{}/{}", service.full_name(), method.name()), method))
    });
    methods.collect()
}
