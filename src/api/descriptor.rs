//! The protocol's compiled definitions: the fields of each message, and the input of each method.

use std::collections::HashMap;
use std::sync::LazyLock;

use prost::Message;

use super::proto::DESCRIPTOR;

/// A `google.protobuf.FileDescriptorSet`, reduced to what is needed here.
#[derive(Clone, PartialEq, prost::Message)]
pub struct FileSet {
    #[prost(message, repeated, tag = "1")]
    pub file: Vec<File>,
}

/// A `FileDescriptorProto`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct File {
    #[prost(string, tag = "2")]
    pub package: String,
    #[prost(message, repeated, tag = "4")]
    pub message_type: Vec<Type>,
    #[prost(message, repeated, tag = "6")]
    pub service: Vec<Service>,
}

/// A `DescriptorProto`: a message type. A map field is a list of a nested type.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Type {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(message, repeated, tag = "2")]
    pub field: Vec<Field>,
    #[prost(message, repeated, tag = "3")]
    pub nested_type: Vec<Type>,
}

/// A `FieldDescriptorProto`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Field {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(int32, tag = "3")]
    pub number: i32,
    /// [`REPEATED`], or another label.
    #[prost(int32, tag = "4")]
    pub label: i32,
    /// [`BOOL`], [`STRING`], [`MESSAGE`], [`BYTES`], or a type of numbers.
    #[prost(int32, tag = "5")]
    pub kind: i32,
    #[prost(string, tag = "6")]
    /// Full name of a message's or enum's type, else empty.
    pub type_name: String,
}

/// A `ServiceDescriptorProto`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Service {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(message, repeated, tag = "2")]
    pub method: Vec<Method>,
}

/// A `MethodDescriptorProto`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Method {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(string, tag = "2")]
    pub input_type: String,
}

/// `FieldDescriptorProto.Label.LABEL_REPEATED`.
pub const REPEATED: i32 = 3;
/// `FieldDescriptorProto.Type.TYPE_BOOL`.
pub const BOOL: i32 = 8;
/// `FieldDescriptorProto.Type.TYPE_STRING`.
pub const STRING: i32 = 9;
/// `FieldDescriptorProto.Type.TYPE_MESSAGE`.
pub const MESSAGE: i32 = 11;
/// `FieldDescriptorProto.Type.TYPE_BYTES`.
pub const BYTES: i32 = 12;

/// The definitions of `weir.v1` by name.
#[derive(Debug, Default)]
pub struct Definitions {
    /// Message types by full name, such as `.weir.v1.JobSpec`.
    pub types: HashMap<String, Type>,
    /// Input types of methods by path, such as `/weir.v1.JobService/Submit`.
    pub inputs: HashMap<String, String>,
}

/// The definitions of `weir.v1`, decoded at the first call.
pub fn definitions() -> &'static Definitions {
    static READ: LazyLock<Definitions> = LazyLock::new(|| {
        let mut read = Definitions::default();
        // They were compiled with this program. If they can't be decoded, reflection logs it at start.
        let set = FileSet::decode(DESCRIPTOR).unwrap_or_default();
        for file in set.file.iter().filter(|file| file.package == "weir.v1") {
            for message in &file.message_type {
                read.add(".weir.v1", message);
            }
            for service in &file.service {
                for method in &service.method {
                    let path = format!("/weir.v1.{}/{}", service.name, method.name);
                    read.inputs.insert(path, method.input_type.clone());
                }
            }
        }
        read
    });
    &READ
}

impl Definitions {
    fn add(&mut self, scope: &str, message: &Type) {
        let name = format!("{scope}.{}", message.name);
        for nested in &message.nested_type {
            self.add(&name, nested);
        }
        self.types.insert(name, message.clone());
    }
}
