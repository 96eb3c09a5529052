//! Compiles the protocol definitions, in pure Rust: neither `protoc` nor Node is needed.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    #[cfg(feature = "io")]
    compile()?;
    Ok(())
}

#[cfg(feature = "io")]
fn compile() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let files = ["spec", "job", "pool", "queue", "agent"].map(|name| format!("weir/v1/{name}.proto"));
    let mut compiler = protox::Compiler::new(["proto"])?;
    compiler.include_source_info(true).include_imports(true).open_files(&files)?;
    let out = std::path::PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(out.join("descriptor.bin"), compiler.encode_file_descriptor_set())?;
    // Enums print as their names; the client's JSON and YAML are made from these types.
    let enums = [
        ("Job.phase", "JobPhase"),
        ("Attempt.phase", "AttemptPhase"),
        ("Pool.reach", "Connectivity"),
        ("Drain.mode", "DrainMode"),
        ("PoolReason.standing", "Standing"),
        ("JobSpec.on_pool_lost", "OnPoolLost"),
        ("Dependency.condition", "DependencyCondition"),
    ];
    let mut config = tonic_prost_build::configure()
        .type_attribute(".", "#[derive(serde::Serialize)] #[serde(rename_all = \"snake_case\")]")
        .field_attribute(
            "weir.v1.RetryPolicy.on",
            "#[serde(serialize_with = \"super::enum_names::<RetryOn, _>\")]",
        )
        .btree_map(".");
    for (field, kind) in enums {
        let attribute = format!("#[serde(serialize_with = \"super::enum_name::<{kind}, _>\")]");
        config = config.field_attribute(format!("weir.v1.{field}"), attribute);
    }
    config.compile_fds(compiler.file_descriptor_set())?;
    Ok(())
}
