//! The protocol's compiled definitions: the fields of each message, and the methods of each service.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use prost_reflect::{DescriptorPool, MethodDescriptor};

use super::proto::DESCRIPTOR;

/// The definitions of `weir.v1`, of what it imports, and of `google.rpc`, decoded at the first call.
pub fn definitions() -> &'static DescriptorPool {
    // They were compiled with this program. If they can't be decoded, reflection logs it at start.
    static READ: LazyLock<DescriptorPool> = LazyLock::new(|| {
        let mut pool = DescriptorPool::decode(DESCRIPTOR).unwrap_or_default();
        // The details of errors.
        let _ = pool.decode_file_descriptor_set(tonic_types::pb::FILE_DESCRIPTOR_SET);
        pool
    });
    &READ
}

/// The methods of all services, by path, such as `/weir.v1.JobService/Submit`.
pub fn methods() -> &'static BTreeMap<String, MethodDescriptor> {
    static READ: LazyLock<BTreeMap<String, MethodDescriptor>> = LazyLock::new(|| {
        let services: Vec<_> = definitions().services().collect();
        let path =
            |method: &MethodDescriptor| format!("/{}/{}", method.parent_service().full_name(), method.name());
        let methods = services.iter().flat_map(|service| service.methods());
        methods.map(|method| (path(&method), method)).collect()
    });
    &READ
}
