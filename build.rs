//! Compiles the protocol definitions, in pure Rust: neither `protoc` nor Node is needed.

#[cfg(feature = "io")]
use prost_types::field_descriptor_proto::{Label, Type};
use std::error::Error;
use std::path::PathBuf;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    compile_records()?;
    #[cfg(feature = "io")]
    compile_api()?;
    Ok(())
}

/// The journal's records: plain messages, also for the kernel alone.
fn compile_records() -> Result<(), Box<dyn Error>> {
    let files = ["types", "event", "snapshot", "archive"].map(|name| format!("weir/journal/v1/{name}.proto"));
    let set = protox::compile(files, ["proto"])?;
    // Tests generate records from it.
    std::fs::write(out_dir()?.join("journal_descriptor.bin"), prost::Message::encode_to_vec(&set))?;
    // Maps are sorted: equal values have equal bytes, and digests are taken of them.
    prost_build::Config::new().btree_map(["."]).compile_fds(set)?;
    Ok(())
}

#[cfg(feature = "io")]
fn compile_api() -> Result<(), Box<dyn Error>> {
    let files =
        ["spec", "job", "pool", "queue", "event", "agent"].map(|name| format!("weir/v1/{name}.proto"));
    let mut compiler = protox::Compiler::new(["proto"])?;
    compiler.include_source_info(true).include_imports(true).open_files(&files)?;
    std::fs::write(out_dir()?.join("descriptor.bin"), compiler.encode_file_descriptor_set())?;
    let mut config = tonic_prost_build::configure()
        .type_attribute(".", "#[derive(serde::Serialize)] #[serde(rename_all = \"snake_case\")]")
        .btree_map(".")
        .codec_path("crate::api::codec::CountingCodec");
    // Enums print as their names; the client's JSON and YAML are made from these types.
    let set = compiler.file_descriptor_set();
    for message in
        set.file.iter().filter(|file| file.package() == "weir.v1").flat_map(|file| &file.message_type)
    {
        for field in message.field.iter().filter(|field| field.r#type() == Type::Enum) {
            let kind = field.type_name().rsplit('.').next().unwrap_or_default();
            let name = if field.label() == Label::Repeated { "enum_names" } else { "enum_name" };
            let attribute = format!("#[serde(serialize_with = \"super::{name}::<{kind}, _>\")]");
            config =
                config.field_attribute(format!("weir.v1.{}.{}", message.name(), field.name()), attribute);
        }
    }
    // The codec looks a request's type up by name.
    let mut names = prost_build::Config::new();
    names.enable_type_names();
    config.compile_fds_with_config(set, names)?;
    Ok(())
}

fn out_dir() -> Result<PathBuf, std::env::VarError> {
    std::env::var("OUT_DIR").map(PathBuf::from)
}
