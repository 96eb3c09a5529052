//! The protocol's own description: what stands in which message, and which message a method takes.

use std::collections::HashMap;
use std::sync::LazyLock;

use prost::Message;

use super::proto::DESCRIPTOR;

/// All definitions, as the compiler wrote them; of each only what is needed here.
#[derive(Clone, PartialEq, prost::Message)]
pub struct FileSet {
    #[prost(message, repeated, tag = "1")]
    pub file: Vec<File>,
}

/// A file of definitions.
#[derive(Clone, PartialEq, prost::Message)]
pub struct File {
    #[prost(string, tag = "2")]
    pub package: String,
    #[prost(message, repeated, tag = "4")]
    pub message_type: Vec<Type>,
    #[prost(message, repeated, tag = "6")]
    pub service: Vec<Service>,
}

/// A message's type; maps are lists of nested types.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Type {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(message, repeated, tag = "2")]
    pub field: Vec<Field>,
    #[prost(message, repeated, tag = "3")]
    pub nested_type: Vec<Type>,
}

/// A field of a message.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Field {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(int32, tag = "3")]
    pub number: i32,
    /// [`REPEATED`], or one of those that are not.
    #[prost(int32, tag = "4")]
    pub label: i32,
    /// [`BOOL`], [`STRING`], [`MESSAGE`], [`BYTES`], or a number of some kind.
    #[prost(int32, tag = "5")]
    pub kind: i32,
    #[prost(string, tag = "6")]
    pub type_name: String,
}

/// A service.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Service {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(message, repeated, tag = "2")]
    pub method: Vec<Method>,
}

/// A method of a service.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Method {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(string, tag = "2")]
    pub input_type: String,
}

pub const REPEATED: i32 = 3;
pub const BOOL: i32 = 8;
pub const STRING: i32 = 9;
pub const MESSAGE: i32 = 11;
pub const BYTES: i32 = 12;

/// The definitions of `weir.v1`, looked up by name.
#[derive(Debug, Default)]
pub struct Definitions {
    /// By full name, such as `.weir.v1.JobSpec`.
    pub types: HashMap<String, Type>,
    /// The type of what a method takes, by path, such as `/weir.v1.JobService/Submit`.
    pub inputs: HashMap<String, String>,
}

/// The definitions, read once.
pub fn definitions() -> &'static Definitions {
    static READ: LazyLock<Definitions> = LazyLock::new(|| {
        let mut read = Definitions::default();
        // They were compiled with this program; were they not, reflection would say so.
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
